"""The commands `cmf-hub site …`: enrol, list, give rights to and revoke sites; all work while the hub serves."""

from pathlib import Path
from typing import Annotated

import typer

from cmf_graph.output import field, print_json, print_table, print_text
from cmf_hub.options import DataOption, JsonOption, data_folder, existing_folder
from cmf_protocol.errors import CallerError

site_app = typer.Typer(no_args_is_help=True, help="Enrol, list and revoke sites; all work while the hub serves.")

_Name = Annotated[str, typer.Argument(metavar="NAME", help="The site.")]
_JoinFile = Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The join file to write (mode 0600)")]


@site_app.command("add")
def site_add(
    name: Annotated[str, typer.Argument(help="Lowercase letters, digits and dashes")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The join file to write (mode 0600)")] = None,
    key: Annotated[
        str | None, typer.Option(help="Public signing key (hex) of a site that will only send bundles")
    ] = None,
    carrier: Annotated[bool, typer.Option("--carrier", help="It may bring logs of other sites")] = False,
    operator: Annotated[bool, typer.Option("--operator", help="It may accept gaps: cmf-agent gap accept")] = False,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Enrol a site and write its join file.

    Example: cmf-hub site add clinic-a -o clinic-a.join
    """
    from cmf_hub.enrol import add_site, allow_site

    folder = data_folder(data)
    added = add_site(folder, name, output, key=None if key is None else _key(key))
    if carrier or operator:
        allow_site(folder, name, carrier=carrier, operator=operator)
    if as_json:
        print_json(added)
    elif added["joins"] and carrier:
        print_text(f"{name} is enrolled. Bring {added['file']} to it: a hub that forwards names it in its hub.toml")
    elif added["joins"]:
        print_text(f"{name} is enrolled. Bring {added['file']} to it, run there: cmf-agent join {output}")
    else:
        next_step = f" Bring {output} to it, run there: cmf-agent join {output}" if output is not None else ""
        print_text(f"{name} is enrolled with its key; its bundles are admitted: cmf-hub import BUNDLE.{next_step}")


def _key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise CallerError(
            f"{text!r} is not a public signing key", "take it from `cmf-agent status` at the site (public key)"
        )
    return key


@site_app.command("rejoin")
def site_rejoin(name: _Name, output: _JoinFile, data: DataOption = None, as_json: JsonOption = False) -> None:
    """Write a new join file for an enrolled site whose disk or login was lost; its old login is cut at once.

    Example: cmf-hub site rejoin clinic-a -o clinic-a.join

    At the site `cmf-agent init --join FILE` makes a new signing key, which is bound beside the old one; with --restore it brings
    back what this hub holds of the site.
    """
    from cmf_hub.enrol import rejoin_site

    done = rejoin_site(data_folder(data), name, output)
    if as_json:
        print_json(done)
    else:
        print_text(f"{name} may join again. Bring {output} to it, run there: cmf-agent init --join {output} --restore")


@site_app.command("import")
def site_import(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="What `cmf-hub site list --json` printed at another hub")
    ],
    prefix: Annotated[str, typer.Option(help="Put this before each name")] = "",
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Enrol the sites of another hub by their keys, so that what it forwards of them is admitted here.

    Example: cmf-hub site import munich-sites.json --prefix munich-

    All are enrolled, or, where a name or key is another site's here, none; sites that are here already get what keys they lack. Rights
    are not taken over.
    """
    from cmf_hub.enrol import import_sites

    done = import_sites(data_folder(data), file, prefix)
    if as_json:
        print_json({"added": done.added, "extended": done.extended, "unchanged": done.unchanged})
    else:
        print_text(
            f"{len(done.added)} sites enrolled, {len(done.extended)} got further keys, {len(done.unchanged)} were here already"
        )


@site_app.command("allow")
def site_allow(
    name: _Name,
    carrier: Annotated[bool | None, typer.Option("--carrier/--no-carrier", help="To bring logs of other sites")] = None,
    operator: Annotated[bool | None, typer.Option("--operator/--no-operator", help="To accept gaps")] = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a site rights, or take them; they count at once.

    Example: cmf-hub site allow head-office --operator

    Gaps that it has accepted before are looked at again. What was admitted stays, whatever is taken.
    """
    from cmf_hub.enrol import allow_site

    if carrier is None and operator is None:
        raise CallerError("no right is named", "give --carrier, --no-carrier, --operator or --no-operator")
    allow_site(data_folder(data), name, carrier=carrier, operator=operator)
    (site,) = [site for site in _listed(data) if site["name"] == name]
    if as_json:
        print_json(site)
    else:
        rights = [right for right, field_ in (("carry", "may_carry"), ("operate", "may_operate")) if site[field_]]
        print_text(
            f"{name} may {' and '.join(rights)}" if rights else f"{name} has no rights but to bring its own logs"
        )


@site_app.command("list")
def site_list(data: DataOption = None, as_json: JsonOption = False) -> None:
    """List the sites that are enrolled, and their rights.

    Example: cmf-hub site list --json > sites.json
    """
    items = _listed(data)
    if as_json:
        print_json({"items": items, "next": None})
    else:
        print_table(
            items,
            [field(name) for name in ("name", "enrolled", "joined", "revoked", "may_carry", "may_operate")],
            empty="no site yet: cmf-hub site add NAME -o FILE",
        )


def _listed(data: Path | None) -> list[dict[str, object]]:
    from cmf_graph.times import rfc3339
    from cmf_hub.registry import Registry

    return [
        {
            "name": site.name, "enrolled": rfc3339(site.created_us), "joined": bool(site.keys), "revoked": site.revoked,
            "may_carry": site.may_carry, "may_operate": site.may_operate, "keys": [key.hex() for key in site.keys],
        }
        for site in Registry(existing_folder(data).registry).sites()
    ]  # fmt: skip


@site_app.command("revoke")
def site_revoke(name: _Name, data: DataOption = None, as_json: JsonOption = False) -> None:
    """Cut a site off and refuse whatever of it is not admitted yet; what was admitted stays.

    Example: cmf-hub site revoke clinic-a
    """
    from cmf_hub.enrol import revoke_site

    told = revoke_site(data_folder(data), name)
    if as_json:
        print_json({"site": name, "revoked": True, "cut": told})
    else:
        print_text(f"{name} is revoked" + (" and cut off" if told else "; the hub is not serving"))
