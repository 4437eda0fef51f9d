from typing import Any

from tests.support.logs import MadeLog
from tests.support.store import ANA, BORIS, NOW_US, Store
from tests.support.strategies import WALL_US

from cmf_graph.times import rfc3339
from cmf_hub.custody import Contact
from cmf_hub.sites import list_sites
from cmf_protocol import types as t

MINUTE_US = 60_000_000


def site(store: Store, name: str = "ana", predecessors: dict[bytes, bytes] | None = None) -> dict[str, Any]:
    (found,) = [item for item in list_sites(store.custody, store.registry, predecessors or {}) if item["name"] == name]
    return found


def branch(store: Store, name: str = "ana") -> dict[str, Any]:
    ((only,),) = [log["branches"] for log in site(store, name)["logs"]]
    assert isinstance(only, dict)
    return only


def test_a_site_that_never_joined_and_one_that_never_pushed(store: Store) -> None:
    store.registry.add("dora", login="U", key=None, now_us=NOW_US)
    assert (site(store, "dora")["state"], site(store)["state"]) == ("never joined", "never pushed")
    found = site(store)
    assert (found["logs"], found["events"], found["complete_until"], found["last_contact"]) == ([], 0, None, None)


def test_a_site_that_sent_everything_is_complete_until_its_last_event(store: Store) -> None:
    log = MadeLog(ANA).say(9)
    store.bring("ana", log.cut(1, 4), log.cut(5, 10))
    found = site(store)
    assert found["state"] == "complete"
    assert found["events"] == 10
    assert found["complete_until"] == rfc3339(log.events[-1].header.wall_us)
    assert found["last_contact"] == rfc3339(NOW_US)
    assert found["logs"] == [
        {
            "log_id": log.log_id.hex(), "predecessor": None, "forked": False, "gaps": [],
            "branches": [
                {"name": log.events[0].event_id.hex(), "confirmed": 10, "head": 10, "behind": 0, "gap": None,
                 "until": rfc3339(WALL_US + 9), "upstreams": []}
            ],
        }
    ]  # fmt: skip


def test_behind_counts_to_the_newest_head_that_was_signed_or_named(store: Store) -> None:
    log = MadeLog(ANA).say(9)
    store.bring("ana", log.cut(1, 4))
    assert (site(store)["state"], branch(store)["behind"], branch(store)["head"]) == ("6 behind", 6, 10)
    log.say(5)
    store.custody.contacts([Contact("ana", ANA.public_key, NOW_US + MINUTE_US, -1_500_000, [(log.log_id, *log.head)])])
    found = site(store)
    assert (branch(store)["behind"], found["last_contact"]) == (11, rfc3339(NOW_US + MINUTE_US))
    assert found["clock_ahead_seconds"] == -1.5
    assert found["complete_until"] == rfc3339(log.events[3].header.wall_us)


def test_nobody_names_a_head_for_the_log_of_another(store: Store) -> None:
    log = MadeLog(ANA).say(3)
    store.bring("ana", log.cut(1, 4))
    store.custody.contacts([Contact("boris", BORIS.public_key, NOW_US, 0, [(log.log_id, 99, b"x" * 32)])])
    assert branch(store)["behind"] == 0


def test_a_gap_is_named_until_it_is_filled(store: Store) -> None:
    log = MadeLog(ANA).say(9)
    store.bring("ana", log.cut(1, 4), log.cut(8, 10))
    assert site(store)["state"] == "gap"
    ids = [log.events[at].event_id.hex() for at in (3, 5, 7)]
    gap = {"first": 5, "last": 7, "before": ids[0], "after": ids[2], "accepted": False}
    command = f"cmf-agent gap accept {log.log_id.hex()} {ids[0]} {ids[2]} --key {ANA.public_key.hex()} --reason TEXT"
    assert branch(store)["gap"] == {**gap, "command": command}
    assert site(store)["logs"][0]["gaps"] == [branch(store)["gap"]]
    assert branch(store)["confirmed"] == 4
    store.bring("ana", log.cut(5, 6))
    assert branch(store)["gap"].items() >= {"first": 7, "last": 7, "before": ids[1], "after": ids[2]}.items()
    store.bring("ana", log.cut(7, 7))
    assert (site(store)["state"], branch(store)["gap"]) == ("complete", None)


def accept(store: Store, gap: dict[str, Any], log: MadeLog) -> None:
    """Let an operator accept a gap as it is shown."""
    store.registry.allow("boris", operator=True)
    ids = (bytes.fromhex(gap[end]) for end in ("before", "after"))
    store.take(MadeLog(BORIS).say(1, t.gap_accepted(ANA.public_key, log.log_id, *ids)).cut(1, 2))


