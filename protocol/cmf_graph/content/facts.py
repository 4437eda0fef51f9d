"""What a file's inode says about its content: the facts that must agree for a digest to be believed.

Rules
- A file that was changed has other facts: size, modification and change time, inode. The change time can't be
  set by a program, so `touch -d` and `cp -p` do not deceive it.
- Nothing here opens a file; a FIFO or a device is named by its kind and never read.
"""

# os.path: one call per file of a large folder, where pathlib is several times slower.
# ruff: noqa: PTH114, PTH116

import errno
import os
import stat
from typing import NamedTuple

from cmf_protocol.errors import CallerError

#: How long a file must have been left alone before its facts prove its content, ns: the coarsest clocks of file
#: systems (FAT) step by 2 s, and a change within a step goes unseen (git: Documentation/technical/racy-git.txt).
SETTLED_AFTER_NS = 2_000_000_000

_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

_REASONS = {
    errno.ENOENT: ("does not exist", "check the path, and that what makes it has run"),
    errno.ENOTDIR: ("does not exist: part of its path is no folder", "check the path"),
    errno.EACCES: ("may not be read by this user", "give this user the right to read it (and to enter its folders)"),
    errno.EPERM: ("may not be read by this user", "give this user the right to read it (and to enter its folders)"),
    errno.ELOOP: ("is a symbolic link that leads back to itself", "remove the link or point it at a file"),
    errno.ENAMETOOLONG: ("is too long a path", "use a shorter path"),
    errno.EIO: ("can't be read: the disk reports an error", "check the disk, then bring the file back from a copy"),
}


class FileFacts(NamedTuple):
    """Size in bytes, times in ns since 1970, inode: equal facts mean equal content, but for what was just touched."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


def facts_of(status: os.stat_result) -> FileFacts:
    """Return the facts that `status` holds."""
    return FileFacts(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def shown(path: str) -> str:
    """Return `path` as valid text for a message, with escapes in place of bytes that are not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def unreadable(path: str, error: OSError) -> CallerError:
    """Return the error that says why the file at `path` can't be read, and the way out."""
    if error.errno == errno.ENOENT and os.path.islink(path):
        return CallerError(
            f"{shown(path)} is a symbolic link to a file that does not exist",
            "remove the link or bring back what it points to",
        )
    reason, hint = _REASONS.get(error.errno or 0, (f"can't be read: {error.strerror or error}", "check the path"))
    return CallerError(f"{shown(path)} {reason}", hint)


def status_of(path: str) -> os.stat_result:
    """Return what the system knows of `path`, links followed. Raises `CallerError` if that is nothing."""
    try:
        return os.stat(path)
    except ValueError as error:  # U+0000 in the path
        raise CallerError(f"{path!r} is no path", "paths hold no U+0000") from error
    except OSError as error:
        raise unreadable(path, error) from error


def require_regular(path: str, status: os.stat_result) -> None:
    """Raise `CallerError` unless `status`, that of `path`, is a regular file's."""
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "no regular file")
        raise CallerError(f"{shown(path)} is {kind}, which has no content to record", "name regular files or folders")


def is_settled(facts: FileFacts, began_ns: int) -> bool:
    """Say whether a digest taken from `began_ns` on (ns since 1970) may be believed for as long as `facts` hold."""
    return began_ns - max(facts.mtime_ns, facts.ctime_ns) >= SETTLED_AFTER_NS
