"""The command line `cmf-hub`.

Rules
- Thin: a command reads its options, calls one function, prints what it returns.
- Errors are raised and turned into a message, a hint and an exit code in one place (`cmf_graph.console`).
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cmf_graph.commands import add_query_commands
from cmf_graph.console import guarded, print_warning, run_app
from cmf_graph.graph import Graph
from cmf_graph.output import field, print_json, print_table, print_text
from cmf_graph.questions import Questions
from cmf_hub.data import DataFolder, default_data_folder
from cmf_protocol.errors import CallerError, IntegrityError

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The hub: one lineage graph of all sites.")
site_app = typer.Typer(no_args_is_help=True, help="Enrol, list and revoke sites; all work while the hub serves.")
quarantine_app = typer.Typer(no_args_is_help=True, help="What could not be authenticated, with the reason.")
query_app = typer.Typer(no_args_is_help=True, help="Ask about pipelines, executions, artifacts, sites and lineage.")
app.add_typer(site_app, name="site")
app.add_typer(quarantine_app, name="quarantine")
app.add_typer(query_app, name="query")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print_text(f"cmf-hub {version('cmf-sync')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """The hub: one lineage graph of all sites."""


DataOption = Annotated[
    Path | None, typer.Option("--data", help="The hub's data folder [default: $CMF_HUB_DATA, then the platform's]")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on standard output")]
StaleOption = Annotated[bool, typer.Option("--stale", help="Do not wait until what has arrived is in the graph")]


def _folder(data: Path | None) -> DataFolder:
    return DataFolder((data or default_data_folder()).absolute())


def _existing(data: Path | None) -> DataFolder:
    folder = _folder(data)
    folder.must_exist()
    return folder


@app.command()
def serve(
    data: DataOption = None,
    nats: Annotated[str, typer.Option(help="HOST:PORT on which sites reach this hub")] = "127.0.0.1:4222",
    ready_file: Annotated[
        Path | None, typer.Option(help="Write this file (JSON: http, nats, pid) once the hub answers")
    ] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Example: cmf-hub serve --data /srv/hub --nats 127.0.0.1:4222
    """
    import asyncio
    import logging

    from cmf_hub.serve import Options, read_host_port
    from cmf_hub.serve import serve as run_server

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    host, port = read_host_port(nats)
    asyncio.run(run_server(Options(_folder(data), host, port, ready_file)))


# -- sites -----------------------------------------------------------------------------------------------------------


