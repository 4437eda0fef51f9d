"""A progress bar for hashing large files: on standard error, and only on a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

#: From this size on, bytes, hashing takes long enough to wonder.
SHOWN_FROM = 64 << 20


@contextmanager
def hashing_progress(path: Path) -> Iterator[Callable[[int], None] | None]:
    """Show a bar while `path` is hashed, and yield what takes the number of bytes just read; None without a bar."""
    total = _size(path) if sys.stderr is not None and sys.stderr.isatty() else 0
    if total < SHOWN_FROM:
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"hashing {path.name}", total=total)
        yield lambda count: bar.advance(task, count)


def _size(path: Path) -> int:
    """Return about how many bytes there are to hash; what can't be read counts for nothing."""
    try:
        if not path.is_dir():
            return path.stat().st_size
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    except OSError:
        return 0
