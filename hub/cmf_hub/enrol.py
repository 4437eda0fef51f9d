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
from cmf_hub.addresses import Addresses
from cmf_hub.broker_files import read_ca, reload_running, running_settings
from cmf_hub.consumer import now_us
from cmf_hub.custody import Custody
from cmf_hub.data import DataFolder
from cmf_hub.proof import prove
from cmf_hub.registry import Imported, Registry
from cmf_link.login import new_login
from cmf_protocol.errors import CallerError

JOIN_VERSION = 1
#: An Ed25519 public key.
KEY_BYTES = 32


def add_site(data: DataFolder, name: str, output: Path | None, *, key: bytes | None = None) -> dict[str, object]:
    """Enrol a site and write its join file (mode 0600), without address, login and token if `key` makes it one that only sends bundles."""
    data.must_exist()
    registry = Registry(data.registry)
    if output is not None and output.exists():
        raise CallerError(f"{output} exists already", "name another file with -o")
    if key is not None:
        return _add_carried(registry, name, key, output)
    if output is None:
        raise CallerError(
            "a join file needs a name", "give one with -o FILE; whoever has that file can join as this site"
        )
    addresses, ca = _serving(data)
    login = new_login()
    token = registry.add(name, login=login.public, key=None, now_us=now_us())
    try:
        _let_in(data, registry, name, output, addresses, {"login": login.seed, "token": token, "ca": ca})
    except BaseException:
        registry.remove(name)
        asyncio.run(_reload(data, registry))
        raise
    return {"site": name, "file": str(output), "joins": True}


def rejoin_site(data: DataFolder, name: str, output: Path) -> dict[str, object]:
    """Write a new join file for an enrolled site whose disk or login was lost; its old login is cut, its events and keys stay."""
    data.must_exist()
    registry = Registry(data.registry)
    if output.exists():
        raise CallerError(f"{output} exists already", "name another file with -o")
    before = registry.credentials(name)
    addresses, ca = _serving(data)
    login = new_login()
    token = registry.rejoin(name, login.public)
    try:
        _let_in(data, registry, name, output, addresses, {"login": login.seed, "token": token, "ca": ca})
    except BaseException:
        registry.restore_credentials(name, before)
        asyncio.run(_reload(data, registry))
        raise
    return {"site": name, "file": str(output), "joins": True}


def _serving(data: DataFolder) -> tuple[Addresses, str | None]:
    """Return where the hub serves, and its CA; raise `CallerError` if it does not serve."""
    settings = running_settings(data.nats)
    if settings is None:
        raise CallerError(
            "the hub does not serve, so the join file can't name its address",
            "start it (cmf-hub serve), then make the join file",
        )
    return settings.addresses, read_ca(data.nats, settings.addresses)


def _let_in(
    data: DataFolder, registry: Registry, name: str, output: Path, addresses: Addresses, link: dict[str, str | None]
) -> None:
    """Let the running server know a site's login, try it, and write the join file."""
    asyncio.run(_reload(data, registry))
    _, seed = registry.identity()
    asyncio.run(prove(addresses.local.url, link["ca"], hub_seed=seed, site=name, site_seed=str(link["login"])))
    _write_join_file(output, _join_content(registry, name) | {"url": addresses.advertised.url} | link)


def _add_carried(registry: Registry, name: str, key: bytes, output: Path | None) -> dict[str, object]:
    """Enrol a site by its key: it needs no login and no token, and its join file, if any, says whose receipts it may believe."""
    registry.add(name, login=None, key=key, now_us=now_us())
    try:
        if output is not None:
            _write_join_file(output, _join_content(registry, name))
    except BaseException:
        registry.remove(name)
        raise
    return {"site": name, "key": key.hex(), "file": None if output is None else str(output), "joins": False}


def _join_content(registry: Registry, name: str) -> dict[str, object]:
    """Return a join file's content for a site that has no link."""
    hub_id, hub_key = registry.identity()[0].hex(), registry.signer().public_key.hex()
    return {
        "version": JOIN_VERSION, "site": name, "url": None, "hub_id": hub_id, "hub_key": hub_key, "login": None,
        "token": None, "ca": None,
    }  # fmt: skip


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


def allow_site(data: DataFolder, name: str, *, carrier: bool | None, operator: bool | None) -> None:
    """Give or take a site's rights; what an operator has accepted before is decided on anew."""
    data.must_exist()
    registry = Registry(data.registry)
    registry.allow(name, carrier=carrier, operator=operator)
    if operator:
        Custody(data.store, registry).reconsider_gaps()


def import_sites(data: DataFolder, file: Path, prefix: str) -> Imported:
    """Enrol, by their keys, the sites that another hub's `site list --json` names in a file.

    Those that never joined there, or are revoked there, are left out.
    """
    data.must_exist()
    with store_errors(file):
        content = file.read_bytes()
    try:
        found = {
            prefix + site["name"]: [bytes.fromhex(key) for key in site["keys"]]
            for site in json.loads(content)["items"]
            if not site.get("revoked")
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CallerError(f"{file} is no list of sites", "make it with: cmf-hub site list --json > FILE") from error
    if any(len(key) != KEY_BYTES for keys in found.values() for key in keys):
        raise CallerError(f"{file} is no list of sites", "make it with: cmf-hub site list --json > FILE")
    return Registry(data.registry).import_sites({name: keys for name, keys in found.items() if keys}, now_us())
