"""The events that benchmarks use: executions of a small pipeline, about seven events each, as capture records them."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from cmf_protocol import types as t
from cmf_protocol.events import Draft, Event, Head, make_events
from cmf_protocol.segments import cut, encode_segment, sign_segment, statement_of
from cmf_protocol.signing import Signer

_FACTS: dict[str, Any] = {
    "kind": "step", "host": "edge-7", "user": "ana", "git_commit": "7c1f0a52be39d1c0f6a5a4b8f2c7d3e9a1b2c3d4",
    "git_branch": "main", "git_dirty": False, "git_repo": "https://git.example.org/clinic/screening.git",
    "command": ["python", "train.py", "--fold", "3"],
}  # fmt: skip


def drafts() -> Iterator[Draft]:
    """Yield drafts of one execution after the other, each using what the one before produced."""
    before = None
    number = 0
    while True:
        number += 1
        execution = os.urandom(16)
        made = f"md5:{os.urandom(16).hex()}"
        params = {"lr": 0.1 / number, "epochs": 5, "seed": number}
        yield t.execution_started(execution, "screening", f"stage-{number % 3}", facts=_FACTS, params=params)
        if before is not None:
            facts: dict[str, Any] = {"size": 1000 + number}
            yield t.usage(t.ARTIFACT_USED, execution, before, name=f"data/part-{number}.csv", facts=facts)
        for epoch in range(3):
            yield t.metrics_recorded(execution, metrics={"loss": 1 / (number + epoch), "accuracy": 0.9})
        made_facts = {"size": 1000 + number, "kind": "model"}
        digests = [f"sha256:{os.urandom(32).hex()}"]
        yield t.usage(
            t.ARTIFACT_PRODUCED, execution, made, name=f"out/model-{number}.pkl", digests=digests, facts=made_facts
        )
        yield t.execution_finished(execution, "finished", exit_code=0)
        before = made


def some_drafts(count: int) -> list[Draft]:
    """Return so many drafts."""
    return list(islice(drafts(), count))


def a_log(count: int, signer: Signer) -> list[Event]:
    """Return the events of a new log, its opening first."""
    opened = [t.log_opened(signer.public_key, agent="bench"), *some_drafts(count - 1)]
    return make_events(Head(os.urandom(16), 0, None, None), opened, os.urandom(16 * count), 1_790_000_000_000_000)


def segments_of(events: list[Event], signer: Signer) -> list[bytes]:
    """Return the segments of a log, signed."""
    made = []
    for start, stop in cut([event.size for event in events]):
        part = events[start:stop]
        statement = statement_of(part, events[-1], signer.public_key)
        pairs = [(event.header_bytes, event.body) for event in part]
        made.append(encode_segment(statement, sign_segment(statement, signer), pairs))
    return made


def new_file(folder: Path, name: str) -> Path:
    """Return the path of a database that does not exist yet."""
    for old in folder.glob(f"{name}*"):
        old.unlink()
    return folder / name
