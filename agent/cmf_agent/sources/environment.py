"""What Python a run had, and which packages in which versions.

Rules
- Nothing that differs between two equal environments on two hosts: no paths, no host names, no order of listing.
- Quick: a name and a version stand in the name of a package's metadata folder, so the metadata is opened only
  where they don't (packaging.python.org/specifications/recording-installed-packages). What is no folder, such as
  a zipped egg, is left to importlib.metadata.
- Like an import, the first match on `sys.path` wins.
"""

# os.path: one call per package, where pathlib is several times slower.
# ruff: noqa: PTH110, PTH112, PTH113, PTH118, PTH123, PTH208

import functools
import os
import re
import sys
from collections.abc import Iterator

#: `name-version.dist-info`, as wheels are unpacked. A version with `_` is an escaped one, which must be looked up.
_DIST_INFO = re.compile(r"(?P<name>[A-Za-z0-9][\w.]*)-(?P<version>[0-9][^-_]*)\.dist-info", re.ASCII)
_SEPARATORS = re.compile(r"[-_.]+")


def capture_environment() -> dict[str, object]:
    """Return `python`, `implementation`, `system`, `machine` and `packages`, versions by normalised name (PEP 503).

    The packages are listed once for each state of `sys.path`.
    """
    import platform

    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.system(),
        "machine": platform.machine(),
        "packages": dict(_packages(tuple(map(os.path.abspath, sys.path)))),
    }


@functools.lru_cache(maxsize=4)
def _packages(search_path: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for folder in dict.fromkeys(search_path):
        for name, version in _installed_in(folder):
            found.setdefault(_SEPARATORS.sub("-", name).lower(), version)
    return dict(sorted(found.items()))


def _installed_in(folder: str) -> Iterator[tuple[str, str]]:
    if folder.endswith(".egg") or os.path.isfile(folder):
        yield from _installed_in_archive(folder)
        return
    try:
        entries = sorted(os.listdir(folder))
    except OSError:  # sys.path may name what isn't there
        return
    for entry in entries:
        if entry.endswith((".dist-info", ".egg-info")):
            installed = _read_entry(folder, entry)
            if installed:
                yield installed


def _read_entry(folder: str, entry: str) -> tuple[str, str] | None:
    path = os.path.join(folder, entry)
    if entry.endswith(".egg-info"):
        return _read_headers(os.path.join(path, "PKG-INFO") if os.path.isdir(path) else path)
    metadata = os.path.join(path, "METADATA")
    match = _DIST_INFO.fullmatch(entry)
    if match is None:
        return _read_headers(metadata)
    # A folder without it is what an interrupted uninstall left behind.
    return (match["name"], match["version"]) if os.path.exists(metadata) else None


def _read_headers(path: str) -> tuple[str, str] | None:
    """Return the name and version that the metadata file at `path` states, if it does."""
    headers: dict[str, str] = {}
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                if not line.strip():  # the description follows
                    break
                key, _, value = line.partition(":")
                headers.setdefault(key.lower(), value.strip())
    except OSError:
        return None
    name, version = headers.get("name"), headers.get("version")
    return (name, version) if name and version else None


def _installed_in_archive(path: str) -> Iterator[tuple[str, str]]:
    from importlib.metadata import distributions

    for distribution in distributions(path=[path]):
        name, version = distribution.metadata["Name"], distribution.version
        if name and version:
            yield name, version
