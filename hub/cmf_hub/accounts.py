"""The configuration of the embedded NATS server as text: one account per site that imports only its own subjects.

Rules
- Pure: values in, text out, no file is touched (broker_files.py does that).
- Why accounts and not permissions: permissions check what a site publishes to, but not the reply subject that it
  asks the answer on, and through that one site can make the server write into another's subject
  (nats-io/nats-server issue 8274). What is not imported can't be named at all.
- A site's name and login are checked here, since they end up in a configuration file.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cmf_hub.addresses import Addresses
from cmf_link.address import read_address
from cmf_protocol.errors import CallerError, StoreError

#: Every enrolled site that may log in: its name and the public key of its NATS login. A function, so that
#: whoever writes the configuration asks inside the lock, and the last to write has the newest list.
Sites = Callable[[], Mapping[str, str]]

SITE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
PUBLIC_KEY = re.compile(r"U[A-Z2-7]{55}")

PID_FILE = "nats-server.pid"
LOG_FILE = "nats-server.log"
STORE_FOLDER = "jetstream"
#: Beside the server's folder, if it speaks TLS (certificates.py): the server's key and certificate, the CA's certificate.
TLS_FOLDER = "tls"
SERVER_FILE = "server.pem"
CA_FILE = "ca.pem"

#: A segment is at most 512 KiB of events before compression, an event 256 KiB: twice the larger leaves room for
#: what does not compress, signatures and answers; it is also what NATS itself advises not to exceed.
PAYLOAD_BYTES_MAX = 1 << 20
#: A protocol line: subjects are short, but a site's name may have 63 characters and a reply subject 100.
CONTROL_LINE_BYTES_MAX = 4096
#: One message to a site on a slow line: 512 KiB at 64 kbit/s take 64 s; NATS would cut it off after 10 s.
WRITE_TIMEOUT_S = 90
#: How long a login may take, and TLS before it: satellite lines need more than the default of 2 s.
LOGIN_TIMEOUT_S = 10
#: How often the server asks whether a silent client still lives, and cuts it off after the second time, s.
PING_EVERY_S = 30
#: The server's own text log, rotated at this size, bytes, and how many of them are kept.
LOG_BYTES_MAX = 8_000_000
LOG_FILES_MAX = 3

_SETTINGS_MARK = "# settings: "


@dataclass(frozen=True)
class Settings:
    """Where the server listens and is reached, and the public key of the hub's own login."""

    addresses: Addresses
    hub_public: str


def configuration(settings: Settings, folder: Path, sites: Mapping[str, str]) -> str:
    """Return the server's configuration file; everything that it keeps is in `folder` (absolute), its TLS beside that.

    Raises `CallerError` for a site's name or a public key that can't be one.
    """
    _check(settings.hub_public, sites)
    names = sorted(sites)
    return "\n".join(
        [
            "# Written by cmf-hub at every change: edits are lost.",
            _SETTINGS_MARK + _settings_line(settings),
            _server(settings, folder),
            "accounts {",
            _hub_account(settings.hub_public, names),
            *(_site_account(name, sites[name]) for name in names),
            "}",
            "",
        ]
    )


def read_settings(text: str) -> Settings:
    """Return the settings that a configuration was made with. Raises `StoreError` if it is not one of ours."""
    line = next((line for line in text.splitlines() if line.startswith(_SETTINGS_MARK)), "")
    try:
        found = json.loads(line.removeprefix(_SETTINGS_MARK))
        addresses = Addresses(read_address(found["listen"]), read_address(found["advertised"]))
        return Settings(addresses, found["hub_public"])
    except (ValueError, TypeError, KeyError, AttributeError, CallerError) as error:
        raise StoreError(
            "the NATS server's configuration was not written by cmf-hub", "restart cmf-hub serve: it writes a new one"
        ) from error


def _settings_line(settings: Settings) -> str:
    return json.dumps(
        {
            "listen": settings.addresses.listen.url,
            "advertised": settings.addresses.advertised.url,
            "hub_public": settings.hub_public,
        }
    )


def _check(hub_public: str, sites: Mapping[str, str]) -> None:
    for name, public in [("hub", hub_public), *sites.items()]:
        if not SITE_NAME.fullmatch(name):
            raise CallerError(f"{name!r} can't be a site's name", "use a-z, 0-9 and -, at most 63 characters")
        if not PUBLIC_KEY.fullmatch(public):
            raise CallerError(f"{public!r} is not the public key of a NATS login ({name})", "it begins with U")


def _server(settings: Settings, folder: Path) -> str:
    # sync_interval: by default JetStream syncs every two minutes, and a power cut takes what was acknowledged
    # since (nats-io/nats-server issue 7564).
    return f"""\
host: {json.dumps(settings.addresses.listen.host)}
port: {settings.addresses.listen.port}
pid_file: {_quoted(folder / PID_FILE)}
log_file: {_quoted(folder / LOG_FILE)}
logfile_size_limit: {LOG_BYTES_MAX}
logfile_max_num: {LOG_FILES_MAX}
max_payload: {PAYLOAD_BYTES_MAX}
max_control_line: {CONTROL_LINE_BYTES_MAX}
write_deadline: "{WRITE_TIMEOUT_S}s"
ping_interval: "{PING_EVERY_S}s"
authorization {{ timeout: {LOGIN_TIMEOUT_S} }}
{_tls(settings.addresses, folder)}
jetstream {{ store_dir: {_quoted(folder / STORE_FOLDER)}, sync_interval: always }}"""


def _tls(addresses: Addresses, folder: Path) -> str:
    if not addresses.tls:
        return "# plain: on this machine only"
    file = _quoted(folder.with_name(TLS_FOLDER) / SERVER_FILE)  # key and certificate are in one file
    return f"tls {{ cert_file: {file}, key_file: {file}, timeout: {LOGIN_TIMEOUT_S} }}"


def _hub_account(hub_public: str, names: list[str]) -> str:
    exports = "\n".join(_exports(name) for name in names)
    return f"""\
  HUB {{
    jetstream: enabled
    users: [ {{ nkey: {hub_public} }} ]
    exports: [
{exports}
    ]
  }}"""


def _exports(site: str) -> str:
    to = f'accounts: [ "SITE_{site}" ]'
    return f"""\
      {{ service: "cmf.v1.log.{site}", {to} }}
      {{ service: "cmf.v1.rpc.{site}.>", response_type: stream, {to} }}
      {{ stream: "cmf.v1.confirm.{site}", {to} }}
      {{ stream: "cmf.v1.notice.{site}", {to} }}"""


def _site_account(site: str, public: str) -> str:
    return f"""\
  "SITE_{site}" {{
    users: [ {{ nkey: {public} }} ]
    imports: [
      {{ service: {{ account: HUB, subject: "cmf.v1.log.{site}" }} }}
      {{ service: {{ account: HUB, subject: "cmf.v1.rpc.{site}.>" }} }}
      {{ stream: {{ account: HUB, subject: "cmf.v1.confirm.{site}" }} }}
      {{ stream: {{ account: HUB, subject: "cmf.v1.notice.{site}" }} }}
    ]
  }}"""


def _quoted(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)
