"""What an event says, read from its header and body (protocol/README.md, section 3). Pure.

Rules
- `read` returns the body's map of an event that this version folds, and an `Unfolded` with the reason for any other; it never raises.
- Every check is one row of the tables below; unknown keys of a body are nobody's business.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple

import msgpack

from cmf_protocol import types as t
from cmf_protocol.clock import clock_holds
from cmf_protocol.encoding import USUAL_KEY_CHARS, USUAL_KEYS, Value, encode, is_canonical, unpack
from cmf_protocol.errors import DecodeError
from cmf_protocol.events import ENVELOPE_VERSION, SALT_BYTES, Header, Node, decode_body
from cmf_protocol.signing import Succession

#: Changes whenever the same events give another graph; projections of another version are rebuilt.
FOLD_VERSION = 1
#: Hexadecimal digits of a SHA-256 by which a location is named.
LOCATION_KEY_CHARS = 32
#: A block of a table is named by its first row in so many digits, so that names sort as rows do.
ROW_DIGITS = 19
#: The reason of an event that waits for its body.
WITHHELD = "withheld body"


class Unfolded(NamedTuple):
    """Why an event has no effect (yet)."""

    reason: str


def read(header: Header, body: bytes | None) -> dict[str, Value] | Unfolded:
    """Return what the body says, or why this event can't be folded by this version."""
    return read_many([(header, body)])[0]


def read_many(events: Iterable[tuple[Header, bytes | None]]) -> list[dict[str, Value] | Unfolded]:
    """Return what `read` says of each event; the bodies are packed again together, which costs half of packing each."""
    packer = msgpack.Packer(autoreset=False)
    packed: list[bytes] = []
    found: list[dict[str, Value] | Unfolded] = []
    events = list(events)
    for header, body in events:
        said = _read(header, body)
        if isinstance(said, Unfolded):
            found.append(said)
        else:
            packer.pack(said)
            packed.append(body or b"")
            found.append(said[1])
    if packer.bytes() == b"".join(packed):
        return found
    return [
        values if type(values) is Unfolded else _packed_alike(body, values)
        for (_, body), values in zip(events, found, strict=True)
    ]


def _packed_alike(body: bytes | None, values: dict[str, Value] | Unfolded) -> dict[str, Value] | Unfolded:
    """Look at one body alone: somewhere among its neighbours something is not canonical."""
    try:
        decode_body(body or b"")
    except DecodeError as error:
        return Unfolded(f"malformed body: {error}")
    return values


def _read(header: Header, body: bytes | None) -> tuple[bytes, dict[str, Value]] | Unfolded:
    """Return salt and map of a body in which nothing is wrong but, maybe, how it is packed."""
    version, type_, type_version, _, _, _, clock, wall_us, about, _ = header
    shape = _SHAPES.get(type_)
    if shape is None or type_version != 1 or version != ENVELOPE_VERSION:
        return Unfolded(f"unknown type {type_} {type_version} in envelope version {version}")
    if body is None:
        return Unfolded(WITHHELD)
    if not clock_holds(clock, wall_us):
        return Unfolded("odd clock")
    if not shape.about(about):
        return Unfolded(f"{type_} about the wrong nodes")
    try:
        said = unpack(body)
    except DecodeError as error:
        return Unfolded(f"malformed body: {error}")
    if not (type(said) is tuple and len(said) == 2 and type(said[0]) is bytes and type(said[1]) is dict):
        return Unfolded("malformed body: it is not a salt and a map")
    if len(said[0]) != SALT_BYTES or not is_canonical(said[1], 1):
        return Unfolded("malformed body: it is not canonical")
    values = said[1]
    keys = tuple(values)
    plan = (_usual_plan if len(keys) <= USUAL_KEYS and len("".join(keys)) <= USUAL_KEY_CHARS else _plan)(type_, keys)
    if isinstance(plan, str):
        return Unfolded(plan)
    for check, value in zip(plan, values.values(), strict=True):
        if check is not None and not check(value):
            return Unfolded(f"malformed body of {type_}")
    if shape.target and shape.target not in values and len(about) != 1:
        return Unfolded(f"{type_} of no event about several nodes")
    if shape.part and all(values[shape.part] != id_ for _, id_ in about):
        return Unfolded(f"{type_} of an artifact that it is not about")
    return said


