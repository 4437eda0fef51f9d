"""What an error of DVC's says to a person: a reason in one line, and the way out."""

from collections.abc import Iterator

from cmf_graph.database import hint_for

_REASON_CHARS_MAX = 300


def reason_of(error: BaseException) -> str:
    """Return what an error of DVC says, in one line; what the system said is in its causes."""
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.strerror:
            return f"{cause.strerror}: {cause.filename}" if cause.filename else cause.strerror
    text = " ".join(str(error).split())
    return (text or type(error).__name__)[:_REASON_CHARS_MAX]


def hint_of(*errors: BaseException) -> str:
    """Return the way out of what DVC raised or complained of."""
    causes = [cause for error in errors for cause in _chain(error)]
    return next((hint for cause in causes if (hint := hint_for(str(cause)))), "see what `dvc add` says of it")


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__
