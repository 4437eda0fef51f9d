"""Progress bars for what takes long: on standard error, and only on a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cmf_graph.progress import progress_bar

#: From this size on, bytes, hashing takes long enough to wonder.
SHOWN_FROM = 64 << 20
#: From this count on sending takes long enough to wonder, on a slow line.
COUNT_SHOWN_FROM = 1_000
#: From so many bytes or files on, carrying artifacts takes long enough to wonder.
TRANSFER_SHOWN_FROM, FILES_SHOWN_FROM = 4 << 20, 10


@contextmanager
def hashing_progress(path: Path) -> Iterator[Callable[[int], None] | None]:
    """Show a bar while `path` is hashed, and yield what takes the number of bytes just read; None without a bar."""
    total = _size(path) if sys.stderr is not None and sys.stderr.isatty() else 0
    if total < SHOWN_FROM:
        yield None
        return
    with progress_bar(f"hashing {path.name}", total) as advance:
        yield advance


@contextmanager
def counting_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield what takes (done, total); a bar is shown once there is enough to do."""
    with ExitStack() as stack:
        bars: list[Callable[[int, int], None]] = []

        def show(done: int, total: int) -> None:
            if not bars and total - done >= COUNT_SHOWN_FROM and sys.stderr is not None and sys.stderr.isatty():
                bars.append(_open_bar(stack, what))
            for update in bars:
                update(done, total)

        yield show


@contextmanager
def transfer_progress(what: str, files: int, size: int) -> Iterator[tuple[Callable[[int], None], Callable[[], None]]]:
    """Yield what takes how many bytes were just carried, and what is told of each whole file; a bar is shown if there is enough to do."""
    if sys.stderr is None or not sys.stderr.isatty() or (size < TRANSFER_SHOWN_FROM and files < FILES_SHOWN_FROM):
        yield (lambda _count: None), (lambda: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(_carried(what, 0, files), total=size)
        done = 0

        def count_file() -> None:
            nonlocal done
            done += 1
            bar.update(task, description=_carried(what, done, files))

        yield (lambda count: bar.advance(task, count)), count_file


def _carried(what: str, done: int, files: int) -> str:
    return f"{what} {done:,}/{files:,} files"


def _open_bar(stack: ExitStack, what: str) -> Callable[[int, int], None]:
    from rich.console import Console
    from rich.progress import Progress

    bar = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
    task = bar.add_task(what, total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)


def _size(path: Path) -> int:
    """Return about how many bytes there are to hash; what can't be read counts for nothing."""
    try:
        if not path.is_dir():
            return path.stat().st_size
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    except OSError:
        return 0
