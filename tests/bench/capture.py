"""Benchmarks of what a pipeline pays for having its files tracked by DVC, each beside what DVC alone takes."""

import logging
import os
import subprocess
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from tests.bench.measure import ROUNDS, Row, alternate, micro

import cmf_agent as cmf
from cmf_agent.home import Home, init_home
from cmf_graph.content.files import hash_path

SMALL_FILES = 20
TRACKED_FILES = 1_000
MANY_ROUNDS = 2
FOLDER_FILES = 10_000
FOLDER_ROUNDS = 2
FOLDER_FILE_BYTES = 1024


def dvc_small_file(folder: Path) -> Iterator[Row]:
    """A new 1 KB file logged and tracked; floor: a bare `Repo.add` of another, in a repository of its own."""
    yield _small_files(folder, SMALL_FILES, ROUNDS, "1 KB file logged, with DVC")


def dvc_small_file_among_many(folder: Path) -> Iterator[Row]:
    """The same where DVC tracks 1,000 files already, all of which a bare `Repo.add` reads."""
    for name in ("ours", "bare"):
        (folder / name / "tracked").mkdir(parents=True)
        for at in range(TRACKED_FILES):
            text = f"outs:\n- md5: a{at:031}\n  size: 5\n  hash: md5\n  path: '{at}'\n"
            (folder / name / "tracked" / f"{at}.dvc").write_text(text)
    yield _small_files(folder, 1, MANY_ROUNDS, f"1 KB file logged among {TRACKED_FILES:,}, with DVC")


def _small_files(folder: Path, at_a_time: int, rounds: int, name: str) -> Row:
    home, bare = _project(folder / "ours"), _bare_repository(folder / "bare")
    names = count()

    def files(where: Path) -> list[Path]:
        made = [where / f"small-{next(names)}" for _ in range(at_a_time)]
        for path in made:
            path.write_bytes(os.urandom(1024))
        return made

    with cmf.run("bench", "dvc", home=home.path) as run:

        def subject() -> None:
            for path in files(home.root):
                run.input(path)

        def floor() -> None:
            for path in files(folder / "bare"):
                bare.add(str(path))

        ours, raw = alternate(subject, floor, rounds)
    return Row(name, micro(ours / at_a_time), micro(raw / at_a_time), f"{ours / raw:.2f}", "≤ 1.3")


def dvc_folder(folder: Path) -> Iterator[Row]:
    """A new folder of 10,000 files logged, without DVC and with it; floors: hashing it, and `Repo.add`."""
    home, bare = _project(folder / "ours"), _bare_repository(folder / "bare")
    plain = Home(folder / "plain" / ".cmf", folder / "plain")
    init_home(plain)
    logged, hashed = _folders(plain.root / "logged"), _folders(plain.root / "hashed")
    with cmf.run("bench", "folder", home=plain.path) as run:
        ours, raw = alternate(lambda: run.input(next(logged)), lambda: hash_path(next(hashed)), FOLDER_ROUNDS)
    yield Row("10,000 files logged, without DVC", micro(ours), micro(raw), f"{ours / raw:.2f}", "")
    logged, added = _folders(home.root), _folders(folder / "bare")
    with cmf.run("bench", "folder", home=home.path) as run:
        ours, raw = alternate(lambda: run.input(next(logged)), lambda: bare.add(str(next(added))), FOLDER_ROUNDS)
    yield Row("10,000 files logged, with DVC", micro(ours), micro(raw), f"{ours / raw:.2f}", "")


def dvc_unchanged_folder(folder: Path) -> Iterator[Row]:
    """A tracked folder of 10,000 files logged again, nothing read; floor: listing it twice."""
    home = _project(folder / "ours")
    data = _folder(home.root / "data")
    with cmf.run("bench", "unchanged", home=home.path) as run:
        _age(data)
        run.input(data)

        def floor() -> None:
            for _ in range(2):
                for entry in os.scandir(data):
                    entry.stat()

        read: list[int] = []
        ours, raw = alternate(lambda: run.input(data, progress=read.append), floor)
    assert not read, "an unchanged folder was read"
    yield Row(
        "10,000 unchanged files logged again, with DVC", micro(ours), micro(raw), f"{ours / raw:.1f}", "nothing read"
    )


def _folders(where: Path) -> Iterator[Path]:
    """Return as many new folders as the rounds take, one of which only warms up; they are made now."""
    return iter([_folder(where / f"data-{at}") for at in range(FOLDER_ROUNDS + 1)])


def _folder(path: Path) -> Path:
    """Make a folder of files, all different."""
    path.mkdir(parents=True)
    for at in range(FOLDER_FILES):
        (path / f"{at:05}").write_bytes(os.urandom(FOLDER_FILE_BYTES))
    return path


def _age(folder: Path) -> None:
    """Wait until the digests of what was just written are remembered."""
    newest = max(path.stat().st_ctime for path in folder.iterdir())
    time.sleep(max(0.0, newest + 2.1 - time.time()))


def _project(folder: Path) -> Home:
    _repository(folder)
    home = Home(folder / ".cmf", folder)
    init_home(home)
    return home


def _bare_repository(folder: Path) -> Any:
    """Return DVC's own Repo, as quiet as ours."""
    _repository(folder)
    from dvc.repo import Repo

    return Repo(str(folder))


def _repository(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.CRITICAL)
    Repo.init(str(folder)).close()
