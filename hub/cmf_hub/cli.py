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
from cmf_graph.graph import Digest, Graph
from cmf_graph.output import field, print_json, print_table, print_text
from cmf_graph.questions import Questions
from cmf_graph.text import counted
from cmf_hub.data import DataFolder
from cmf_hub.options import DataOption, JsonOption
from cmf_hub.options import data_folder as _folder
from cmf_hub.options import existing_folder as _existing
from cmf_hub.site_commands import site_app
from cmf_protocol.errors import CallerError, IntegrityError, StoreError

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The hub: one lineage graph of all sites.")
quarantine_app = typer.Typer(
    no_args_is_help=True, help="What could not be authenticated, with the reason.\n\nExample: cmf-hub quarantine list"
)
query_app = typer.Typer(
    no_args_is_help=True,
    help="Ask about pipelines, executions, artifacts, sites and lineage.\n\nExample: cmf-hub query lineage model.pkl --up",
)
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


StaleOption = Annotated[bool, typer.Option("--stale", help="Do not wait until what has arrived is in the graph")]


@app.command()
def serve(
    data: DataOption = None,
    nats: Annotated[
        str, typer.Option(help="HOST:PORT to listen on; beyond loopback it is TLS, with a CA that join files carry")
    ] = "127.0.0.1:4222",
    advertise: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT at which sites reach this hub, for join files (default: --nats; for 0.0.0.0 this host's name)"
        ),
    ] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Write this file (JSON: http, nats, pid) once the hub answers")
    ] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Example: cmf-hub serve --data /srv/hub --nats 0.0.0.0:4222 --advertise hub.example.org:4222
    """
    import asyncio
    import logging
    import socket

    from cmf_hub.addresses import read_addresses
    from cmf_hub.serve import Options
    from cmf_hub.serve import serve as run_server

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    addresses = read_addresses(nats, advertise, socket.gethostname())
    asyncio.run(run_server(Options(_folder(data), addresses, ready_file)))


# -- care ------------------------------------------------------------------------------------------------------------


@app.command()
def digest(
    pipelines: Annotated[
        list[str] | None,
        typer.Option("-p", "--pipeline", help="Only what a pull of this pipeline brings [several: -p A -p B]"),
    ] = None,
    data: DataOption = None,
    as_json: JsonOption = False,
    stale: StaleOption = False,
) -> None:
    """Print the digests of everything that is held, or that a pull of some pipelines brings; equal digests mean equal graphs.

    Example: cmf-hub digest -p mnist
    """
    with _graph(data, stale) as graph:
        found = (_pulled_digest(graph, _existing(data), pipelines) if pipelines else graph.digest())._asdict()
    if as_json:
        print_json(found)
    else:
        print_text("\n".join(f"{key:14} {value}" for key, value in found.items()))


def _pulled_digest(graph: Graph, folder: DataFolder, pipelines: list[str]) -> Digest:
    from cmf_graph.filtered import filtered_digest
    from cmf_hub.registry import Registry
    from cmf_protocol.filters import filter_of

    for name in pipelines:
        if graph.node_id(("pipeline", name)) is None:
            raise CallerError(f"nothing is held of a pipeline {name}", "see cmf-hub query pipelines")
    return filtered_digest(graph, filter_of(pipelines=pipelines), Registry(folder.registry).names_by_key())


@app.command()
def verify(data: DataOption = None, as_json: JsonOption = False) -> None:
    """Check every segment, signature and chain in the store, and the graph against it; exit 5 if something is wrong.

    Example: cmf-hub verify --data /srv/hub
    """
    from cmf_hub.care import verify as run_verify

    with _graph(data, stale=False) as graph:
        found = run_verify(_existing(data), graph, lambda _number: None)
    if as_json:
        print_json(
            {"ok": not found.problems, "segments": found.segments, "events": found.events, "problems": found.problems}
        )
    else:
        print_text(
            f"checked {counted(found.segments, 'segment')} with {counted(found.events, 'event')}: "
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
    """Fold everything anew, beside the graph in use, then put it in its place; works while the hub serves.

    Example: cmf-hub rebuild --data /srv/hub
    """
    from cmf_hub.projector import rebuild as run_rebuild

    segments = run_rebuild(_existing(data))
    if as_json:
        print_json({"segments": segments})
    else:
        print_text(f"rebuilt from {counted(segments, 'segment')}")


@app.command()
def status(data: DataOption = None, as_json: JsonOption = False) -> None:
    """Say what the hub holds, and whether it serves.

    Example: cmf-hub status --json
    """
    from cmf_hub.care import status as run_status

    folder = _existing(data)
    with _graph(data, stale=True) as graph:
        found = run_status(folder, graph)
    if as_json:
        print_json(found)
    else:
        lines = [f"{key.replace('_', ' '):27} {value}" for key, value in found.items() if key != "upstreams"]
        for hub in found["upstreams"]:
            lines.append(
                f"{'upstream':27} {hub['url']}: {hub['state']}" + (f" ({hub['detail']})" if hub["detail"] else "")
            )
        print_text("\n".join(lines))


@app.command("import")
def import_(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="What `cmf-agent bundle export` wrote at a site")],
    receipt: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a receipt, to be carried back to the site")
    ] = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring in a bundle file that someone carried here; importing it again changes nothing.

    Example: cmf-hub import clinic-a.bundle --receipt clinic-a.receipt

    Works while the hub serves. Exit code 5: the file was cut or altered, and nothing of it was taken; or some of it was refused.
    """
    from cmf_hub.importing import import_bundle, import_text

    found = import_bundle(_existing(data), bundle, receipt=receipt)
    if as_json:
        print_json(found.shown() | {"receipt": None if receipt is None else str(receipt)})
    else:
        print_text(import_text(found))
    if found.refused:
        first = found.refused[0]
        raise IntegrityError(f"refused ({first.code}): {first.message}", "see cmf-hub quarantine list")
    if found.not_kept:
        raise StoreError(
            f"{found.not_kept} segments wait for earlier events, and there is no room to keep them",
            "import the bundles with what is missing first, then this one again",
        )


@app.command()
def receipt(
    site: Annotated[str, typer.Argument(help="The site that it is for")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The receipt to write")],
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write what this hub holds of a site's logs, signed, to be carried to the site.

    Example: cmf-hub receipt clinic-a -o clinic-a.receipt

    There `cmf-agent bundle import` takes it, and the next bundle holds only what is new.
    """
    from cmf_hub.importing import receipt_of_site

    logs = receipt_of_site(_existing(data), site, output)
    if as_json:
        print_json({"site": site, "file": str(output), "logs": logs})
    else:
        print_text(
            f"{output} says what is held of {logs} logs of {site}; take it there: cmf-agent bundle import {output}"
        )


@quarantine_app.command("list")
def quarantine_list(data: DataOption = None, as_json: JsonOption = False) -> None:
    """List what was refused, newest first.

    Example: cmf-hub quarantine list
    """
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
    from cmf_hub.sites import list_sites, upstreams_of
    from cmf_hub.upstreams import read_progress

    folder = _existing(data)
    with _graph(data, stale) as graph:
        trees = graph.trees()
    before = {t.root: trees[t.predecessor].log_id for t in trees.values() if t.predecessor is not None}
    upstreams = upstreams_of(read_progress(folder))
    yield list_sites(open_custody(folder), Registry(folder.registry), before, upstreams)


add_query_commands(query_app, _questions, sites_of=_sites)


def main() -> int:
    """Run the command that the process was called with and return its exit code."""
    return guarded(lambda: run_app(app, sys.argv[1:], "cmf-hub"))
