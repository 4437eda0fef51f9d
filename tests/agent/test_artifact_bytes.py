"""Pushing and pulling the bytes of artifacts: what is carried, what is checked, what goes on after a cut."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from tests.agent.artifact_sites import FILES, PIPELINE, Site, command, copy_site, inside, make_colleague, make_site
from tests.agent.helpers import cli_json, python
from tests.support.dvc import git, told

import cmf_agent as cmf
from cmf_agent.artifact_bytes import Report, Wanted, list_bytes, pull_bytes, push_bytes
from cmf_agent.commands.asking import questions_at
from cmf_agent.dvc.dvc_files import read_manifest
from cmf_agent.dvc.work import FAILURES_MAX, Work
from cmf_agent.home import future_home, init_home
from cmf_agent.needed import Asked, known_contents, needed, own_contents
from cmf_protocol.errors import CallerError, StoreError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site that trained; copy it before changing anything."""
    return make_site(tmp_path_factory.mktemp("made") / "site")


@pytest.fixture(scope="module")
def stocked(made: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A remote that holds everything; copy it before changing anything."""
    remote = tmp_path_factory.mktemp("stocked") / "remote"
    report = copy_site(made, remote.parent / "site").push(Wanted(url=str(remote)))
    assert report.count("transferred") == 2
    return remote


@pytest.fixture
def site(made: Site, tmp_path: Path) -> Site:
    return copy_site(made, tmp_path / "site")


@pytest.fixture
def colleague(made: Site, tmp_path: Path) -> Site:
    return make_colleague(made, tmp_path / "colleague")


@pytest.fixture
def remote(stocked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stocked, tmp_path / "remote"))


def objects(folder: Path) -> dict[str, bytes]:
    """Return the objects of a remote or cache by digest, and anything that is none by its path."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.parent.name + path.name: path.read_bytes() for path in files}


def states(report: Report) -> dict[str, str]:
    """Return name → state."""
    return {item.needed.names[0]: item.state for item in report.items}


def spoil(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


def id_of(site: Site, name: str) -> str:
    """Return the content id of what was recorded under a name."""
    (found,) = site.needed(name)
    return found.content_id


# -- push --------------------------------------------------------------------------------------------------------------


def test_a_push_gives_what_is_lacking_and_records_once_where_it_is(site: Site, tmp_path: Path) -> None:
    where = Wanted(url=str(tmp_path / "new"))
    report = site.push(where)
    assert states(report) == {"data": "transferred", "model.pkl": "transferred"}
    assert report.bytes == sum(map(len, FILES.values())) + len(site.cached(id_of(site, "data")).read_bytes())
    assert set(objects(tmp_path / "new").values()) >= set(FILES.values())
    place = {"kind": "remote", "url": str(tmp_path / "new")}
    assert [each for each in told(site.home) if each["kind"] == "remote"] == [place, place]
    again = site.push(where)
    assert states(again) == {"data": "present", "model.pkl": "present"}
    assert (again.bytes, again.recorded) == (0, 0)


def test_a_push_mends_what_was_cut_short_or_lost_there(site: Site, remote: Path) -> None:
    before = objects(remote)
    short, gone = [path for path in remote.rglob("*") if path.is_file() and not path.name.endswith(".dir")][:2]
    spoil(short, short.read_bytes()[:10])
    gone.unlink()
    report = site.push(Wanted(url=str(remote)))
    assert "transferred" in states(report).values()
    assert objects(remote) == before


def test_damage_in_the_cache_is_not_passed_on(site: Site, tmp_path: Path) -> None:
    spoil(site.cached(id_of(site, "model.pkl")), b"other" * 100)
    report = site.push(Wanted(url=str(tmp_path / "new")))
    assert states(report) == {"data": "transferred", "model.pkl": "failed"}
    (item,) = (item for item in report.items if item.state == "failed")
    assert item.is_damaged and "DVC's cache" in item.reason
    assert id_of(site, "model.pkl")[4:] not in objects(tmp_path / "new")


def test_a_folder_of_which_a_file_is_lost_gets_no_manifest_in_the_remote(site: Site, tmp_path: Path) -> None:
    digest = id_of(site, "data")
    manifest = read_manifest(str(site.folder / ".dvc/cache"), digest)
    assert manifest is not None
    site.cached(f"md5:{manifest['a.bin']}").unlink()
    wanted = site.needed("data")
    (item,) = push_bytes(site.home, wanted, Wanted(url=str(tmp_path / "new"))).items
    assert (item.state, item.reason) == ("missing", "1 of its 2 files: neither in DVC's cache nor in the remote")
    assert set(objects(tmp_path / "new")) == {manifest["deep/b.bin"]}
    assert not any(each["kind"] == "remote" for each in told(site.home))
    assert site.push(Wanted(url=str(tmp_path / "new"))).items[0].needed.names == ("model.pkl",), "only what is whole"


# -- pull --------------------------------------------------------------------------------------------------------------


def test_who_only_has_metadata_pulls_the_bytes_into_place(colleague: Site, remote: Path) -> None:
    report = colleague.pull(Wanted(url=str(remote)))
    assert states(report) == {"data": "transferred", "model.pkl": "transferred"}
    assert {name: (colleague.folder / name).read_bytes() for name in FILES} == FILES
    assert colleague.cached(id_of(colleague, "model.pkl")).stat().st_mode & 0o777 == 0o444
    assert all(item.is_good for item in report.items)
    again = colleague.pull(Wanted(url=str(remote)))
    assert again.bytes == 0
    assert {placed.state for item in again.items for placed in item.placed} == {"there"}


def test_damage_in_the_remote_is_refused_and_stops_nothing_else(
    colleague: Site, remote: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = id_of(colleague, "model.pkl")
    spoil(remote / "files/md5" / digest[4:6] / digest[6:], b"evil!" * 100)
    report = colleague.pull(Wanted(url=str(remote)))
    assert states(report) == {"data": "transferred", "model.pkl": "failed"}
    assert not colleague.cached(digest).exists() and not (colleague.folder / "model.pkl").exists()
    assert command(colleague.folder, "artifact", "pull", "model.pkl", "--url", str(remote)) == 5
    assert f"{digest} is damaged" in capsys.readouterr().err
    assert list((colleague.folder / ".dvc/cache/cmf-incoming").iterdir()) == []


def test_a_damaged_manifest_is_refused_too(colleague: Site, remote: Path) -> None:
    digest = id_of(colleague, "data")
    spoil(remote / "files/md5" / digest[4:6] / digest[6:], b'[{"md5": "' + b"0" * 32 + b'", "relpath": "../x"}]')
    (item,) = colleague.pull(Wanted(url=str(remote)), "data").items
    assert (item.state, item.is_damaged) == ("failed", True)
    assert not colleague.cached(digest).exists()


def test_damage_in_the_cache_is_not_put_in_place(colleague: Site, remote: Path) -> None:
    digest = id_of(colleague, "model.pkl")
    colleague.pull(Wanted(url=str(remote)), "model.pkl")
    (colleague.folder / "model.pkl").unlink()
    spoil(colleague.cached(digest), b"other" * 100)
    (item,) = colleague.pull(Wanted(url=str(remote)), "model.pkl").items
    assert (item.state, item.is_damaged) == ("failed", True)
    assert not (colleague.folder / "model.pkl").exists()


def test_what_the_remote_lacks_is_missing_and_what_came_stays(colleague: Site, remote: Path) -> None:
    (big,) = [path for path in remote.rglob("*") if path.is_file() and path.stat().st_size == 2000]
    kept = big.read_bytes()
    big.unlink()
    report = colleague.pull(Wanted(url=str(remote)))
    assert states(report) == {"data": "missing", "model.pkl": "transferred"}
    assert report.items[0].reason == f"1 of its 2 files: not in {remote}"
    big.write_bytes(kept)
    assert colleague.pull(Wanted(url=str(remote))).bytes == 2000, "only what was lacking"


def test_a_full_disk_leaves_nothing_half_and_the_next_pull_goes_on(colleague: Site, remote: Path) -> None:
    script = f"""
import resource
from cmf_agent.artifact_bytes import Wanted, pull_bytes
from cmf_agent.dvc.work import silent
from cmf_agent.home import find_home
from cmf_agent.needed import known_contents

def show(files, size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))
    return silent(files, size)

home = find_home()
for item in pull_bytes(home, known_contents(home), Wanted(url={str(remote)!r}), into=None, show=show).items:
    print(item.needed.names[0], item.state, item.reason)
"""
    done = python(script, cwd=colleague.folder)
    assert done.returncode == 0, done.stderr
    data, model = done.stdout.splitlines()
    assert data.startswith("data failed ") and "File too large" in data and "make room there" in data
    assert model == "model.pkl transferred "
    found = objects(colleague.folder / ".dvc/cache/files")
    assert found and found.items() <= objects(remote).items()
    assert colleague.pull(Wanted(url=str(remote))).bytes == 2000


def test_the_remote_that_events_tell_of_is_used_where_none_is_configured(
    site: Site, remote: Path, tmp_path: Path
) -> None:
    site.push(Wanted(url=str(remote)))
    other = make_colleague(site, tmp_path / "other")
    report = other.pull(Wanted(), "model.pkl")
    assert states(report) == {"model.pkl": "transferred"}
    assert report.notes == [f"no DVC remote is configured here: using {remote}, which was recorded with the bytes"]


def test_a_name_of_several_contents_is_put_nowhere(site: Site, remote: Path) -> None:
    (site.folder / "model.pkl").write_bytes(b"another")
    with inside(site.folder), cmf.run(PIPELINE, "train", home=site.home.path) as run:
        run.output("model.pkl")
    (site.folder / "model.pkl").unlink()
    report = site.pull(Wanted(url=str(remote)))
    assert not (site.folder / "model.pkl").exists()
    assert report.notes == [
        "model.pkl is the name of 2 contents: none is put there; pull the one that is meant by its digest"
    ]


def test_what_has_no_name_is_told_to_be_in_the_cache_only(site: Site, remote: Path) -> None:
    wanted = [each._replace(names=()) for each in site.needed("model.pkl")]
    report = pull_bytes(site.home, wanted, Wanted(url=str(remote)), into=site.folder)
    (note,) = report.notes
    assert "1 artifact has no name here" in note and "--to DIR" in note


# -- what is meant -----------------------------------------------------------------------------------------------------


def test_what_git_and_the_log_hold_is_not_missing(site: Site, tmp_path: Path) -> None:
    (site.folder / "train.py").write_text("print()")
    git(site.folder, "add", "train.py")
    git(site.folder, "commit", "-qm", "x")
    with inside(site.folder), cmf.run(PIPELINE, "train", home=site.home.path) as run:
        run.input("train.py")
        run.metrics_table("scores", [{"epoch": 1}])
    report = push_bytes(site.home, site.needed(pipeline=PIPELINE), Wanted(url=str(tmp_path / "new")))
    assert states(report) == {"data": "transferred", "model.pkl": "transferred", "train.py": "elsewhere"}
    assert all(item.is_good for item in report.items)


def test_refs_and_filters_choose_what_is_meant(site: Site) -> None:
    def names(asked: Asked) -> list[str]:
        return [name for each in needed(site.home, asked) for name in each.names]

    with questions_at(site.home) as asked:
        run = asked.executions()["items"][0]["id"]
    assert (
        names(Asked((run,)))
        == names(Asked((), [PIPELINE]))
        == names(Asked((), [PIPELINE], "train"))
        == ["data", "model.pkl"]
    )
    assert names(Asked((run,), usage="used")) == ["data"]
    assert names(Asked((run,), usage="produced")) == ["model.pkl"]
    assert names(Asked((), [PIPELINE], kind="model")) == ["model.pkl"]
    assert [each.names for each in own_contents(site.home)] == [each.names for each in known_contents(site.home)]
    (site.folder / "model.pkl").write_bytes(b"changed since")
    assert site.needed("./model.pkl") == site.needed("model.pkl") != []
    with pytest.raises(CallerError, match="nothing here is called"):
        site.needed("nope")
    with pytest.raises(CallerError, match="no stage 'nope'"):
        needed(site.home, Asked((), [PIPELINE], "nope"))


def test_a_list_says_where_bytes_are(site: Site, colleague: Site, remote: Path, tmp_path: Path) -> None:
    def found(at: Site, where: Wanted | None) -> dict[str, tuple[bool | None, bool | None]]:
        items = list_bytes(at.home, known_contents(at.home), where)
        return {item["names"][0]: (item["cached"], item["remote"]) for item in items}

    digest = id_of(site, "model.pkl")
    (remote / "files/md5" / digest[4:6] / digest[6:]).unlink()
    assert found(site, None) == {"data": (True, None), "model.pkl": (True, None)}
    assert found(site, Wanted(url=str(remote))) == {"data": (True, True), "model.pkl": (True, False)}
    assert found(colleague, Wanted(url=str(remote))) == {"data": (False, True), "model.pkl": (False, False)}
    shutil.rmtree(colleague.folder / ".dvc")
    assert found(colleague, None) == {"data": (None, None), "model.pkl": (None, None)}


# -- the command line, bad input ---------------------------------------------------------------------------------------


def test_the_commands_carry_and_tell(
    site: Site, colleague: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for at, scm in ((site, "False"), (colleague, "True")):
        config = (
            f"[core]\n    no_scm = {scm}\n    remote = store\n['remote \"store\"']\n    url = {tmp_path / 'store'}\n"
        )
        (at.folder / ".dvc/config").write_text(config)
    pushed = cli_json("artifact", "push", cwd=site.folder)
    assert (pushed["transferred"], pushed["recorded"], pushed["remotes"]) == (2, 2, [str(tmp_path / "store")])
    assert command(colleague.folder, "artifact", "pull", "-p", PIPELINE) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and printed.out.startswith("pulled 2 artifacts (")
    (colleague.folder / "model.pkl").write_bytes(b"mine")
    assert command(colleague.folder, "artifact", "pull", "model.pkl") == 1
    assert (colleague.folder / "model.pkl").read_bytes() == b"mine"
    assert "--force replaces it" in capsys.readouterr().err
    assert command(colleague.folder, "artifact", "pull", "model.pkl", "--force") == 0
    assert (colleague.folder / "model.pkl").read_bytes() == FILES["model.pkl"]
    capsys.readouterr()
    assert command(colleague.folder, "artifact", "list", "--check") == 0
    assert capsys.readouterr().out.splitlines()[1].split("\t")[-3:-1] == ["yes", "yes"]


def test_what_can_not_be_done_is_said_with_the_way_out(
    made: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = copy_site(made, tmp_path / "site")
    bare = tmp_path / "bare"
    bare.mkdir()
    init_home(future_home(bare))
    for words, folder, message, hint in (
        (["push"], site.folder, "has no DVC remote", "dvc remote add -d NAME URL"),
        (["push", "--remote", "nope"], site.folder, "no DVC remote called 'nope'", "dvc remote add"),
        (["push", "--remote", "a", "--url", "b"], site.folder, "both name a remote", "one of them"),
        (["push", "--url", ""], site.folder, "names no remote", "default"),
        (["push", "--url", "gopher://x/y"], site.folder, "can't be opened", "dvc remote list"),
        (["pull"], site.folder, "nothing was named", "-p PIPELINE"),
        (["pull", "-p", "nope"], site.folder, "no pipeline 'nope'", "cmf-agent pull -p nope"),
        (["list", "--stage", "x"], site.folder, "--stage is about a pipeline", "-p"),
        (["push"], bare, "is in no DVC repository", "dvc init"),
    ):  # fmt: skip
        assert command(folder, "artifact", *words) == 2, words
        printed = capsys.readouterr()
        assert printed.out == "" and message in printed.err and hint in printed.err, printed.err


def test_a_remote_that_can_not_be_written_is_told_in_one_line(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for url in (str(tmp_path / "file"), "/proc/nothing"):
        report = site.push(Wanted(url=url))
        assert states(report) == {"data": "failed", "model.pkl": "failed"}
        assert all(url in item.reason and "\n" not in item.reason for item in report.items)
        assert not any("it is gone" in item.reason for item in report.items)


def test_what_fails_again_and_again_ends_the_rest_and_is_counted_truly() -> None:
    def carry(_oid: str) -> None:
        raise StoreError("no", "mend it")

    work = Work(1)
    work.run({f"{n:04}" for n in range(50)}, carry)
    reasons = Counter(str(error) for error in work.failed.values())
    assert reasons == {"no": FAILURES_MAX, f"not tried: {FAILURES_MAX} others failed before": 50 - FAILURES_MAX}


def test_names_that_lead_elsewhere_are_cut_below_a_folder_of_the_callers(
    site: Site, remote: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with inside(site.folder), cmf.run(PIPELINE, "take", home=site.home.path) as run:
        run.input("model.pkl", name="/elsewhere/taken.pkl")
    words = ["artifact", "pull", run.id, "--url", "../remote", "--to", str(tmp_path / "to"), "--json"]
    assert command(site.folder, *words) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["present"] == 1
    assert done["remotes"] == [str(remote)]
    assert (tmp_path / "to/taken.pkl").read_bytes() == FILES["model.pkl"]


def test_a_cache_that_can_not_be_written_is_told(colleague: Site, remote: Path) -> None:
    shutil.rmtree(colleague.folder / ".dvc/cache", ignore_errors=True)
    (colleague.folder / ".dvc/cache").write_text("no folder")
    with pytest.raises(StoreError, match="cache"):
        colleague.pull(Wanted(url=str(remote)))


def test_json_is_one_document_with_every_item(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site.cached(id_of(site, "model.pkl")).unlink()
    assert command(site.folder, "artifact", "push", "-p", PIPELINE, "--url", str(tmp_path / "new"), "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["transferred"], document["missing"], document["failed"]) == (1, 1, 0)
    assert document["items"][1] == {
        "content_id": id_of(site, "model.pkl"), "names": ["model.pkl"], "kind": "model", "size": 500, "state": "missing", "bytes": 0,
        "reason": "neither in DVC's cache nor in the remote", "placed": [],
    }  # fmt: skip


def test_a_table_that_is_named_is_said_to_be_in_the_events(site: Site) -> None:
    with cmf.run(PIPELINE, "cut", home=site.home.path) as run:
        table = run.metrics_table("curves", {"loss": [1.0, 0.5]})
    with pytest.raises(CallerError, match="recorded in events") as refused:
        needed(site.home, Asked(refs=(table.content_id,)))
    assert table.content_id in str(refused.value.hint)
    assert table.content_id not in {each.content_id for each in needed(site.home, Asked(pipelines=(PIPELINE,)))}