def _plan(type_: str, keys: tuple[str, ...]) -> "tuple[Callable[[Value], bool] | None, ...] | str":
    """Return the check of each key of a body, or what is wrong with the keys."""
    shape = _SHAPES[type_]
    missing = [key for key in shape.required if key not in keys]
    if missing:
        return f"malformed body: {missing[0]} is missing"
    return tuple(shape.checks.get(key) for key in keys)


#: Bodies are alike; only small ones are remembered, since hostile ones come too.
_usual_plan = lru_cache(maxsize=4096)(_plan)


# -- nodes -----------------------------------------------------------------------------------------------------------


def _is_key(id_: object) -> bool:
    return type(id_) is bytes and len(id_) == 32


def _is_execution(id_: object) -> bool:
    return type(id_) is bytes and len(id_) == t.EXECUTION_BYTES


def _is_stage(id_: object) -> bool:
    return type(id_) is tuple and len(id_) == 2 and t.is_name(id_[0]) and t.is_name(id_[1])


_IDS: dict[str, Callable[[object], bool]] = {
    "key": _is_key,
    "pipeline": t.is_name,
    "stage": _is_stage,
    "execution": _is_execution,
    "artifact": t.is_content_id,
}


def is_node(node: Node) -> bool:
    """Tell if a node is of a kind that this version knows, with an id of that kind's form."""
    check = _IDS.get(node[0])
    return check is not None and check(node[1])


def _one(kind: str) -> Callable[[tuple[Node, ...]], bool]:
    check = _IDS[kind]
    return lambda about: len(about) == 1 and about[0][0] == kind and check(about[0][1])


def _usage(about: tuple[Node, ...]) -> bool:
    if len(about) != 2:
        return False
    (first, artifact), (second, execution) = about
    return first == "artifact" and second == "execution" and t.is_content_id(artifact) and _is_execution(execution)


def _kinds(about: tuple[Node, ...]) -> list[str]:
    return sorted(kind for kind, _ in about if kind != "artifact")


def _started(about: tuple[Node, ...]) -> bool:
    return _nodes(about) and len(about) <= 3 and _kinds(about) == ["execution", "stage"]


def _updated(about: tuple[Node, ...]) -> bool:
    return _nodes(about) and len(about) <= 2 and _kinds(about) == ["execution"]


def _two_artifacts(about: tuple[Node, ...]) -> bool:
    return len(about) == 2 and all(kind == "artifact" and t.is_content_id(id_) for kind, id_ in about)


def _nodes(about: tuple[Node, ...]) -> bool:
    return all(is_node(node) for node in about)


def _any_one(about: tuple[Node, ...]) -> bool:
    return len(about) == 1 and is_node(about[0])


# -- bodies ----------------------------------------------------------------------------------------------------------


def _is_map(value: Value) -> bool:
    return type(value) is dict


def _is_text(value: Value) -> bool:
    return type(value) is str


def _is_integer(value: Value) -> bool:
    return type(value) is int


def _is_bin32(value: Value) -> bool:
    return type(value) is bytes and len(value) == 32


def _is_bin16(value: Value) -> bool:
    return type(value) is bytes and len(value) == 16


def _is_ids(value: Value) -> bool:
    return type(value) is tuple and all(_is_bin32(item) for item in value)


def _is_succession(value: Value) -> bool:
    return Succession.from_body(value) is not None


def _is_status(value: Value) -> bool:
    return value in t.STATUSES


def _is_error(value: Value) -> bool:
    return type(value) is dict and all(type(item) is str for item in value.values())


def _is_digests(value: Value) -> bool:
    return type(value) is tuple and all(t.is_content_id(item) for item in value)


def _is_number(value: Value) -> bool:
    return type(value) is float or type(value) is int


def _is_metrics(value: Value) -> bool:
    return type(value) is dict and all(_is_number(item) for item in value.values())


