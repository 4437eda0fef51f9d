"""`--bytes` of pull and clone: the bytes of what was pulled.

Rules
- What the remote does not have yet, and what can't be put in place because something else is there, is told and no failure: whoever
  recorded it may not have pushed it, and this site's own files stay.
- What came damaged, or could not be written, is one.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cmf_agent.artifact_bytes import Report, Wanted, pull_bytes
from cmf_agent.commands.artifact_output import report_text, showing, tell_failures
from cmf_agent.commands.asking import questions_at
from cmf_agent.needed import selected_contents
from cmf_graph.console import print_warning
from cmf_protocol.errors import IntegrityError

if TYPE_CHECKING:
    from cmf_agent.home import Home
    from cmf_protocol.filters import Filter


def pull_selected(home: "Home", filters: "Sequence[Filter]") -> Report:
    """Fetch the bytes of what the executions used and produced that these filters select; put them at their names, where nothing is."""
    with questions_at(home) as asked:
        wanted = selected_contents(asked.graph, filters, asked.sites)
    return pull_bytes(home, wanted, Wanted(), into=home.root, needs_remote=False, show=showing("pulling"))


def print_fetched(report: Report) -> None:
    """Tell people what was fetched."""
    from cmf_graph.output import print_text

    for note in report.notes:
        print_warning(f"note: {note}")
    print_text(report_text(report, "pulled"))
    tell_failures(report)


def ending(report: Report | None) -> int:
    """Return the exit code that a command ends with after it."""
    if report is None:
        return 0
    if any(item.is_damaged for item in report.items):
        return IntegrityError.exit_code
    return int(report.count("failed") > 0)
