"""Tells systemd how this process is (sd_notify(3)): where there is no systemd, nothing happens.

Rules
- Nothing here stops the daemon: what systemd does not take is left out.
"""

import contextlib
import os
import socket
from collections.abc import Mapping

_MICROSECONDS = 1_000_000
#: How many signs of life fit into the time after which systemd takes the process for dead (sd_watchdog_enabled(3) advises 2).
_SIGNS = 2


def tell(*lines: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Send lines such as `READY=1`; return False if nobody listens."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):  # a name without a file
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sink:
        sink.sendto("\n".join(lines).encode(), address)
        return True
    return False


def sign_of_life_every_s(environment: Mapping[str, str] = os.environ) -> float | None:
    """Return how often systemd wants a sign of life (`WATCHDOG=1`) from this process, s; None if it wants none."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) / _MICROSECONDS / _SIGNS if text.isdecimal() and int(text) > 0 else None