def _is_natural(value: Value) -> bool:
    return type(value) is int and value >= 0


def _is_location(value: Value) -> bool:
    return type(value) is dict and "kind" in value and all(type(item) is str for item in value.values())


def _is_columns(value: Value) -> bool:
    if type(value) is not tuple or not all(type(column) is tuple and len(column) == 2 for column in value):
        return False
    names, cells = [column[0] for column in value], [column[1] for column in value]
    if not all(map(_is_text, names)) or len(set(names)) != len(names):
        return False
    return all(type(column) is tuple for column in cells) and len({len(column) for column in cells}) <= 1


def _is_blocks(value: Value) -> bool:
    return type(value) is tuple and all(_is_block(item) for item in value)


def _is_block(block: Value) -> bool:
    if type(block) is not tuple or len(block) != 5 or type(block[0]) is not str or type(block[1]) is not str:
        return False
    steps, values, offsets = block[2:]
    if any(type(column) is not tuple for column in (steps, values, offsets)):
        return False
    if not 1 <= len(steps) == len(values) == len(offsets):
        return False
    return all(map(_is_integer, steps)) and all(map(_is_number, values)) and all(map(_is_integer, offsets))


Checks = dict[str, Callable[[Value], bool]]


class _Shape(NamedTuple):
    about: Callable[[tuple[Node, ...]], bool]
    checks: Checks
    required: tuple[str, ...] = ()
    #: The key without which it is about one node only.
    target: str = ""
    #: The key that names one of the two artifacts that it is about.
    part: str = ""


_PROPERTIES: Checks = {"facts": _is_map, "properties": _is_map}
_VALUES: Checks = {**_PROPERTIES, "params": _is_map}
_AT: Checks = {"at": _is_integer}
_USAGE = _Shape(_usage, {"name": _is_text, "digests": _is_digests, **_PROPERTIES})

_SHAPES: dict[str, _Shape] = {
    t.LOG_OPENED: _Shape(_one("key"), {"agent": _is_text, "succeeds": _is_succession}),
    t.PIPELINE_DESCRIBED: _Shape(_one("pipeline"), _VALUES),
    t.STAGE_DESCRIBED: _Shape(_one("stage"), _VALUES),
    t.EXECUTION_STARTED: _Shape(_started, {**_VALUES, **_AT}),
    t.EXECUTION_UPDATED: _Shape(_updated, _VALUES),
    t.EXECUTION_FINISHED: _Shape(
        _one("execution"), {"status": _is_status, "exit_code": _is_integer, "error": _is_error, **_AT}, ("status",)
    ),
    t.ARTIFACT_USED: _USAGE,
    t.ARTIFACT_PRODUCED: _USAGE,
    t.METRICS_RECORDED: _Shape(_one("execution"), {"metrics": _is_metrics, "steps": _is_blocks}),
    t.ENVIRONMENT_RECORDED: _Shape(
        _one("artifact"), {"environment": _is_map, "digests": _is_digests}, ("environment",)
    ),
    t.TAG_ADDED: _Shape(_any_one, {"tag": t.is_name}, ("tag",)),
    t.TAG_REMOVED: _Shape(_any_one, {"tag": t.is_name, "adds": _is_ids}, ("tag", "adds")),
    t.NOTE_ADDED: _Shape(_any_one, {"text": _is_text}, ("text",)),
    t.RETRACTED: _Shape(_nodes, {"reason": _is_text, "event": _is_bin32}, ("reason",), "event"),
    t.UNRETRACTED: _Shape(_nodes, {"retraction": _is_bin32, "reason": _is_text}, ("retraction",)),
    t.GAP_ACCEPTED: _Shape(
        _one("key"),
        {"log": _is_bin16, "before": _is_bin32, "after": _is_bin32, "reason": _is_text},
        ("log", "before", "after"),
    ),
    t.ARTIFACT_STORED: _Shape(_one("artifact"), {"location": _is_location}, ("location",)),
    t.TABLE_RECORDED: _Shape(
        _one("artifact"), {"columns": _is_columns, "first": _is_natural, "rows": _is_natural}, ("columns", "rows")
    ),
    t.LABEL_ATTACHED: _Shape(_two_artifacts, {"label": t.is_content_id}, ("label",), part="label"),
    t.SLICE_RECORDED: _Shape(_two_artifacts, {"slice": t.is_content_id}, ("slice",), part="slice"),
}
TYPES = tuple(_SHAPES)
#: Types whose events can't be unsaid (README, section 8).
ALWAYS_SAID = frozenset((t.LOG_OPENED, t.RETRACTED, t.UNRETRACTED, t.GAP_ACCEPTED))