@site_app.command("add")
def site_add(
    name: Annotated[str, typer.Argument(help="Lowercase letters, digits and dashes")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The join file to write (mode 0600)")] = None,
    key: Annotated[
        str | None, typer.Option(help="Public signing key (hex) of a site that will only send bundles")
    ] = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Enrol a site and write its join file.

    Example: cmf-hub site add clinic-a -o clinic-a.join
    """
    from cmf_hub.enrol import add_site

    added = add_site(_folder(data), name, output, key=None if key is None else _key(key))
    if as_json:
        print_json(added)
    elif added["joins"]:
        print_text(f"{name} is enrolled. Bring {added['file']} to it, run there: cmf-agent join {output}")
    else:
        print_text(f"{name} is enrolled with its key; its bundles are admitted: cmf-hub import BUNDLE")


def _key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise CallerError(
            f"{text!r} is not a public signing key", "take it from `cmf-agent status` at the site (public_key)"
        )
    return key


@site_app.command("list")
def site_list(data: DataOption = None, as_json: JsonOption = False) -> None:
    """List the sites that are enrolled."""
    from cmf_graph.times import rfc3339
    from cmf_hub.registry import Registry

    items = [
        {
            "name": site.name, "enrolled": rfc3339(site.created_us), "joined": bool(site.keys), "revoked": site.revoked,
            "keys": [key.hex() for key in site.keys],
        }
        for site in Registry(_existing(data).registry).sites()
    ]  # fmt: skip
    if as_json:
        print_json({"items": items, "next": None})
    else:
        print_table(
            items,
            [field(name) for name in ("name", "enrolled", "joined", "revoked")],
            empty="no site yet: cmf-hub site add NAME -o FILE",
        )


@site_app.command("revoke")
def site_revoke(name: str, data: DataOption = None, as_json: JsonOption = False) -> None:
    """Cut a site off and refuse whatever of it is not admitted yet; what was admitted stays."""
    from cmf_hub.enrol import revoke_site

    told = revoke_site(_folder(data), name)
    if as_json:
        print_json({"site": name, "revoked": True, "cut": told})
    else:
        print_text(f"{name} is revoked" + (" and cut off" if told else "; the hub is not serving"))


# -- care ------------------------------------------------------------------------------------------------------------


@app.command()
def digest(data: DataOption = None, as_json: JsonOption = False, stale: StaleOption = False) -> None:
    """Print the digests of everything that is held; equal digests mean equal graphs."""
    with _graph(data, stale) as graph:
        found = graph.digest()._asdict()
    if as_json:
        print_json(found)
    else:
        print_text("\n".join(f"{key:14} {value}" for key, value in found.items()))


@app.command()
def verify(data: DataOption = None, as_json: JsonOption = False) -> None:
    """Check every segment, signature and chain in the store, and the graph against it; exit 5 if something is wrong."""
    from cmf_hub.care import verify as run_verify

    with _graph(data, stale=False) as graph:
        found = run_verify(_existing(data), graph, lambda _number: None)
    if as_json:
        print_json(
            {"ok": not found.problems, "segments": found.segments, "events": found.events, "problems": found.problems}
        )
    else:
        print_text(
            f"checked {found.segments} segments with {found.events} events: "
            + ("ok" if not found.problems else "NOT ok")
        )
    if found.problems:
        if not as_json:
            print_text("\n".join(found.problems))
        raise IntegrityError(
            f"{len(found.problems)} problems", "stop the hub, keep the data, bring back a copy or let sites push again"
        )


@app.command()
def rebuild(data: DataOption = None, as_json: JsonOption = False) -> None:
    """Fold everything anew, beside the graph in use, then put it in its place; works while the hub serves."""
    from cmf_hub.projector import rebuild as run_rebuild

    segments = run_rebuild(_existing(data))
    if as_json:
        print_json({"segments": segments})
    else:
        print_text(f"rebuilt from {segments} segments")


@app.command()
def status(data: DataOption = None, as_json: JsonOption = False) -> None:
    """Say what the hub holds, and whether it serves."""
    from cmf_hub.care import status as run_status

    folder = _existing(data)
    with _graph(data, stale=True) as graph:
        found = run_status(folder, graph)
    if as_json:
        print_json(found)
    else:
        print_text("\n".join(f"{key.replace('_', ' '):27} {value}" for key, value in found.items()))


@app.command("import")
def import_(bundle: Path, data: DataOption = None, as_json: JsonOption = False) -> None:
    """Bring in a bundle file that someone carried here; importing it again changes nothing."""
    from cmf_hub.care import import_bundle

    found = import_bundle(_existing(data), bundle)
    if as_json:
        print_json(found)
    else:
        print_text(
            f"{found['segments']} segments: {found['admitted']} events admitted, {found['duplicates']} held already, "
            f"{found['parked']} segments parked, {len(found['refused'])} refused"
        )
    if found["refused"]:
        first = found["refused"][0]
        raise IntegrityError(f"refused ({first['code']}): {first['message']}", "see cmf-hub quarantine list")


@quarantine_app.command("list")
def quarantine_list(data: DataOption = None, as_json: JsonOption = False) -> None:
    """List what was refused, newest first."""
    from cmf_hub.care import quarantined

    items = quarantined(_existing(data))
    if as_json:
        print_json({"items": items, "next": None})
    else:
        columns = [field(name) for name in ("id", "arrived", "carrier", "code", "message", "bytes")]
        print_table(items, columns, empty="nothing is in quarantine")


# -- questions -------------------------------------------------------------------------------------------------------


@contextmanager
def _graph(data: Path | None, stale: bool) -> Iterator[Graph]:
    from cmf_hub.projector import QUERY_WAIT_S, caught_up_graph

    graph, behind = caught_up_graph(_existing(data), wait_s=0.0 if stale else QUERY_WAIT_S)
    if behind and not stale:
        print_warning(f"this answer is {behind} segments behind what has arrived")
    try:
        yield graph
    finally:
        graph.connection.close()


@contextmanager
def _questions(data: DataOption = None, stale: StaleOption = False) -> Iterator[Questions]:
    from cmf_hub.registry import Registry

    names = Registry(_existing(data).registry).names_by_key()
    with _graph(data, stale) as graph:
        yield Questions(graph, names, hash_file=_content_id)


def _content_id(path: Path) -> str:
    from cmf_graph.content.files import hash_path

    return hash_path(path).content_id


@contextmanager
def _sites(data: DataOption = None, stale: StaleOption = False) -> Iterator[list[dict[str, Any]]]:
    from cmf_hub.projector import open_custody
    from cmf_hub.registry import Registry
    from cmf_hub.sites import list_sites

    folder = _existing(data)
    with _graph(data, stale) as graph:
        trees = graph.trees()
    before = {t.root: trees[t.predecessor].log_id for t in trees.values() if t.predecessor is not None}
    yield list_sites(open_custody(folder), Registry(folder.registry), before)


add_query_commands(query_app, _questions, sites_of=_sites)


def main() -> int:
    """Run the command that the process was called with and return its exit code."""
    return guarded(lambda: run_app(app, sys.argv[1:], "cmf-hub"))
