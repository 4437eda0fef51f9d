"""The home that a `Cmf` records in: found as always, made where there is none.

Rules
- Scripts that move over expect that the first one makes what it writes to (the file `mlmd`), so a project without a
  `.cmf` gets one, in the git repository's root or else in the folder itself, with a line on standard error.
- Of several processes that begin at the same time one makes it, and the others wait. A home without a key is one that was never
  finished, and is. A log that is missing where there is a key was lost: no new one takes its place unasked.
- If that fails, it is said, and the run goes on unrecorded.
"""

import os
from pathlib import Path

from cmf_agent.home import Home, find_home, future_home, init_home
from cmf_agent.recorder import say
from cmf_protocol.errors import CallerError, CmfError


def home_for(filepath: str | os.PathLike[str]) -> Home | None:
    """Return the home of the folder that the metadata file `filepath` would lie in; None if there can't be one."""
    try:
        folder = _folder_of(filepath)
        try:
            home = find_home(folder)
        except CallerError:
            return _made(folder)
        return _complete(home)
    except (CmfError, OSError) as error:
        hint = getattr(error, "hint", "")
        say(f"WARNING: NOTHING is recorded: {error}" + (f" ({hint})" if hint else ""))
        return None


def _folder_of(filepath: str | os.PathLike[str]) -> Path:
    folder = (Path.cwd() / filepath).parent
    return folder if folder.is_dir() else Path.cwd()


def _complete(home: Home) -> Home:
    """Return the home once the process that is just making it, if any, has come to its end."""
    from cmf_agent.locking import QueueLock
    from cmf_agent.opening import has_log

    try:
        if not has_log(home.log_path):
            if not home.key_path.exists():
                init_home(home)
            lock = QueueLock(home.lock_path)
            try:
                with lock:
                    return home
            finally:
                lock.close()
    except (CmfError, OSError):
        pass  # the first event says what is wrong, and waits until it can be recorded
    return home


def _made(folder: Path) -> Home:
    roots = (parent for parent in (folder, *folder.parents) if os.path.lexists(parent / ".git"))
    home = future_home(next(roots, folder))
    if init_home(home):
        say(f"made {home.path}, where everything is recorded from now on (`cmf-agent status` tells more)")
    return home
