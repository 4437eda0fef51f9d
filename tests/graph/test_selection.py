"""Which events a filter lists: against a naive selection, over histories with all that may go wrong, and by hand."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.graph.test_projection_model import new_graph, projected
from tests.support.graphs import NOON_US, SECOND_US, World, md5, sha256
from tests.support.model import Fact, Model, as_node
from tests.support.strategies import ARTIFACTS, PIPELINES, SIGNERS, WALL_US, History, histories

from cmf_graph import selection
from cmf_graph.filtered import filtered_digest, placed_events, structure_of
from cmf_graph.graph import Graph, open_graph
from cmf_graph.membership import selected_among
from cmf_graph.projection import Projection
from cmf_graph.schema import KIND_CODES
from cmf_graph.selection import listed_events, select, stand
from cmf_protocol import types as t
from cmf_protocol.errors import CallerError
from cmf_protocol.events import Event
from cmf_protocol.filters import Filter, filter_of
from cmf_protocol.fold import is_node

SITES = {signer.public_key: name for signer, name in zip(SIGNERS, ("ana", "boris", "chen"), strict=True)}


# -- a naive selection -------------------------------------------------------------------------------------------------


class Naive:
    """What section 10 of the specification says, one rule after the other, over the model of the events."""

    def __init__(self, events: Iterable[Event], wanted: Filter, own: Iterable[bytes] = ()) -> None:
        self.model = Model(events)
        self.wanted = wanted
        self.own = set(own)

    def _starts(self) -> Iterator[tuple[bytes, Fact]]:
        for fact in self.model.facts.values():
            if fact.type == "execution.started":
                yield next(id_ for kind, id_ in fact.about if kind == "execution"), fact

    def executions(self) -> set[bytes]:
        wanted, found = self.wanted, set()
        for execution, fact in self._starts():
            stage = next(id_ for kind, id_ in fact.about if kind == "stage")
            site = SITES.get(self.model.key(self.model.root(fact.id)) or b"")
            at = fact.body.get("at", fact.event.wall_us)
            if wanted.pipelines and stage[0] not in wanted.pipelines:
                continue
            if wanted.sites and site not in wanted.sites:
                continue
            if wanted.since_us is None or at >= wanted.since_us:
                found.add(execution)
        return found

    def _usages(self, said_only: bool) -> Iterator[tuple[bytes, str, str]]:
        for fact in self.model.facts.values():
            if fact.type in ("artifact.used", "artifact.produced") and not (said_only and fact.id in self.model.unsaid):
                yield dict(fact.about)["execution"], fact.type.removeprefix("artifact."), dict(fact.about)["artifact"]

    def closure(self, artifact: str) -> set[tuple[str, Any]]:
        """Return what an artifact came from and what came of it; artifacts that are one are told apart in no history here."""
        found = set()
        for up in (True, False):
            seen: set[tuple[str, Any]] = {("artifact", artifact)}
            while True:
                more = set()
                for execution, how, used in self._usages(said_only=True):
                    ends = ("execution", execution), ("artifact", used)
                    source, target = ends if how == "produced" else ends[::-1]
                    if (target if up else source) in seen:
                        more.add(source if up else target)
                if more <= seen:
                    break
                seen |= more
            found |= seen
        return found

    def nodes(self) -> set[tuple[str, Any]]:
        wanted, found = self.wanted, set[tuple[str, Any]]()
        if wanted.pipelines or wanted.sites or wanted.since_us is not None or not wanted.artifacts:
            executions = self.executions()
            found |= {("execution", id_) for id_ in executions}
            found |= {
                ("artifact", id_) for execution, _, id_ in self._usages(said_only=False) if execution in executions
            }
        for artifact in wanted.artifacts:
            if ("artifact", artifact) in self.model.nodes():
                found |= self.closure(artifact)
        for fact in self.model.facts.values():
            if fact.type in ("execution.started", "execution.updated") and found & set(fact.about[-1:]):
                found |= {node for node in fact.about if node[0] != "execution"}
                found |= {("pipeline", id_[0]) for kind, id_ in fact.about if kind == "stage"}
        return found

    def events(self) -> set[bytes]:
        model = self.model
        if self.wanted.own:
            return {id_ for id_ in model.stored if model.key(model.root(id_)) in self.own}
        nodes, found = self.nodes(), set()
        for id_, event in model.stored.items():
            about = [as_node(entry) for entry in event.about if is_node(as_node(entry))]
            if {"execution", "stage"} <= {kind for kind, _ in about}:
                about = [node for node in about if node[0] == "execution"]
            if nodes & set(about):
                found.add(id_)
        while True:
            roots = {model.root(id_) for id_ in found}
            more = roots | {model.successions[root] for root in roots if root in model.successions}
            if more <= found:
                return found
            found |= more


def listed_ids(graph: Graph, wanted: Filter, own: Sequence[bytes] = ()) -> set[bytes]:
    """Return the ids of the events that the graph lists."""
    listed = listed_events(graph, wanted, SITES, own)
    found = set()
    for branch, sequence, event_id in graph.rows("SELECT branch, sequence, substr(data, 1, 32) FROM events"):
        if any(first <= sequence <= last for first, last in listed.get(branch, ())):
            found.add(event_id)
    assert len(found) == sum(last - first + 1 for ranges in listed.values() for first, last in ranges)
    return found


def _some(values: Sequence[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), max_size=2, unique=True)


filters = st.builds(
    filter_of,
    pipelines=_some(PIPELINES),
    sites=_some(("ana", "boris", "nobody")),
    since_us=st.sampled_from((None, None, WALL_US, WALL_US + 1, 0, 2**62)),
    artifacts=_some(tuple(each for each in ARTIFACTS if each.startswith("md5:"))),
)


@settings(max_examples=40)
@given(histories(min_size=4, max_size=40), st.lists(filters, min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_a_filter_lists_what_the_rules_say(history: History, wanted: list[Filter], chance: random.Random) -> None:
    events = without_aliases(history.events)
    with projected(events, chance) as graph:
        for each in wanted:
            naive = Naive(events, each)
            found = {graph.node(number) for number in select(graph, each, SITES)}
            assert found == naive.nodes()
            assert listed_ids(graph, each) == naive.events()
        own = [SIGNERS[0].public_key, SIGNERS[1].public_key]
        assert listed_ids(graph, filter_of(own=True), own) == Naive(events, filter_of(own=True), own).events()


@settings(max_examples=30)
@given(histories(min_size=8, max_size=40), filters, st.randoms(use_true_random=False))
def test_what_is_new_is_added_to_what_stood(history: History, wanted: Filter, chance: random.Random) -> None:
    wanted = wanted._replace(artifacts=())
    with new_graph() as path:
        projection = Projection(path)
        late = {event.event_id: event for event in history.events if event.body and not chance.randrange(10)}
        events = [event._replace(body=None) if event.event_id in late else event for event in history.events]
        standing = None
        while events or late:
            projection.apply(events[:6] or late.values())
            late, events = late if events else {}, events[6:]
            standing = stand(projection.graph, wanted, SITES, standing)
            again = stand(projection.graph, wanted, SITES)
            assert (standing.ranges, standing.executions, standing.others) == (
                again.ranges, again.executions, again.others
            )  # fmt: skip
        projection.close()


@settings(max_examples=40)
@given(histories(min_size=4, max_size=40), filters, st.randoms(use_true_random=False), st.data())
def test_a_few_nodes_are_selected_if_they_are_among_all_that_are(
    history: History, wanted: Filter, chance: random.Random, data: st.DataObject
) -> None:
    with projected(history.events, chance) as graph:
        selected = select(graph, wanted, SITES)
        kinds = (KIND_CODES["execution"], KIND_CODES["artifact"])
        near = [id_ for id_, kind in graph.rows("SELECT id, kind FROM nodes ORDER BY id") if kind in kinds]
        assert selected_among(graph, wanted, SITES, near) == selected & set(near)
        some = data.draw(
            st.sets(st.sampled_from([id_ for (id_,) in graph.rows("SELECT id FROM nodes ORDER BY id")]), max_size=5)
        )
        assert selected_among(graph, wanted, SITES, some) == selected & some


def without_aliases(events: Sequence[Event]) -> list[Event]:
    """Return the events; those that join artifacts lose their bodies: which artifacts are one is tested by hand."""
    return [event._replace(body=None) if b"digests" in (event.body or b"") else event for event in events]


@settings(max_examples=25)
@given(histories(min_size=4, max_size=40), filters, st.randoms(use_true_random=False))
def test_the_digest_of_a_filter_is_that_of_the_listed_events(
    history: History, wanted: Filter, chance: random.Random
) -> None:
    events = without_aliases(history.events)
    with projected(events, chance) as graph:
        listed = Naive(events, wanted).events()
        found = filtered_digest(graph, wanted, SITES)
        assert (found.events, found.unfolded) == (
            len(listed),
            sum(1 for id_ in listed if id_ not in graph_facts(events)),
        )


def graph_facts(events: Sequence[Event]) -> set[bytes]:
    return set(Model(events).facts)


# -- by hand -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def lab(world: World) -> Mapping[str, Any]:
    """Two sites: ana makes a model in `train`, boris uses it in `serve` and does something else beside."""
    ana, boris = world.site("ana"), world.site("boris")
    trained = ana.run("train", "fit", uses={"d.csv": md5("data")}, makes={"m.pkl": md5("model")})
    served = boris.run("serve", "run", uses={"m.pkl": md5("model")}, makes={"out": md5("out")})
    other = boris.run("other", "fit", makes={"x": md5("x")})
    return {"ana": ana, "boris": boris, "trained": trained, "served": served, "other": other, "world": world}


def nodes_of(lab: Mapping[str, Any], **wanted: Any) -> set[Any]:
    graph = lab["world"].graph()
    return {graph.node(number)[1] for number in select(graph, filter_of(**wanted), lab["world"].sites)}


def test_pipelines_sites_and_time_are_asked_of_one_start(lab: Mapping[str, Any]) -> None:
    assert nodes_of(lab, pipelines=["train"]) == {lab["trained"], md5("data"), md5("model"), "train", ("train", "fit")}
    assert nodes_of(lab, sites=["boris"], pipelines=["train"]) == set()
    assert nodes_of(lab, sites=["boris"], pipelines=["other", "train"]) == {
        lab["other"], md5("x"), "other", ("other", "fit")
    }  # fmt: skip
    assert nodes_of(lab, since_us=lab["world"].now_us) == nodes_of(lab, pipelines=["other"])
    assert len(nodes_of(lab)) == 3 + 4 + 3 + 3


def test_the_lineage_of_an_artifact_is_followed_both_ways(lab: Mapping[str, Any]) -> None:
    found = nodes_of(lab, artifacts=[md5("model")])
    assert found >= {lab["trained"], lab["served"], md5("data"), md5("out"), ("train", "fit"), "serve"}
    assert lab["other"] not in found
    assert nodes_of(lab, artifacts=[md5("never seen")]) == set()
    # what else the execution that used it made is not of it, but a pipeline brings all of its executions' artifacts
    lab["boris"].run("serve", "run", uses=[md5("data"), md5("y")], makes=[md5("z")])
    assert md5("y") not in nodes_of(lab, artifacts=[md5("model")])
    assert md5("z") in nodes_of(lab, pipelines=["serve"])


def test_artifacts_that_are_one_are_one_lineage(lab: Mapping[str, Any]) -> None:
    run = lab["boris"].run("import", "in", uses=[sha256("model")])
    assert run not in nodes_of(lab, artifacts=[md5("model")])
    lab["ana"].record(t.usage(t.ARTIFACT_USED, lab["trained"], md5("model"), digests=[sha256("model")]))
    for each in (md5("model"), sha256("model")):
        assert nodes_of(lab, artifacts=[each]) >= {run, lab["trained"], sha256("model"), md5("model")}


def test_a_lineage_beyond_the_bound_is_refused_by_name(lab: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "CLOSURE_NODES_MAX", 3)
    with pytest.raises(CallerError, match="3 nodes"):
        nodes_of(lab, artifacts=[md5("model")])


def test_a_start_of_another_execution_in_a_selected_stage_is_not_listed(lab: Mapping[str, Any]) -> None:
    world, ana, boris = lab["world"], lab["ana"], lab["boris"]
    foreign = boris.run("train", "fit", makes=[md5("foreign")])
    (start,) = [
        e for e in boris.events if e.header.type == t.EXECUTION_STARTED and ("execution", foreign) in e.header.about
    ]
    (retraction,) = boris.record(t.retracted(start.header.about, "wrong", event=start.event_id))
    (tag,) = boris.record(t.tag_added(("stage", ("train", "fit")), "good"))
    listed = world_ids(world, filter_of(sites=["ana"]))
    assert tag.event_id in listed
    assert not {start.event_id, retraction.event_id} & listed
    assert {start.event_id, retraction.event_id} <= world_ids(world, filter_of(pipelines=["train"]))
    assert {event.event_id for event in ana.events} <= listed


def world_ids(world: World, wanted: Filter) -> set[bytes]:
    graph = world.graph()
    listed = listed_events(graph, wanted, world.sites)
    rows = graph.rows("SELECT branch, sequence, substr(data, 1, 32) FROM events")
    return {id_ for branch, at, id_ in rows if any(a <= at <= b for a, b in listed.get(branch, ()))}


def test_what_was_selected_stays_so_when_it_is_retracted_or_started_again_elsewhere(lab: Mapping[str, Any]) -> None:
    before = nodes_of(lab, pipelines=["train"])
    ana = lab["ana"]
    for event in [e for e in ana.events if ("execution", lab["trained"]) in e.header.about]:
        ana.record(t.retracted(event.header.about, "wrong", event=event.event_id))
    ana.record(t.execution_started(lab["trained"], "elsewhere", "fit"))
    assert nodes_of(lab, pipelines=["train"]) >= before


def test_the_time_of_a_start_is_what_it_says(lab: Mapping[str, Any]) -> None:
    early, late = lab["world"].new_execution(), lab["world"].new_execution()
    lab["ana"].record(t.execution_started(early, "p", "s", at=NOON_US - SECOND_US))
    lab["ana"].record(t.execution_started(late, "p", "s", at=NOON_US + 10**9))
    assert late in nodes_of(lab, since_us=NOON_US + 10**9)
    assert early not in nodes_of(lab, since_us=NOON_US)


@contextmanager
def pulled(graph: Graph, wanted: Filter, sites: Mapping[bytes, str]) -> Iterator[Graph]:
    """Give the graph of the listed events alone, as who has pulled them has it."""
    listed = listed_events(graph, wanted, sites)
    names, structure = structure_of(graph)
    with TemporaryDirectory() as folder:
        projection = Projection(Path(folder) / "view.db")
        projection.apply_placed(structure, placed_events(graph, listed, names))
        projection.close()
        view = open_graph(Path(folder) / "view.db")
        yield view
        view.connection.close()


@pytest.mark.parametrize(
    "wanted",
    [filter_of(pipelines=["train"]), filter_of(sites=["boris"]), filter_of(artifacts=[md5("model")]), filter_of()],
)
def test_over_what_it_lists_a_filter_lists_all_and_gives_the_same_digest(
    lab: Mapping[str, Any], wanted: Filter
) -> None:
    world = lab["world"]
    fork = lab["ana"].fork()
    fork.run("train", "fit", uses=[md5("data")], makes=[md5("second")])
    lab["ana"].run("train", "eval", uses=[md5("model")], status="failed")
    graph = world.graph()
    with pulled(graph, wanted, world.sites) as view:
        whole = filtered_digest(graph, wanted, world.sites)
        assert whole.events > 8
        assert view.digest() == whole
        assert filtered_digest(view, wanted, world.sites) == whole
        assert (whole == graph.digest()) is (wanted == filter_of())


@pytest.mark.deep
@settings(max_examples=300)
@given(histories(min_size=30, max_size=70), filters, st.randoms(use_true_random=False))
def test_long_histories_list_what_the_rules_say(history: History, wanted: Filter, chance: random.Random) -> None:
    events = without_aliases(history.events)
    with projected(events, chance) as graph:
        assert listed_ids(graph, wanted) == Naive(events, wanted).events()