def test_an_accepted_gap_stays_visible_as_lost_until_it_is_filled(store: Store) -> None:
    log = MadeLog(ANA).say(19)
    store.take(log.cut(1, 4), log.cut(8, 10), log.cut(15, 16))
    accept(store, branch(store)["gap"], log)
    found = site(store)
    (shown,) = found["logs"]
    lost, open_ = shown["gaps"]
    assert (lost["first"], lost["last"], lost["accepted"], "command" in lost) == (5, 7, True, False)
    assert (open_["first"], open_["last"], open_["accepted"]) == (11, 14, False)
    assert [each["confirmed"] for each in shown["branches"]] == [4, 10]
    assert [each["gap"] for each in shown["branches"]] == [None, open_]
    assert (found["state"], found["lost"], found["events"], shown["forked"]) == ("gap, 3 lost", 3, 7, False)
    accept(store, open_, log)
    store.take(log.cut(17, 20))
    found = site(store)
    assert (found["state"], found["lost"]) == ("complete, 7 lost", 7)
    assert [each["gap"]["accepted"] for each in found["logs"][0]["branches"][1:]] == [True, True]
    store.take(log.cut(4, 15))
    found = site(store)
    assert (found["state"], found["lost"], found["events"], found["logs"][0]["gaps"]) == ("complete", 0, 20, [])
    assert not found["logs"][0]["forked"]


def test_what_waits_beside_a_log_is_a_gap_too_from_its_root_on(store: Store) -> None:
    log = MadeLog(ANA).say(9)
    copy = log.fork(5).say(4)
    store.take(log.cut(1, 10), copy.cut(8, 9))
    (gap,) = site(store)["logs"][0]["gaps"]
    assert (gap["first"], gap["last"], gap["before"]) == (2, 7, log.events[0].event_id.hex())
    accept(store, gap, log)
    found = site(store)
    assert (found["state"], found["lost"]) == ("complete, 6 lost", 6)
    store.take(copy.cut(5, 7))
    found = site(store)
    assert (found["state"], found["lost"]) == ("fork", 0)


def test_a_fork_shows_each_branch_by_its_first_event_after_it(store: Store) -> None:
    log = MadeLog(ANA).say(7)
    copy = log.fork(5).say(2)
    store.take(log.cut(1, 8), copy.cut(6, 7))
    found = site(store)
    assert found["state"] == "fork"
    assert found["events"] == 10
    (shown,) = found["logs"]
    assert shown["forked"]
    assert {(each["name"], each["confirmed"]) for each in shown["branches"]} == {
        (log.events[5].event_id.hex(), 8),
        (copy.events[5].event_id.hex(), 7),
    }


def test_a_log_names_the_one_that_it_provably_succeeds(store: Store) -> None:
    first, second = MadeLog(ANA).say(2), MadeLog(ANA).say(1)
    store.take(first.cut(1, 3), second.cut(1, 2))
    found = site(store, predecessors={second.events[0].event_id: first.log_id})
    assert [log["predecessor"] for log in found["logs"]] == [None, first.log_id.hex()]
    assert (found["events"], found["complete_until"]) == (5, rfc3339(WALL_US + 2))


def test_two_roots_with_one_log_id_are_shown_at_the_site_of_their_key(store: Store) -> None:
    one, other = MadeLog(ANA, b"L" * 16).say(4), MadeLog(BORIS, b"L" * 16).say(6)
    store.take(one.cut(1, 5), other.cut(1, 7))
    assert (branch(store)["confirmed"], branch(store, "boris")["confirmed"]) == (5, 7)


def test_of_a_revoked_site_all_that_was_admitted_is_still_shown(store: Store) -> None:
    log = MadeLog(ANA).say(3)
    store.bring("ana", log.cut(1, 4))
    store.registry.revoke("ana", NOW_US)
    found = site(store)
    assert (found["state"], found["revoked"], found["events"]) == ("revoked", True, 4)


def test_a_log_of_which_the_beginning_is_missing_is_named(store: Store) -> None:
    log = MadeLog(ANA).say(9)
    store.bring("ana", log.cut(5, 10))
    found = site(store)
    assert (found["state"], found["events"], found["complete_until"]) == ("gap", 0, None)
    ((gap,),) = [each["gaps"] for each in found["logs"]]
    assert (gap["first"], gap["last"], gap["after"], gap["command"]) == (1, 4, log.events[4].event_id.hex(), None)
    store.bring("ana", log.cut(1, 4))
    assert site(store)["state"] == "complete"
