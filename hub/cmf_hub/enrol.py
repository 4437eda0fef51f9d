"""Enrolling and revoking sites, while the hub serves or not.

Rules
- A site is enrolled once it can log in and is answered: that is tried as the new site before success is reported (nats-facts, Trap).
- An enrolment that fails leaves nothing behind; revoking cuts the live connection.
"""

import asyncio
import json
import os
from pathlib import Path

from cmf_graph.database import store_errors
from cmf_hub.broker import prove
from cmf_hub.broker_files import reload_running, running_url
from cmf_hub.consumer import now_us
from cmf_hub.data import DataFolder
from cmf_hub.registry import Registry
from cmf_link.login import new_login
from cmf_protocol.errors import CallerError

JOIN_VERSION = 1


def add_site(data: DataFolder, name: str, output: Path | None, *, key: bytes | None = None) -> dict[str, object]:
    """Enrol a site; write its join file (mode 0600) unless `key` makes it a site that only sends bundles."""
    data.must_exist()
    registry = Registry(data.registry)
    hub_id, seed = registry.identity()
    if key is not None:
        registry.add(name, login=None, key=key, now_us=now_us())
        return {"site": name, "key": key.hex(), "joins": False}
    url = running_url(data.nats)
    if url is None:
        raise CallerError(
            "the hub does not serve, so the join file can't name its address",
            "start it (cmf-hub serve), then add the site",
        )
    if output is None:
        raise CallerError(
            "a join file needs a name", "give one with -o FILE; whoever has that file can join as this site"
        )
    if output.exists():
        raise CallerError(f"{output} exists already", "name another file with -o")
    login = new_login()
    token = registry.add(name, login=login.public, key=None, now_us=now_us())
    try:
        asyncio.run(_reload(data, registry))
        asyncio.run(prove(url, hub_seed=seed, site=name, site_seed=login.seed))
        _write_join_file(
            output, {"version": JOIN_VERSION, "site": name, "url": url, "hub_id": hub_id.hex(), "login": login.seed,
                     "token": token, "ca": None}
        )  # fmt: skip
    except BaseException:
        registry.remove(name)
        asyncio.run(_reload(data, registry))
        raise
    return {"site": name, "file": str(output), "joins": True}


async def _reload(data: DataFolder, registry: Registry) -> bool:
    return await reload_running(data.nats, registry.logins)


def _write_join_file(output: Path, content: dict[str, object]) -> None:
    with store_errors(output):
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            json.dump(content, out, indent=2)
            out.write("\n")


def revoke_site(data: DataFolder, name: str) -> bool:
    """Refuse whatever of a site is not admitted yet, and cut its connection; return whether a server was told."""
    data.must_exist()
    registry = Registry(data.registry)
    registry.revoke(name, now_us())
    return asyncio.run(_reload(data, registry))