# -- what a said event states of one node ----------------------------------------------------------------------------


def nodes_of(about: tuple[Node, ...]) -> Iterator[Node]:
    """Yield the nodes that an event about these brings into being: a stage brings its pipeline."""
    for node in about:
        yield node
        if node[0] == "stage":
            yield "pipeline", node[1][0]


def stated(node: Node, type_: str, about: tuple[Node, ...], body: dict[str, Value]) -> Iterator[tuple[str, str, Value]]:
    """Yield (space, key, value) for each value that an event states of `node`."""
    if type_ == t.METRICS_RECORDED:
        yield from (("metrics", key, value) for key, value in body.get("metrics", {}).items())
    elif type_ == t.ENVIRONMENT_RECORDED:
        yield "facts", "kind", "environment"
        yield "facts", "environment", body["environment"]
    elif type_ in _OF_ARTIFACTS:
        yield from _OF_ARTIFACTS[type_](node, about, body)
    elif type_ in _SUBJECTS and node[0] == _SUBJECTS[type_]:
        spaces = _SPACES_OF_USAGE if node[0] == "artifact" else _SPACES
        for space in spaces:
            yield from ((space, key, value) for key, value in body.get(space, {}).items())
        if node[0] == "execution":  # after the facts: of one event's two statements of a key, the last counts
            yield from _stated_by_about(about)


_SPACES = ("facts", "params", "properties")
_SPACES_OF_USAGE = ("facts", "properties")  # a usage's `params` is an unknown key, of any form
_SUBJECTS = {
    t.PIPELINE_DESCRIBED: "pipeline",
    t.STAGE_DESCRIBED: "stage",
    t.EXECUTION_STARTED: "execution",
    t.EXECUTION_UPDATED: "execution",
    t.ARTIFACT_USED: "artifact",
    t.ARTIFACT_PRODUCED: "artifact",
}


def _stated_by_about(about: tuple[Node, ...]) -> Iterator[tuple[str, str, Value]]:
    for kind, id_ in about:
        if kind == "artifact":
            yield "facts", "environment", id_
        elif kind == "stage":
            yield "facts", "stage", id_


Stated = Iterator[tuple[str, str, Value]]


def _stored(_node: Node, _about: tuple[Node, ...], body: dict[str, Value]) -> Stated:
    """A location is named by its own content, so that places never contradict each other."""
    yield "locations", sha256(encode(body["location"])).hexdigest()[:LOCATION_KEY_CHARS], body["location"]


def _table(_node: Node, _about: tuple[Node, ...], body: dict[str, Value]) -> Stated:
    yield "facts", "columns", tuple(name for name, _ in body["columns"])
    yield "facts", "rows", body["rows"]
    yield "table", f"{body.get('first', 0):0{ROW_DIGITS}}", body["columns"]


def _attached(part: str, wholes: str, parts: str) -> Callable[[Node, tuple[Node, ...], dict[str, Value]], Stated]:
    def stated_of(node: Node, about: tuple[Node, ...], body: dict[str, Value]) -> Stated:
        other = next(id_ for _, id_ in about if id_ != node[1])
        yield (wholes if node[1] == body[part] else parts), other, True

    return stated_of


_OF_ARTIFACTS = {
    t.ARTIFACT_STORED: _stored,
    t.TABLE_RECORDED: _table,
    t.LABEL_ATTACHED: _attached("label", "label_of", "labels"),
    t.SLICE_RECORDED: _attached("slice", "slice_of", "slices"),
}
