"""Which hub this site has joined: the join file, checked, and kept as `.cmf/hub.json` (protocol/README.md, section 10).

Rules
- It holds a login: mode 0600, written whole or not at all.
- A site belongs to one hub; another one is taken only when the caller says so.
- The token serves once: it is forgotten when the hub has answered.
- A site without address and login has no link: bundles go out by hand and receipts come back, and what needs the link says so.
"""

import json
import re
from pathlib import Path

from cmf_agent.home import Home
from cmf_agent.private_files import write_private
from cmf_agent.settings import load_settings
from cmf_graph.database import store_errors
from cmf_protocol.errors import CallerError

JOIN_VERSION = 1
_HINT = "use the file that `cmf-hub site add NAME -o FILE` made"
_SITE = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
#: An nkey seed of a user, base 32.
_LOGIN = re.compile(r"SU[A-Z2-7]{56}")
_HUB_ID = re.compile(r"[0-9a-f]{32}")
_HUB_KEY = re.compile(r"[0-9a-f]{64}")


class HubFile:
    """The hub's id and key, its address and CA, this site's name and NATS login there, the token until it was used.

    `address` is None for a site that has no link to its hub.
    """

    def __init__(
        self, path: Path, *, site: str, url: str | None, hub_id: bytes, hub_key: bytes, login: str | None, token: str | None,
        ca: str | None,
    ) -> None:  # fmt: skip
        self.path = path
        self.site = site
        self.address = url
        self.hub_id = hub_id
        self.hub_key = hub_key
        self._login = login
        self.token = token
        self.ca = ca

    @property
    def url(self) -> str:
        """The hub's address; raises `CallerError` if there is no link."""
        return self._linked(self.address)

    @property
    def login(self) -> str:
        """The NATS login of this site; raises `CallerError` if there is no link."""
        return self._linked(self._login)

    def use_address(self, url: str) -> None:
        """Let the hub be at another address than its file says; raise `CallerError` if that is none, or there is no link."""
        self._linked(self._login)
        self.address = _checked(url)

    def _linked(self, value: str | None) -> str:
        if value is None:
            raise CallerError(
                f"this site ({self.site}) has no link to its hub",
                "carry what is recorded there: cmf-agent bundle export FILE",
            )
        return value

    def save(self) -> None:
        """Write the file, readable by its owner only."""
        content = {
            "version": JOIN_VERSION,
            "site": self.site,
            "url": self.address,
            "hub_id": self.hub_id.hex(),
            "hub_key": self.hub_key.hex(),
            "login": self._login,
            "token": self.token,
            "ca": self.ca,
        }
        write_private(self.path, json.dumps(content, indent=2).encode() + b"\n")

    def forget_token(self) -> None:
        """Drop the token, here and in the file, now that the hub knows this site's key; one of a file that was joined since is kept."""
        used, self.token = self.token, None
        if used is None:
            return
        kept = _read(self.path, self.path)  # the address here may be a flag's
        if kept.token == used:
            kept.token = None
            kept.save()


def load_hub(home: Home) -> HubFile | None:
    """Return the hub that `home` has joined, None if it has joined none."""
    with store_errors(home.hub_path):
        try:
            home.hub_path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
    return _read(home.hub_path, home.hub_path)


def joined_hub(home: Home) -> HubFile:
    """Return the hub that `home` has joined, with a link or without; raise `CallerError` if it has joined none."""
    hub = load_hub(home)
    if hub is None:
        raise CallerError(
            "this site has not joined a hub", "run `cmf-agent join FILE` with the file that the hub's operator made"
        )
    return hub


def hub_in_force(home: Home, *, url: str | None = None) -> HubFile:
    """Return the hub that `home` has joined, at the address in force; `url` is what a flag said.

    Raises `CallerError` if it has joined none, or has no link to it.
    """
    hub = joined_hub(home)
    hub.use_address(load_settings(home.config_path, hub_url=url).hub_url or hub.url)
    return hub


def join(home: Home, join_file: Path, *, url: str | None = None, replaces: bool = False) -> HubFile:
    """Take `join_file` as the hub of `home`; `url` overrides its address.

    Raises `CallerError` if it is not a join file, and if `home` has joined as another site or another hub's, unless
    `replaces`.
    """
    hub = _read(join_file, home.hub_path)
    if url is not None:
        hub.use_address(url)
    elif hub.address is not None:
        _checked(hub.address)
    before = _joined_before(home)
    if before is not None and (before.site, before.hub_id) != (hub.site, hub.hub_id) and not replaces:
        raise CallerError(
            f"this site has joined {_named(before)}; {join_file} is for {_named(hub)}",
            "if it shall leave that hub for this one, say --replace",
        )
    hub.save()
    return hub


def read_join_file(join_file: Path) -> HubFile:
    """Return what a join file says; raise `CallerError` if it is none."""
    return _read(join_file, join_file)


def _joined_before(home: Home) -> HubFile | None:
    try:
        return load_hub(home)
    except CallerError:  # what is there can't be read: the good file takes its place
        return None


def _named(hub: HubFile) -> str:
    place = f" at {hub.address}" if hub.address is not None else ""
    return f"the hub {hub.hub_id.hex()}{place} as {hub.site}"


def _checked(url: str) -> str:
    """Return `url`; raise `CallerError` if it can't be the address of a hub."""
    from cmf_link.address import read_address  # here: `status` needs none

    if re.search(r"\s", url):  # which no name of a host has
        raise CallerError(f"{url!r} is not an address of a hub", "write it as nats://HOST:PORT")
    read_address(url)
    return url


def _read(path: Path, kept_at: Path) -> HubFile:
    with store_errors(path):
        content = path.read_bytes()
    try:
        fields = json.loads(content)
    except ValueError as error:
        raise CallerError(f"{path} is not a join file: it is not JSON", _HINT) from error
    if not isinstance(fields, dict):
        raise CallerError(f"{path} is not a join file", _HINT)
    version = fields.get("version")
    if version != JOIN_VERSION:
        raise CallerError(
            f"{path} is not a join file of version {JOIN_VERSION}: its version is {version!r}",
            _HINT if version is None else "install a release of cmf-sync that is as new as the hub's",
        )
    has_link = fields.get("url") is not None or fields.get("login") is not None
    return HubFile(
        kept_at,
        site=_text(path, fields, "site", _SITE),
        url=_text(path, fields, "url", re.compile(r"\S+")) if has_link else None,
        hub_id=bytes.fromhex(_text(path, fields, "hub_id", _HUB_ID)),
        hub_key=bytes.fromhex(_text(path, fields, "hub_key", _HUB_KEY)),
        login=_text(path, fields, "login", _LOGIN) if has_link else None,
        token=_optional(path, fields, "token"),
        ca=_optional(path, fields, "ca"),
    )


def _text(path: Path, fields: dict[str, object], key: str, form: re.Pattern[str]) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not form.fullmatch(value):
        raise CallerError(f"{path} is not a join file: its {key!r} is missing or wrong", _HINT)
    return value


def _optional(path: Path, fields: dict[str, object], key: str) -> str | None:
    value = fields.get(key)
    if value is not None and not isinstance(value, str):
        raise CallerError(f"{path} is not a join file: its {key!r} is wrong", _HINT)
    return value
