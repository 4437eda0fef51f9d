"""digest, and the query verbs over the local view."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from cmf_agent.commands.options import AsJson
from cmf_agent.home import Home, find_home
from cmf_graph.commands import add_query_commands
from cmf_graph.output import print_json, print_text
from cmf_graph.questions import Questions


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("digest")(digest)
    query = typer.Typer(
        no_args_is_help=True,
        help="Ask about what this site has recorded; needs no hub.\n\nExample: cmf-agent query lineage ./model.pkl --up",
    )
    add_query_commands(query, questions)
    app.add_typer(query, name="query")


def digest(as_json: AsJson = False) -> None:
    """Print the digests of everything that this site has recorded; a hub that holds just that prints the same.

    Example: cmf-agent digest --json
    """
    from cmf_agent.view import local_view

    with local_view(find_home()) as graph:
        found = graph.digest()._asdict()
    if as_json:
        print_json(found)
    else:
        print_text("\n".join(f"{key:14} {value}" for key, value in found.items()))


@contextmanager
def questions() -> Iterator[Questions]:
    """Lend the questions over the local view of the home in force."""
    from pathlib import Path

    from cmf_agent.view import local_view
    from cmf_graph.content.files import hash_path
    from cmf_graph.content.memory import DigestMemory

    home = find_home()

    def hash_file(path: Path) -> str:
        with DigestMemory(home.digests_path) as memory:
            return hash_path(path, memory=memory).content_id

    with local_view(home) as graph:
        yield Questions(graph, _own_name(home), hash_file=hash_file)


def _own_name(home: Home) -> dict[bytes, str]:
    """Return this site's name at its hub for its own keys; before it has joined it has none."""
    from cmf_agent.hub_file import load_hub
    from cmf_agent.reading import LogReader

    hub = load_hub(home)
    with LogReader(home.log_path) as reader:
        return {log.key: hub.site if hub else "this site" for log in reader.logs()}
