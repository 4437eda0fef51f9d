"""Sites with a git and DVC repository, for tests that carry artifact bytes."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.dvc import init_dvc, make_dvc_project

import cmf_agent as cmf
from cmf_agent.artifact_bytes import Report, Wanted, pull_bytes, push_bytes
from cmf_agent.dvc.dvc_files import cache_folder, cached_path
from cmf_agent.home import Home, future_home, init_home
from cmf_agent.needed import Asked, Needed, needed, own_contents
from cmf_graph.console import guarded, run_app

PIPELINE = "mnist"
FILES = {"data/a.bin": b"a" * 1000, "data/deep/b.bin": b"b" * 2000, "model.pkl": b"model" * 100}


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder for the block."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def command(folder: Path, *arguments: str) -> int:
    """Run cmf-agent there, in this process, and return its exit code; what it writes is for `capsys`."""
    from cmf_agent.commands import app

    with inside(folder):
        return guarded(lambda: run_app(app, arguments, "cmf-agent"))


@dataclass
class Site:
    """A home in a DVC repository, and what is asked of it."""

    home: Home

    @property
    def folder(self) -> Path:
        """The project's folder."""
        return self.home.root

    def cached(self, content_id: str) -> Path:
        """Return where its cache keeps a content."""
        return Path(cached_path(cache_folder(str(self.folder)), content_id))

    def needed(self, *refs: str, pipeline: str | None = None, by_name: bool = True) -> list[Needed]:
        """Return what these REFs, or a pipeline, mean there."""
        with inside(self.folder):
            return needed(self.home, Asked(refs, [pipeline] if pipeline else ()), by_name=by_name)

    def push(self, where: Wanted) -> Report:
        """Push all that it recorded."""
        return push_bytes(self.home, own_contents(self.home), where, only_cached=True)

    def pull(self, where: Wanted, *refs: str, force: bool = False, into: Path | None = None) -> Report:
        """Pull what REFs mean, or all of the pipeline, into place."""
        wanted = self.needed(*refs) if refs else self.needed(pipeline=PIPELINE)
        return pull_bytes(self.home, wanted, where, into=into or self.folder, force=force)


def make_site(folder: Path) -> Site:
    """Make a site that trained: it used the folder `data`, and produced `model.pkl`."""
    folder.mkdir(parents=True)
    make_dvc_project(folder)
    home = future_home(folder)
    init_home(home)
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    with inside(folder), cmf.run(PIPELINE, "train", home=home.path, strict=True) as run:
        run.input("data")
        run.output("model.pkl", kind="model")
    return Site(home)


def make_colleague(site: Site, folder: Path) -> Site:
    """Make a site that knows what another one recorded, and has none of its bytes."""
    folder.mkdir(parents=True)
    init_dvc(folder, no_scm=True)
    shutil.copytree(site.home.path, folder / ".cmf")
    return Site(future_home(folder))


def copy_site(site: Site, folder: Path) -> Site:
    """Return a copy of a site, to spoil."""
    shutil.copytree(site.folder, folder, symlinks=True)
    return Site(future_home(folder))
