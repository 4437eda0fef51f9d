"""The bytes that a lock file names, where they are at hand: in the project's folder, in DVC's cache, in git.

Rules
- A file is believed only if its digest is the one in the lock.
- An output of DVC 2 whose bytes are at hand is known as what it is, its old digest being another one of the same bytes.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from cmf_agent.dvc.dvc_files import LEGACY_HASH, cache_folder, object_folders, object_path
from cmf_agent.ingest.dvc_stages import Entry
from cmf_agent.ingest.git_files import Commit, GitFiles
from cmf_graph.content.files import Content, hash_path
from cmf_graph.content.memory import DigestMemory
from cmf_protocol.errors import CallerError

#: A larger file is no list of numbers, bytes.
SMALL_BYTES_MAX = 4 << 20
#: How DVC 2 read a text to hash it, bytes: a line end that is cut between two pieces stays as it is.
_PIECE_BYTES = 1 << 20
_TEXT_BYTES, _TEXT_LOOKED_AT, _ODD_SHARE_MAX = frozenset(b"\n\r\t\f\b" + bytes(range(32, 127))), 512, 0.3


class Files:
    """Where the bytes of a project can be looked for: its folder, its git repository, its DVC cache."""

    def __init__(self, root: Path, git: GitFiles | None, memory: DigestMemory | None) -> None:
        self.root = root
        self.git = git
        self._memory = memory
        self._cache = cache_folder(str(root))

    @property
    def repo(self) -> str | None:
        """The repository's address."""
        return self.git.repo if self.git is not None else None

    def content(self, name: str) -> Content | None:
        """Return what lies at a path of the project, None if nothing that can be read."""
        try:
            return hash_path(self.root / name, memory=self._memory)
        except CallerError:
            return None

    def in_git(self, entry: Entry, commit: Commit | None) -> tuple[str, str, bytes] | None:
        """Return path, blob id and bytes of a file that git has with this very content in `commit`."""
        path = self.git.path(self.root / entry.name) if self.git is not None else None
        if self.git is None or commit is None or path is None:
            return None
        blob = self.git.blob(commit.id, path)
        return (path, blob.id, blob.content) if blob is not None and has_digest(blob.content, entry) else None

    def small(self, entry: Entry, commit: Commit | None) -> bytes | None:
        """Return the bytes of a small file of this very content, None if it is nowhere."""
        if (entry.size or 0) > SMALL_BYTES_MAX:
            return None
        digest = (entry.content_id or "").partition(":")[2]
        places = (
            self.root / entry.name,
            *(Path(object_path(folder, digest)) for folder in object_folders(self._cache)),
        )
        for place in places:
            found = _read(place)
            if found is not None and has_digest(found, entry):
                return found
        held = self.in_git(entry, commit)
        return None if held is None else held[2]


def _read(path: Path) -> bytes | None:
    try:
        if path.stat().st_size > SMALL_BYTES_MAX or not path.is_file():
            return None
        return path.read_bytes()
    except (OSError, ValueError):
        return None


def has_digest(content: bytes, entry: Entry) -> bool:
    """Tell if some bytes are the content that the lock names."""
    algorithm, _, digest = (entry.content_id or "").partition(":")
    return digest == (legacy_digest([content]) if algorithm == LEGACY_HASH else _md5(content))


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def identity(entry: Entry, files: Files) -> tuple[str, list[str]]:
    """Return the content id of an entry, and the other digests of the same bytes that are known."""
    assert entry.content_id is not None
    algorithm, _, digest = entry.content_id.partition(":")
    if algorithm != LEGACY_HASH:
        return entry.content_id, []
    found = files.content(entry.name)
    if found is None or (entry.size is not None and found.size != entry.size):
        return entry.content_id, []
    is_file = found.sha256 is not None
    if found.content_id == f"md5:{digest}" or (is_file and legacy_digest(_pieces(files.root / entry.name)) == digest):
        return found.content_id, [entry.content_id, *([found.sha256] if found.sha256 else [])]
    return entry.content_id, []


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def legacy_digest(pieces: Iterable[bytes]) -> str:
    """Return the digest that DVC 2 gave to a file: of a text with unix line ends (dvc_data/hashfile/hash.py)."""
    hasher = hashlib.md5(usedforsecurity=False)
    is_text: bool | None = None
    for piece in pieces:
        if is_text is None:
            is_text = _looks_like_text(piece[:_TEXT_LOOKED_AT])
        hasher.update(piece.replace(b"\r\n", b"\n") if is_text else piece)
    return hasher.hexdigest()


def _looks_like_text(block: bytes) -> bool:
    if b"\0" in block:
        return False
    return sum(byte not in _TEXT_BYTES for byte in block) <= _ODD_SHARE_MAX * len(block)
