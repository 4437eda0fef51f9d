"""DVC's cache and a remote, as bytes are carried between them: what a remote holds, giving it one file, taking one of it.

Rules
- What a remote, its library or DVC raises leaves as an error of ours, in one line, that names the remote; that it lacks
  an object stays `FileNotFoundError`.
- A file gets its name in a remote when all of it is there; where the remote can't do that by itself, it is renamed at the end.
"""

# os.path: as DVC names its files.
# ruff: noqa: PTH120

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from cmf_agent.dvc.reasons import reason_of
from cmf_graph.database import hint_for
from cmf_protocol.errors import CmfError, StoreError

#: Files that a remote is asked about at a time.
_ASKED = 10_000
#: Remotes to which a file is written under its own name bit by bit; a local one, where DVC leaves half a file after an error, we write.
_LOCAL = "local"
_BIT_BY_BIT = (_LOCAL, "ssh", "sftp")
_CHUNK = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = re.compile(r"credential|permission|forbidden|denied|access ?key|signature|unauthorized|\b40[13]\b")
_REFUSED_HINT = (
    "check the credentials that DVC has for it: `dvc remote modify --local NAME …`, or the provider's own variables"
)
_UNREACHED_HINT = "is the address right, and is it reachable from here? `dvc remote list` shows it"

OnBytes = Callable[[int], None]


@dataclass(frozen=True)
class Cache:
    """DVC's cache at `folder`: what `locations.is_cached` and `dvc_files.cached_path` look into."""

    folder: str
    _odb: Any

    def adopt(self, path: str, oid: str) -> None:
        """Give the file at `path`, on the same file system, its place as the object `oid`."""
        target = self._odb.oid_to_path(oid)
        self._odb.makedirs(os.path.dirname(target))
        os.replace(path, target)  # noqa: PTH105
        self._odb.protect(target)


@dataclass(frozen=True)
class Remote:
    """A remote: `name` in DVC's configuration (None for an address), `url` without credentials, how many files go at a time."""

    name: str | None
    url: str
    jobs: int
    _odb: Any
    _folders: set[str] = field(default_factory=set)

    def path(self, oid: str) -> str:
        """Return where the remote keeps an object."""
        return str(self._odb.oid_to_path(oid))

    def sizes(self, oids: Iterable[str]) -> dict[str, int]:
        """Return the size, bytes, of each of these objects that the remote holds."""
        every, found = sorted(set(oids)), {}
        for start in range(0, len(every), _ASKED):
            some = every[start : start + _ASKED]
            with self._errors():
                infos = self._odb.fs.info(
                    [self.path(oid) for oid in some], batch_size=self.jobs, return_exceptions=True
                )
                for oid, info in zip(some, infos, strict=True):
                    if isinstance(info, FileNotFoundError | NotADirectoryError):
                        continue
                    if isinstance(info, BaseException):
                        raise info
                    if info.get("type") == "file":
                        found[oid] = int(info["size"])
        return found

    def put(self, path: str, oid: str, on_bytes: OnBytes) -> None:
        """Give the remote the file at `path` as the object `oid`."""
        fs, target = self._odb.fs, self.path(oid)
        counting = _counting(on_bytes)
        with self._errors(lacking=False):
            folder = fs.parent(target)
            if folder not in self._folders:
                fs.makedirs(folder)
                self._folders.add(folder)
            if fs.protocol not in _BIT_BY_BIT:
                fs.put_file(path, target, callback=counting)
            else:
                part = f"{target}.{uuid4().hex[:8]}.part"
                try:
                    if fs.protocol == _LOCAL:
                        _copy(path, part, on_bytes)
                        os.replace(part, target)  # noqa: PTH105
                    else:
                        fs.put_file(path, part, callback=counting)
                        fs.mv(part, target)
                except BaseException:
                    with suppress(Exception):
                        fs.remove(part)
                    raise

    def get(self, oid: str, path: str, on_bytes: OnBytes) -> None:
        """Write the object `oid` to the file at `path`; raise `FileNotFoundError` if the remote lacks it."""
        with self._errors():
            try:
                source = self.path(oid)
                if self._odb.fs.protocol == _LOCAL:
                    _copy(source, path, on_bytes)
                else:
                    self._odb.fs.get_file(source, path, callback=_counting(on_bytes))
            except OSError as error:
                if error.errno in _FULL:  # here, not there
                    raise _full(os.path.dirname(path), error) from error
                raise

    @contextmanager
    def _errors(self, *, lacking: bool = True) -> Iterator[None]:
        """Raise what is raised as ours; that something is not there stays what it is, where the remote may be `lacking` it."""
        try:
            yield
        except CmfError:
            raise
        except Exception as error:
            if lacking and isinstance(error, FileNotFoundError):
                raise
            raise _as_ours(self.url, error) from error


def _as_ours(url: str, error: Exception) -> StoreError:
    reason = reason_of(error)
    number = getattr(error, "errno", None)
    text = f"{type(error).__name__} {reason}".lower()
    if isinstance(error, OSError) and number in _FULL:
        return _full(url, error)
    if number in (errno.EACCES, errno.EPERM) or _REFUSED.search(text):
        return StoreError(f"{url} refuses: {reason}", _REFUSED_HINT)
    return StoreError(f"{url}: {reason}", hint_for(reason) or _UNREACHED_HINT)


def _copy(source: str, target: str, on_bytes: OnBytes) -> None:
    with open(source, "rb") as file, open(target, "wb") as copy:  # noqa: PTH123
        while chunk := file.read(_CHUNK):
            copy.write(chunk)
            on_bytes(len(chunk))


def _full(where: str, error: OSError) -> StoreError:
    return StoreError(f"{where}: {reason_of(error)}", "make room there, and run it again: it goes on")


def _counting(on_bytes: OnBytes) -> Any:
    """Return what fsspec tells of a file's progress; what `on_bytes` raises ends the transfer."""
    from fsspec.callbacks import Callback  # type: ignore[import-untyped]

    class Counting(Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            self.value += inc
            on_bytes(inc)

        def absolute_update(self, value: int) -> None:
            self.relative_update(value - self.value)

    return Counting()
