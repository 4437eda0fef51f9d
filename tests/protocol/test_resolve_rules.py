"""The rules of section 8, one example each, written down by hand: what both the model and the code must say."""

import random
from typing import Any

import pytest
from tests.support.branches import graph_of
from tests.support.model import Model, first_difference
from tests.support.strategies import SIGNERS, WALL_US, make_event

from cmf_protocol import types as t
from cmf_protocol.events import Draft, Event, Node
from cmf_protocol.resolve import NodeState
from cmf_protocol.signing import sign_succession

E = b"e" * 16
EXECUTION: Node = ("execution", E)
ARTIFACT: Node = ("artifact", "md5:1")
STARTED = t.execution_started(E, "p", "s")


class Story:
    """Events of several logs, added one by one."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def log(self, number: int = 0, **succeeds: Any) -> Event:
        draft = t.log_opened(SIGNERS[number].public_key, agent="", **succeeds)
        return self._add(make_event(None, draft, salt=len(self.events), log_id=bytes([number]) * 16))

    def say(self, after: Event, draft: Draft, later_us: int = 0, **odd: Any) -> Event:
        return self._add(make_event(after, draft, salt=len(self.events), wall_us=WALL_US + later_us, **odd))

    def succeed(self, after: Event, old: int, new: int, proven: bool = True) -> Event:
        place = (after.header.log_id, after.header.sequence, after.event_id)
        new_log: dict[str, Any] = {"new_log_id": bytes([new]) * 16, "new_key": SIGNERS[new].public_key}
        succession = sign_succession(SIGNERS[old], *place, "moved", **new_log)
        return self.log(new, succeeds=(succession if proven else succession._replace(signature=None)).body())

    def _add(self, event: Event) -> Event:
        self.events.append(event)
        return event

    def state(self, node: Node = EXECUTION) -> NodeState:
        model = Model(self.events)
        for seed in range(12):  # other numberings of branches, other orders of statements
            assert first_difference(model, graph_of(self.events, random.Random(seed).randrange).rows()) is None
        return graph_of(self.events).state(node)

    def lr(self) -> tuple[set[Any], Any]:
        """Return the candidates of the parameter `lr`, and the one shown."""
        resolved = self.state().values["params", "lr"]
        return {candidate.value for candidate in resolved.candidates}, resolved.shown.value

    def statuses(self) -> list[str]:
        return [status.status for status in self.state().statuses]


def params(value: Any) -> Draft:
    return t.execution_updated(E, params={"lr": value})


def finished(status: str) -> Draft:
    return t.execution_finished(E, status)


def test_a_later_value_supersedes_though_its_clock_is_lower() -> None:
    story = Story()
    first = story.say(story.log(), params(1), later_us=9_000_000_000)
    story.say(first, params(2), later_us=0)
    assert story.lr() == ({2}, 2)


def test_values_of_two_branches_are_a_conflict_and_the_highest_clock_is_shown() -> None:
    story = Story()
    base = story.say(story.log(), params(0))
    story.say(base, params(1), later_us=5_000_000)
    story.say(base, params(2), later_us=1_000_000)
    assert story.lr() == ({1, 2}, 1)


def test_a_value_said_before_the_fork_is_superseded_by_either_branch() -> None:
    story = Story()
    base = story.say(story.log(), params(0), later_us=9_000_000_000)
    story.say(base, params(1))
    story.say(base, t.note_added(EXECUTION, "nothing of it"))
    assert story.lr() == ({1}, 1)


def test_equal_values_are_one_and_no_conflict() -> None:
    story = Story()
    for number in (0, 1):
        story.say(story.log(number), params(float("nan")))
    resolved = story.state().values["params", "lr"]
    assert not resolved.conflict


def test_of_equal_values_the_highest_event_speaks_for_all() -> None:
    story = Story()
    for number, value in enumerate((1, 2, 1)):
        story.say(story.log(number), params(value), later_us=number * 1_000_000)
    assert story.lr() == ({1, 2}, 1)


def test_of_two_successors_the_one_that_goes_on_after_a_value_supersedes_it() -> None:
    story = Story()
    base = story.log()
    last = story.say(base, params(0), later_us=9_000_000_000)
    story.say(story.succeed(base, 0, 1), params(1))
    story.say(story.succeed(last, 0, 2), params(2))
    assert story.lr()[0] == {1, 2}


def test_one_and_one_point_nought_and_true_are_three_values() -> None:
    story = Story()
    for number, value in enumerate((1, 1.0, True)):
        story.say(story.log(number), params(value))
    assert len(story.state().values["params", "lr"].candidates) == 3


@pytest.mark.parametrize(("proven", "candidates"), [(True, {2}), (False, {1, 2})])
def test_a_successor_supersedes_only_where_it_is_proven(proven: bool, candidates: set[int]) -> None:
    story = Story()
    first = story.say(story.log(), params(1))
    story.say(story.succeed(first, 0, 1, proven), params(2))
    assert story.lr()[0] == candidates


def test_what_the_predecessor_says_beyond_the_succession_is_not_superseded() -> None:
    story = Story()
    first = story.say(story.log(), params(1))
    story.say(first, params(3))
    story.say(story.succeed(first, 0, 1), params(2))
    assert story.lr()[0] == {2, 3}


def test_the_root_of_a_proven_successor_proves_nothing_while_its_body_is_withheld() -> None:
    story = Story()
    first = story.say(story.log(), params(1))
    root = story.succeed(first, 0, 1)
    story.say(root, params(2))
    story.events[2] = root._replace(body=None)
    assert story.lr()[0] == {1, 2}


def test_a_retry_in_one_chain_finishes_what_had_failed() -> None:
    story = Story()
    at = story.say(story.log(), STARTED)
    at = story.say(at, finished("failed"))
    story.say(at, finished("finished"))
    assert story.statuses() == ["finished"]


def test_between_branches_of_a_fork_the_worse_end_holds() -> None:
    story = Story()
    base = story.say(story.log(), STARTED)
    story.say(base, finished("finished"), later_us=9_000_000)
    story.say(base, finished("interrupted"))
    assert story.statuses() == ["interrupted"]


def test_between_unrelated_logs_different_ends_are_a_conflict() -> None:
    story = Story()
    for number, status in enumerate(("failed", "finished")):
        story.say(story.say(story.log(number), STARTED), finished(status), later_us=number * 1_000_000)
    assert story.statuses() == ["finished", "failed"]


def test_an_end_told_by_a_log_that_did_not_start_it_counts_only_from_a_proven_successor() -> None:
    for proven in (True, False):
        story = Story()
        base = story.say(story.log(), STARTED)
        story.say(story.succeed(base, 0, 1, proven), finished("failed"))
        assert story.statuses() == (["failed"] if proven else ["running"])


def test_a_tag_that_was_added_again_elsewhere_survives_a_removal_that_did_not_see_it() -> None:
    story = Story()
    one = story.say(story.log(0), t.tag_added(ARTIFACT, "best"))
    story.say(story.log(1), t.tag_added(ARTIFACT, "best"))
    gone = story.say(one, t.tag_removed(ARTIFACT, "best", [one.event_id]))
    assert story.state(ARTIFACT).tags == ["best"]
    gone = story.say(gone, t.tag_removed(ARTIFACT, "worst", [event.event_id for event in story.events]))
    assert story.state(ARTIFACT).tags == ["best"]
    every = [event.event_id for event in story.events if event.header.type == t.TAG_ADDED]
    story.say(gone, t.tag_removed(ARTIFACT, "best", every))
    assert story.state(ARTIFACT).tags == []


@pytest.mark.parametrize("over", ["same chain", "succession", "other log", "other branch", "claim"])
def test_a_retraction_unsays_only_what_its_own_chain_said(over: str) -> None:
    story = Story()
    base = story.log()
    said = story.say(base, params(1))
    after = {
        "same chain": lambda: said,
        "succession": lambda: story.succeed(said, 0, 1),
        "claim": lambda: story.succeed(said, 0, 1, proven=False),
        "other log": lambda: story.log(1),
        "other branch": lambda: base,
    }[over]()
    retraction = story.say(after, t.retracted(said.header.about, "wrong", event=said.event_id))
    own = over in ("same chain", "succession")
    assert (("params", "lr") in story.state().values) is not own
    assert [(d.by.event_id, d.target) for d in story.state().disputes] == (
        [] if own else [(retraction.event_id, said.event_id)]
    )
    story.say(retraction, t.unretracted(retraction.header.about, retraction.event_id))
    assert ("params", "lr") in story.state().values
    assert story.state().disputes == []


def test_a_withdrawal_by_another_log_has_no_effect() -> None:
    story = Story()
    said = story.say(story.log(), params(1))
    retraction = story.say(said, t.retracted(said.header.about, "wrong", event=said.event_id))
    story.say(story.log(1), t.unretracted(said.header.about, retraction.event_id))
    assert ("params", "lr") not in story.state().values


def test_a_retraction_with_another_about_is_a_dispute_where_it_stands() -> None:
    story = Story()
    said = story.say(story.log(), t.usage(t.ARTIFACT_USED, E, "md5:1", name="a.csv"))
    story.say(said, t.retracted((ARTIFACT,), "wrong", event=said.event_id))
    assert story.state(ARTIFACT).names == ["a.csv"]
    assert len(story.state(ARTIFACT).disputes) == 1
    assert story.state().disputes == []


def test_a_log_that_was_opened_and_a_retraction_can_not_be_unsaid() -> None:
    story = Story()
    root = story.log()
    said = story.say(root, params(1))
    retraction = story.say(said, t.retracted(said.header.about, "wrong", event=said.event_id))
    again = story.say(retraction, t.retracted(said.header.about, "no", event=retraction.event_id))
    story.say(again, t.retracted(root.header.about, "no", event=root.event_id))
    assert ("params", "lr") not in story.state().values
    assert [d.text for d in story.state().disputes] == ["no"]
    assert [d.text for d in story.state(root.header.about[0]).disputes] == ["no"]


def test_keys_that_a_type_does_not_know_say_nothing_whatever_they_hold() -> None:
    story = Story()
    odd = {
        "name": 5,
        "params": 5,
        "exit_code": "x",
        "error": 7,
        "digests": 1,
        "metrics": 0,
        "steps": "s",
        "text": (),
        "adds": 1,
    }
    at = story.say(story.log(), STARTED._replace(body={**odd, "params": {}}))
    environment = t.execution_updated(E, environment="md5:1")
    at = story.say(at, environment._replace(body={**odd, "params": {"lr": 1}}))
    used = t.usage(t.ARTIFACT_USED, E, "md5:1")
    at = story.say(at, used._replace(body={**odd, "name": "n", "digests": ()}))
    for draft in (
        finished("failed"),
        t.note_added(EXECUTION, "x"),
        t.tag_added(ARTIFACT, "x"),
        t.environment_recorded("md5:1", {}),
    ):
        own = {key: value for key, value in draft.body.items() if key != "digests"}
        at = story.say(
            at,
            draft._replace(
                body={key: value for key, value in odd.items() if key not in ("exit_code", "error", "digests")} | own
            ),
        )
    assert story.state().statuses[0].exit_code is None
    assert story.state(ARTIFACT).names == ["n"]
    assert story.state(ARTIFACT).space("params") == {}
    assert graph_of(story.events).unfolded == 0


def test_what_about_names_stands_before_a_fact_of_the_same_event() -> None:
    story = Story()
    draft = t.execution_updated(E, environment="md5:1", facts={"environment": "mine", "stage": "kept"})
    story.say(story.log(), draft)
    assert story.state().space("facts") == {"environment": "md5:1", "stage": "kept"}


def test_a_step_that_stands_twice_counts_as_its_last_place_says() -> None:
    story = Story()
    blocks = [("loss", "", (1, 2, 1), (0.1, 0.2, 0.3), (0, 0, 0)), ("loss", "", (2,), (0.4,), (0,))]
    before = story.say(
        story.log(), t.metrics_recorded(E, steps=[("loss", "", (1, 3), (0.8, 0.9), (0, 0))]), later_us=5_000_000
    )
    story.say(before, t.metrics_recorded(E, steps=blocks))
    steps = graph_of(story.events).state(EXECUTION).steps(graph_of(story.events).chains)["loss", ""]
    assert {step: resolved.shown.value for step, resolved in steps.items()} == {1: 0.3, 2: 0.4, 3: 0.9}
    story.state()
