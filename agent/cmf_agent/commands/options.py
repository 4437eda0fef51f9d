"""Options that several commands share, and how they are read."""

import json
from typing import Annotated

import typer

from cmf_protocol.errors import CallerError

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
HubAddress = Annotated[str | None, typer.Option("--hub", metavar="URL", help="The hub's address, if not the file's.")]


def read_pairs(pairs: list[str]) -> dict[str, object]:
    """Return KEY=VALUE texts as a map; a value that is JSON (a number, true, a list) is that, any other is text."""
    values: dict[str, object] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise CallerError(f"{pair!r} is not KEY=VALUE", "write for example lr=0.1")
        values[key] = _read_value(text)
    return values


def _read_value(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
