"""Times as people write and read them; inside they are µs UTC since 1970. Pure: the time of now is an argument."""

import re
from datetime import UTC, date, datetime, timedelta

from cmf_protocol.errors import CallerError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_AGO = re.compile(r"([0-9]{1,6})([smhdw])")
_UNITS_US = {"s": 10**6, "m": 60 * 10**6, "h": 3_600 * 10**6, "d": 86_400 * 10**6, "w": 7 * 86_400 * 10**6}


def rfc3339(time_us: int | None) -> str | None:
    """Return a time as RFC 3339 in UTC with microseconds; None for none, and for years that RFC 3339 can't write."""
    if time_us is None:
        return None
    try:
        moment = _EPOCH + time_us * _MICROSECOND
    except OverflowError:
        return None
    return moment.isoformat(timespec="microseconds")[:26] + "Z"


def parse_time(text: str, now_us: int, *, until: bool = False) -> int:
    """Return the time that `text` names: RFC 3339 (UTC where it names no zone), a date, or how long ago (`7d`, `12h`, `30m`).

    A date is its first moment, and with `until` the first moment of the next day, so that the day is in. Raises `CallerError`.
    """
    ago = _AGO.fullmatch(text.strip())
    if ago:
        return now_us - int(ago[1]) * _UNITS_US[ago[2]]
    try:
        moment = _moment(text.strip(), until)
        return (moment.astimezone(UTC) - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError) as error:
        raise CallerError(
            f"{text!r} is no time", "write 2025-03-01, 2025-03-01T12:00:00Z, or how long ago: 30m, 12h, 7d, 4w"
        ) from error


def _moment(text: str, until: bool) -> datetime:
    if len(text) <= 10:
        day = date.fromisoformat(text) + timedelta(days=until)
        return datetime(day.year, day.month, day.day, tzinfo=UTC)
    moment = datetime.fromisoformat(text.upper())
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
