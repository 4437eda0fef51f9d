"""A site whose disk was lost brings its own history back from a real hub, and goes on in a successor log."""

import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.faults import fault_proxy
from tests.support.hubs import START_LIMIT_S, Hub
from tests.support.programs import BIN, Done, ask, call, environment, until
from tests.support.sites import PIPELINE, PUSH_LIMIT_S, SiteFolder, copy_of, folded, twin_of

from cmf_agent.home import Home, future_home
from cmf_agent.hub_file import hub_in_force
from cmf_agent.opening import has_log
from cmf_agent.pull import pull
from cmf_agent.pulled import Pulled
from cmf_agent.push import PushReport, push
from cmf_agent.restoring import REASON, Restored, restore, staging_of
from cmf_agent.verify import verify
from cmf_agent.view import local_view
from cmf_graph.database import connect
from cmf_hub.enrol import add_site, rejoin_site
from cmf_hub.projector import caught_up_graph
from cmf_protocol.errors import CallerError, IntegrityError, StoreError
from cmf_protocol.filters import filter_of
from cmf_protocol.segments import encode_segment, unpack_segment

MakeSite = Callable[[str], SiteFolder]
RESTORE_LIMIT_S = 120
SLOW_BYTES_PER_S = 120_000


class Lost:
    """A site whose disk is gone: the join file that it gets from its hub, and the empty folder in which it begins anew."""

    def __init__(self, hub: Hub, name: str, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.file = folder.with_name(f"{folder.name}.join")
        rejoin_site(hub.data, name, self.file)
        self.folder = folder
        self.home: Home = future_home(folder, {})

    @property
    def words(self) -> list[object]:
        return ["init", "--join", self.file, "--restore", "--timeout", RESTORE_LIMIT_S]

    def call(self, *more: object) -> Done:
        """Run the command, whatever comes of it."""
        return call("cmf-agent", *self.words, *more, cwd=self.folder)

    def restore(self, key_file: Path | None = None) -> Restored:
        """Do what the command does, which must succeed, without a process for it."""
        done = restore(self.home, self.file, key_file=key_file, timeout_s=RESTORE_LIMIT_S)
        assert done.is_complete
        return done

    def found(self) -> SiteFolder:
        """Return what is there now."""
        return SiteFolder(self.folder)

    def staged(self) -> int:
        """Return how many events have come of a restore that has not come to its end."""
        path = staging_of(self.home).pulled_path
        if not path.exists():
            return 0
        with Pulled(path) as pulled:
            return int(pulled.rows("SELECT count(*) FROM events")[0][0])


class World:
    """A hub, and the folders whose logs together are what it holds."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub = hub
        self.folder = folder
        self.held: list[SiteFolder] = []

    def site(self, name: str) -> SiteFolder:
        """Return a site that has pushed what it holds."""
        made = SiteFolder(self.folder / name)
        self.hub.join(made)
        made.run("screening", f"train-{name}", outputs={"model.pkl": name.encode()}, metrics={"auc": 0.8})
        made.record(executions=3)
        pushed(made)
        self.held.append(made)
        return made

    def lose(self, name: str) -> Lost:
        """Lose a site's disk; what it held is to be asked of its folder all the same."""
        return Lost(self.hub, name, self.folder / "again" / name)

    def assert_agrees(self, *sites: SiteFolder) -> None:
        """Check that the hub holds and folds exactly what the sites have pushed, these too."""
        self.held += sites
        assert self.hub.digest() == folded(self.folder / f"graph-{len(self.held)}.db", self.held)


@pytest.fixture(scope="module")
def world(shared_hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(shared_hub, tmp_path_factory.mktemp("sites"))


def proven(hub: Hub, site: SiteFolder) -> list[bool]:
    """Return, of each log of a site that says that it goes on from another, if the hub's graph holds that for proven."""
    graph, _ = caught_up_graph(hub.data, wait_s=START_LIMIT_S)
    with closing(graph.connection):
        trees = {tree.log_id.hex(): tree for tree in graph.trees().values()}
    return [trees[log["log_id"]].predecessor is not None for log in site.status()["logs"] if log["predecessor"]]


def assert_restored(found: SiteFolder, *before: SiteFolder) -> None:
    """Check that all events of these are back, as they were, with one new log, and that everything verifies."""
    ids = {event.event_id for site in before for event in site.events()}
    *old, opening = found.events()
    assert {event.event_id for event in old} == ids
    assert opening.header.type == "log.opened"
    status = found.status()
    assert status["logs"][-1]["reason"] == REASON
    assert (status["events"], status["confirmed"], status["pending"]) == (len(ids) + 1, len(ids), 1)
    assert status["note"] is None
    report = verify(found.home)
    assert (report.problems, report.events, report.signatures > 0) == ([], len(ids) + 1, True)
    assert not staging_of(found.home).path.exists()


def pushed(site: SiteFolder) -> PushReport:
    """Push until everything is confirmed, without a process for it."""
    report = push(site.home, hub_in_force(site.home), timeout_s=PUSH_LIMIT_S)
    assert (report.pending, report.refused) == (0, [])
    return report


def push_the_new_log(found: SiteFolder) -> None:
    """Push, which sends the new log and nothing of the old ones."""
    report = pushed(found)
    assert (report.confirmed, report.segments <= 1, report.warnings) == (1, True, [])


# -- with and without the key ------------------------------------------------------------------------------------------


def test_a_lost_disk_with_the_old_key_is_restored_and_goes_on_provably(world: World) -> None:
    ana = world.site("ana")
    lost = world.lose("ana")
    said = ask("cmf-agent", *lost.words, "--key", ana.home.key_path, cwd=lost.folder)
    events = len(ana.events())
    told = {"logs": 1, "events": events, "left_at_hub": 0, "proven": True, "complete": True}
    assert said == {"home": str(lost.home.path), "made": True, "site": "ana", "restored": told}
    found = lost.found()
    assert_restored(found, ana)
    assert found.signer.public_key == ana.signer.public_key
    assert len(found.ask("log", "--limit", 1000)["items"]) == events + 1
    assert len(found.ask("query", "executions")["items"]) == 4
    assert found.ask("digest")["events"] == events + 1
    push_the_new_log(found)
    assert proven(world.hub, found) == [True]
    world.assert_agrees(found)


def test_without_the_old_key_the_new_log_makes_a_claim_and_a_hub_is_rebuilt_from_the_restored_site_alone(
    hub: Hub, tmp_path: Path
) -> None:
    world = World(hub, tmp_path)
    ana = world.site("ana")
    lost = world.lose("ana")
    done = lost.call()
    assert done.returncode == 0, done.stderr
    assert "brought back" in done.stdout
    assert "shown as a dispute" in done.stderr
    assert "copy of .cmf/keys" in done.stderr
    found = lost.found()
    assert_restored(found, ana)
    assert found.signer.public_key != ana.signer.public_key
    push_the_new_log(found)
    again = pushed(found)  # of the old key's logs too the hub says that it has them
    assert (again.sent, again.confirmed, again.warnings) == (0, 0, [])
    assert proven(hub, found) == [False]
    world.assert_agrees(found)
    assert hub.ask("verify")["ok"]
    before = hub.digest()
    hub.stop()
    for file in hub.folder.glob("store.db*"):
        file.unlink()
    hub.start()
    assert hub.events() == 0
    assert pushed(found).confirmed == len(found.events())
    assert hub.digest() == before


# -- several logs ------------------------------------------------------------------------------------------------------


def test_logs_that_went_on_from_each_other_come_back_in_their_order(world: World, tmp_path: Path) -> None:
    boris = world.site("boris")
    copy = copy_of(boris, tmp_path / "copy")
    copy.record(executions=2)
    pushed(copy)
    assert len(copy.status()["logs"]) == 2
    lost = world.lose("boris")
    done = lost.restore(boris.home.key_path)
    assert (done.logs, done.left, done.is_proven) == (2, 0, True)
    found = lost.found()
    assert_restored(found, copy)
    logs = found.status()["logs"]
    assert [log["log_id"] for log in logs[:2]] == [log["log_id"] for log in copy.status()["logs"]]
    assert [log["opened"] for log in logs] == sorted(log["opened"] for log in logs)
    assert [log["predecessor"] for log in logs] == [None, logs[0]["log_id"], logs[1]["log_id"]]
    push_the_new_log(found)
    assert proven(world.hub, found) == [True, True]
    world.assert_agrees(found)


def test_of_a_log_that_forked_the_latest_branch_comes_back_and_the_other_stays_at_the_hub(
    world: World, tmp_path: Path
) -> None:
    maria = world.site("maria")
    twin = twin_of(maria, tmp_path / "twin")
    maria.record(executions=1)
    pushed(maria)
    twin.record(executions=2)
    pushed(twin)
    lost = world.lose("maria")
    done = lost.call()
    assert "1 other branch of these logs" in done.stdout
    found = lost.found()
    assert_restored(found, twin)
    push_the_new_log(found)
    world.assert_agrees(found)
    assert pull(found.home, hub_in_force(found.home), [filter_of(sites=["maria"])], timeout_s=PUSH_LIMIT_S).complete
    with local_view(found.home) as graph:
        assert {event.event_id for site in (maria, found) for event in site.events()} <= set(graph.event_ids())


def test_bodies_that_the_hub_does_not_hold_stay_withheld(world: World, site: MakeSite, tmp_path: Path) -> None:
    barge = site("barge")
    add_site(world.hub.data, "barge", None, key=barge.signer.public_key)
    barge.run("screening", "train", outputs={"model.pkl": b"model"})
    barge.record(executions=2)
    barge.ask("bundle", "export", tmp_path / "barge.bundle", "-p", PIPELINE)
    world.hub.ask("import", tmp_path / "barge.bundle")
    lost = world.lose("barge")
    lost.restore(barge.home.key_path)
    found = lost.found()
    assert_restored(found, barge)
    held = [event.body is not None for event in found.events()]
    assert (held[0], all(held), sum(held) > 8) == (True, False, True)
    push_the_new_log(found)
    world.assert_agrees(found)


# -- cut in the middle -------------------------------------------------------------------------------------------------


def test_a_restore_that_is_killed_in_the_middle_leaves_nothing_to_record_in_and_goes_on_when_it_is_run_again(
    world: World,
) -> None:
    ferry = world.site("ferry")
    ferry.record(executions=1_000)
    pushed(ferry)
    total = len(ferry.events())
    lost = world.lose("ferry")
    with fault_proxy(world.hub.port) as proxy:
        proxy.shape(bytes_per_s=SLOW_BYTES_PER_S)
        words = [str(BIN / "cmf-agent"), *map(str, lost.words), "--hub", proxy.url]
        running = subprocess.Popen(words, cwd=lost.folder, env=environment(), stderr=subprocess.DEVNULL)
        until(lambda: lost.staged() > 1, "events to come back")
        running.kill()
        running.wait()
    held = lost.staged()
    assert 0 < held < total
    done = call("cmf-agent", "run", "-p", "p", "-s", "s", "--", "true", cwd=lost.folder)
    assert (done.returncode, "--restore" in done.stderr) == (0, True)
    for word in ("init", "status"):
        refused = call("cmf-agent", word, cwd=lost.folder)
        assert (refused.returncode != 0, "--restore" in refused.stderr) == (True, True)
    assert not lost.home.log_path.exists()
    assert lost.restore().events == total
    found = lost.found()
    assert_restored(found, ferry)
    push_the_new_log(found)
    world.assert_agrees(found)


def test_a_restore_that_failed_at_a_late_step_goes_on_from_there(world: World) -> None:
    brig = world.site("brig")
    lost = world.lose("brig")
    staging = staging_of(lost.home)
    for obstacle in (staging.place_path, lost.home.place_path):  # in the way of the successor, then of the end
        obstacle.mkdir(parents=True)
        with pytest.raises(StoreError):
            lost.restore()
        obstacle.rmdir()
        assert has_log(staging.log_path)
        assert not lost.home.log_path.exists()
    assert lost.restore().events == len(brig.events())
    found = lost.found()
    assert_restored(found, brig)
    staging.path.mkdir()  # what a kill leaves when all but cleaning up was done
    with pytest.raises(CallerError, match="holds a log already"):
        lost.restore()
    assert not staging.path.exists()
    push_the_new_log(found)
    world.assert_agrees(found)


# -- refused -----------------------------------------------------------------------------------------------------------


def test_what_was_altered_at_the_hub_is_refused_and_nothing_is_left_of_it(world: World) -> None:
    sloop = world.site("sloop")
    with closing(connect(world.hub.data.store)) as store:
        for number, data in store.execute("SELECT id, data FROM segments").fetchall():
            statement, signature, pairs = unpack_segment(data)
            if statement.key == sloop.signer.public_key:
                header, body = pairs[-1]
                altered = (*pairs[:-1], (header, (body or b"")[:-1] + b"!"))
                row = (encode_segment(statement, signature, altered), number)
                store.execute("UPDATE segments SET data = ? WHERE id = ?", row)
    lost = world.lose("sloop")
    done = lost.call("--key", sloop.home.key_path)
    assert (done.returncode, "answers wrongly" in done.stderr) == (IntegrityError.exit_code, True)
    assert not lost.home.log_path.exists()
    assert not staging_of(lost.home).path.exists()


def test_what_can_not_be_restored_says_why_and_how_to_go_on(world: World, site: MakeSite) -> None:
    silent = site("silent")
    world.hub.join(silent)
    lost = world.lose("silent")
    done = lost.call()
    assert (done.returncode, "holds nothing of silent" in done.stderr, "cmf-agent init --join" in done.stderr) == (
        1,
        True,
        True,
    )
    with pytest.raises(CallerError, match="is another key than"):
        lost.restore(silent.home.key_path)
    ask("cmf-agent", "init", "--join", lost.file, cwd=lost.folder)
    found = lost.found()
    push_the_new_log(found)
    refused = lost.call()
    assert (refused.returncode, "holds a log already" in refused.stderr) == (2, True)
    assert "new folder" in refused.stderr
    world.assert_agrees(found)


def test_a_restore_without_a_hub_goes_on_when_there_is_one(world: World) -> None:
    late = world.site("late")
    lost = world.lose("late")
    assert lost.call("--hub", "nats://127.0.0.1:1", "--timeout", "2").returncode == 4
    assert not lost.home.log_path.exists()
    assert lost.restore().events == len(late.events())
    assert_restored(lost.found(), late)


def test_options_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    for words in (["--restore"], ["--key", "signing.key"]):
        assert call("cmf-agent", "init", *words, cwd=tmp_path).returncode == 2
    assert not (tmp_path / ".cmf").exists()
