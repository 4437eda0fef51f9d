"""daemon."""

from typing import Annotated

import typer

from cmf_agent.commands.options import HubAddress


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    app.command("daemon")(daemon)


def daemon(
    hub_url: HubAddress = None,
    bandwidth: Annotated[
        str | None,
        typer.Option(metavar="RATE", help="At most so much is sent: 64KB/s, 1MB/s, 256kbit/s [default: config]"),
    ] = None,
) -> None:
    """Send what is recorded as it is recorded, and fetch what is subscribed, until SIGTERM or Ctrl-C.

    Example: cmf-agent daemon --bandwidth 64KB/s

    `cmf-agent status` shows what it is doing. For systemd there are unit files in deploy/systemd.
    """
    import logging
    import os

    from cmf_agent.daemon import run_daemon
    from cmf_agent.home import find_home
    from cmf_agent.settings import load_settings
    from cmf_link.pace import read_rate

    stamp = "" if os.environ.get("JOURNAL_STREAM") else "%(asctime)s "  # the journal has its own
    logging.basicConfig(level=logging.INFO, format=f"{stamp}%(levelname)s %(message)s")
    home = find_home()
    rate = load_settings(home.config_path).bandwidth if bandwidth is None else read_rate(bandwidth)
    run_daemon(home, hub_url=hub_url, bytes_per_s=rate)
