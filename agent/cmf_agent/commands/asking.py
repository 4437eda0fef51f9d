"""digest, and the query verbs over the local view."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from cmf_agent.commands.options import AsJson
from cmf_agent.home import Home, find_home
from cmf_graph.commands import add_query_commands
from cmf_graph.output import print_json, print_text
from cmf_graph.questions import Questions

if TYPE_CHECKING:
    from cmf_graph.graph import Digest


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("digest")(digest)
    query = typer.Typer(
        no_args_is_help=True,
        help="Ask about what this site has recorded and pulled; needs no hub.\n\nExample: cmf-agent query lineage ./model.pkl --up",
    )
    add_query_commands(query, questions)
    app.add_typer(query, name="query")


def digest(
    pipelines: Annotated[
        list[str] | None,
        typer.Option("-p", "--pipeline", help="Only of what a pull of this pipeline lists; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the digests of everything that this site has recorded and pulled; a hub that holds just that prints the same.

    Example: cmf-agent digest -p mnist --json

    With -p, whoever has pulled all of that pipeline prints what `cmf-hub digest -p` prints.
    """
    found = digest_at(find_home(), pipelines or ())._asdict()
    if as_json:
        print_json(found)
    else:
        print_text("\n".join(f"{key:14} {value}" for key, value in found.items()))


def digest_at(home: Home, pipelines: Sequence[str]) -> "Digest":
    """Return the digests of a home's view, or of as much of it as a pull of these pipelines lists."""
    from cmf_agent.view import local_view
    from cmf_graph.filtered import filtered_digest
    from cmf_protocol.filters import filter_of
    from cmf_protocol.types import checked_name

    wanted = filter_of(pipelines=[checked_name(name, "pipeline") for name in pipelines])
    with local_view(home) as graph:
        return filtered_digest(graph, wanted, _sites(home)) if pipelines else graph.digest()


@contextmanager
def questions() -> Iterator[Questions]:
    """Lend the questions over the local view of the home in force."""
    with questions_at(find_home()) as found:
        yield found


@contextmanager
def questions_at(home: Home) -> Iterator[Questions]:
    """Lend the questions over the local view of a home."""
    from pathlib import Path

    from cmf_agent.local_questions import LocalQuestions
    from cmf_agent.pulled import Pulled
    from cmf_agent.view import local_view
    from cmf_graph.content.files import hash_path
    from cmf_graph.content.memory import DigestMemory

    def hash_file(path: Path) -> str:
        with DigestMemory(home.digests_path) as memory:
            return hash_path(path, memory=memory).content_id

    with ExitStack() as stack:
        graph = stack.enter_context(local_view(home))
        pulled = stack.enter_context(Pulled(home.pulled_path)) if home.pulled_path.exists() else None
        yield LocalQuestions(graph, _sites(home), heads=_heads(home), pulled=pulled, hash_file=hash_file)


def _heads(home: Home) -> list[bytes]:
    """Return the ids of the newest events of this site's logs."""
    from cmf_agent.reading import LogReader

    with LogReader(home.log_path) as reader:
        return [event.event_id for log in reader.logs() for event in (next(reader.newest(log.number)),)]


def _sites(home: Home) -> dict[bytes, str]:
    """Return signing key → site: of pulled logs as the hub told, of this site's own keys its name there, if it has joined."""
    from cmf_agent.hub_file import load_hub
    from cmf_agent.pulled import Pulled
    from cmf_agent.reading import LogReader

    found: dict[bytes, str] = {}
    if home.pulled_path.exists():
        with Pulled(home.pulled_path) as pulled:
            found = pulled.sites()
    hub = load_hub(home)
    with LogReader(home.log_path) as reader:
        return found | {log.key: hub.site if hub else "this site" for log in reader.logs()}
