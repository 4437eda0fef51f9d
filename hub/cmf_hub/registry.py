"""Who may bring what: sites, their NATS logins, the signing keys bound to them.

Rules
- Kept beside the event store, never in a digest; a key is bound to one site, once and for ever.
- Read anew for each decision, so that another process's change counts at once.
- A join token is stored hashed, and binds one key: the same key may repeat it (its first answer may have been lost), another may not. A
  site whose disk was lost gets a new login and another token (`rejoin`), and so binds a further key.
- Carrying others' logs and accepting gaps (operating) are rights of their own; no site has them unless it is given them here.
"""

import hmac
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cmf_graph.database import connect, store_errors, transaction
from cmf_graph.locks import waiting_lock
from cmf_protocol.admit import Enrolled
from cmf_protocol.errors import AccessDenied, CallerError
from cmf_protocol.signing import SEED_BYTES, Signer

#: What a site's name may be: it is a subject token, a file name and a word in tables (design, section 3).
SITE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_TOKEN_BYTES = 32

#: The number of migrations of the registry.
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Site:
    """An enrolled site; `login` is its NATS user (None for one that only ever sends bundles), times in µs UTC."""

    name: str
    login: str | None
    created_us: int
    revoked_us: int | None
    may_carry: bool
    may_operate: bool
    keys: tuple[bytes, ...]

    @property
    def revoked(self) -> bool:
        """Whether nothing more is admitted from it."""
        return self.revoked_us is not None


@dataclass(frozen=True, slots=True)
class Imported:
    """What `import_sites` did, by name: added, given further keys, held already."""

    added: list[str]
    extended: list[str]
    unchanged: list[str]


class Registry:
    """The registry database of a hub."""

    def __init__(self, path: Path) -> None:
        self._name = str(path)
        with waiting_lock(Path(self._name + ".lock")):
            with store_errors(self._name):
                # before SQLite makes it: its journals get the same rights, and hold the same secrets
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._connection = connect(path)
            with store_errors(self._name):
                if self._connection.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
                    from cmf_hub import migrations

                    migrations.apply(migrations.REGISTRY, self._connection, SCHEMA_VERSION)

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def identity(self, new_login_seed: str | None = None) -> tuple[bytes, str]:
        """Return the hub's id (16 bytes) and its own NATS login seed, made once, from `new_login_seed`."""
        with transaction(self._connection, self._name):
            found = self._connection.execute("SELECT hub_id, login_seed FROM hub").fetchone()
            if found is None:
                if new_login_seed is None:
                    raise CallerError("this hub was never started", "start it once: cmf-hub serve")
                found = (os.urandom(16), new_login_seed)
                self._connection.execute(
                    "INSERT INTO hub (id, hub_id, login_seed, signing_seed) VALUES (1, ?, ?, ?)",
                    (*found, os.urandom(SEED_BYTES)),
                )
        return bytes(found[0]), str(found[1])

    def signer(self) -> Signer:
        """Return the hub's own signing key, made with its id; its NATS login never signs what the hub says."""
        with store_errors(self._name):
            found = self._connection.execute("SELECT signing_seed FROM hub").fetchone()
        if found is None:
            raise CallerError("this hub was never started", "start it once: cmf-hub serve")
        return Signer(bytes(found[0]))

    # -- sites -------------------------------------------------------------------------------------------------------

    def add(self, name: str, *, login: str | None, key: bytes | None, now_us: int) -> str | None:
        """Enrol a site and return its join token (None where `key` is bound at once)."""
        _check_name(name)
        token = None if key is not None else os.urandom(_TOKEN_BYTES).hex()
        with transaction(self._connection, self._name):
            if self._connection.execute("SELECT 1 FROM sites WHERE name = ?", (name,)).fetchone():
                raise CallerError(f"the site {name} is enrolled already", "choose another name; see cmf-hub site list")
            self._connection.execute(
                "INSERT INTO sites (name, login, token_hash, created_us) VALUES (?, ?, ?, ?)",
                (name, login, token and _hash(token), now_us),
            )
            if key is not None:
                self._bind(name, key, now_us)
        return token

    def remove(self, name: str) -> None:
        """Take back an enrolment that did not come about; nothing of it may be admitted yet."""
        with transaction(self._connection, self._name):
            self._connection.execute("DELETE FROM keys WHERE site = ?", (name,))
            self._connection.execute("DELETE FROM sites WHERE name = ?", (name,))

    def allow(self, name: str, *, carrier: bool | None = None, operator: bool | None = None) -> None:
        """Give or take the rights to carry others' logs and to accept gaps; None leaves one as it is."""
        with transaction(self._connection, self._name):
            self._must_exist(name)
            self._connection.execute(
                "UPDATE sites SET may_carry = coalesce(?, may_carry), may_operate = coalesce(?, may_operate) WHERE name = ?",
                (carrier, operator, name),
            )

    def _must_exist(self, name: str) -> None:
        if not self._connection.execute("SELECT 1 FROM sites WHERE name = ?", (name,)).fetchone():
            raise CallerError(f"there is no site {name}", "see cmf-hub site list")

    def revoke(self, name: str, now_us: int) -> None:
        """Refuse whatever of this site is not admitted yet; harmless if it is revoked."""
        with transaction(self._connection, self._name):
            self._must_exist(name)
            self._connection.execute(
                "UPDATE sites SET revoked_us = ?, token_hash = NULL WHERE name = ? AND revoked_us IS NULL",
                (now_us, name),
            )

    def sites(self) -> list[Site]:
        """Return all sites, by name."""
        with store_errors(self._name):
            rows = self._connection.execute(
                "SELECT name, login, created_us, revoked_us, may_carry, may_operate FROM sites ORDER BY name"
            ).fetchall()
            keys: dict[str, list[bytes]] = {}
            for key, site in self._connection.execute("SELECT key, site FROM keys ORDER BY bound_us"):
                keys.setdefault(site, []).append(key)
        return [
            Site(name, login, made, revoked, bool(carries), bool(operates), tuple(keys.get(name, ())))
            for name, login, made, revoked, carries, operates in rows
        ]

    def logins(self) -> dict[str, str]:
        """Return the NATS users of the sites that may connect: site → public nkey."""
        return {site.name: site.login for site in self.sites() if site.login and not site.revoked}

    def names_by_key(self) -> dict[bytes, str]:
        """Return the site of each bound key."""
        return {key: site.name for site in self.sites() for key in site.keys}

    def keys_of(self, site: str) -> list[bytes]:
        """Return the keys that are bound to a site, in the order in which they were."""
        with store_errors(self._name):
            rows = self._connection.execute("SELECT key FROM keys WHERE site = ? ORDER BY bound_us", (site,))
            return [row[0] for row in rows]

    # -- joining again -------------------------------------------------------------------------------------------------

    def rejoin(self, name: str, login: str) -> str:
        """Give a site a new NATS login in the place of its old one; return the token with which it binds a further key.

        Raises `CallerError` for a site that is not enrolled, or is revoked.
        """
        token = os.urandom(_TOKEN_BYTES).hex()
        with transaction(self._connection, self._name):
            self._must_exist(name)
            if (
                self._connection.execute("SELECT revoked_us FROM sites WHERE name = ?", (name,)).fetchone()[0]
                is not None
            ):
                raise CallerError(
                    f"the site {name} is revoked", "enrol it under another name: cmf-hub site add NAME -o FILE"
                )
            self._connection.execute(
                "UPDATE sites SET login = ?, token_hash = ? WHERE name = ?", (login, _hash(token), name)
            )
        return token

    def credentials(self, name: str) -> tuple[str | None, bytes | None]:
        """Return a site's NATS login and the hash of the token that it has not used yet; raise `CallerError` if there is no such site."""
        with store_errors(self._name):
            self._must_exist(name)
            found = self._connection.execute("SELECT login, token_hash FROM sites WHERE name = ?", (name,)).fetchone()
        return found[0], found[1]

    def restore_credentials(self, name: str, credentials: tuple[str | None, bytes | None]) -> None:
        """Take back a `rejoin` that did not come about."""
        with transaction(self._connection, self._name):
            self._connection.execute("UPDATE sites SET login = ?, token_hash = ? WHERE name = ?", (*credentials, name))

    # -- many at once --------------------------------------------------------------------------------------------------

    def import_sites(self, sites: Mapping[str, Sequence[bytes]], now_us: int) -> Imported:
        """Enrol sites by their keys, without login; one that is there with one of these keys gets the others. All, or none.

        Raises `CallerError` naming every site whose name has other keys here, or of which a key is another site's here.
        """
        done = Imported([], [], [])
        with transaction(self._connection, self._name):
            here = {site.name: set(site.keys) for site in self.sites()}
            owners = {key: name for name, keys in here.items() for key in keys}
            clashes = [name for name, keys in sites.items() if _clashes(name, keys, here, owners)]
            if clashes:
                raise CallerError(
                    f"these names or keys are other sites' here: {', '.join(clashes)}",
                    "nothing was enrolled; give the imported names a prefix with --prefix",
                )
            for name, keys in sites.items():
                self._import_site(name, keys, here.get(name), done, now_us)
        return done

    def _import_site(
        self, name: str, keys: Sequence[bytes], here: set[bytes] | None, done: Imported, now_us: int
    ) -> None:
        new = [key for key in keys if key not in (here or ())]
        if here is None:
            _check_name(name)
            self._connection.execute("INSERT INTO sites (name, created_us) VALUES (?, ?)", (name, now_us))
        for key in new:
            self._bind(name, key, now_us)
        (done.added if here is None else done.extended if new else done.unchanged).append(name)

    # -- keys --------------------------------------------------------------------------------------------------------

    def bind(self, site: str, key: bytes, token: str, now_us: int) -> None:
        """Bind a signing key with the site's token; raise `AccessDenied` if the token is not (or no more) good for it."""
        with transaction(self._connection, self._name):
            row = self._connection.execute("SELECT token_hash FROM sites WHERE name = ?", (site,)).fetchone()
            bound = self._connection.execute("SELECT site FROM keys WHERE key = ?", (key,)).fetchone()
            is_good = row is not None and row[0] is not None and hmac.compare_digest(row[0], _hash(token))
            if bound is not None and bound[0] == site:
                if is_good:  # a new login for the old key: whoever finds the join file binds no other with it
                    self._connection.execute("UPDATE sites SET token_hash = NULL WHERE name = ?", (site,))
                return
            if not is_good:
                raise AccessDenied(
                    f"the join token of {site} was used already, or is wrong",
                    f"have the hub's operator make a new join file: cmf-hub site rejoin {site} -o FILE",
                )
            self._bind(site, key, now_us)
            self._connection.execute("UPDATE sites SET token_hash = NULL WHERE name = ?", (site,))

    def _bind(self, site: str, key: bytes, now_us: int) -> None:
        bound = self._connection.execute("SELECT site FROM keys WHERE key = ?", (key,)).fetchone()
        if bound is not None:
            raise CallerError(f"this signing key is bound to the site {bound[0]}", "each site needs a key of its own")
        self._connection.execute("INSERT INTO keys VALUES (?, ?, ?)", (key, site, now_us))

    # -- what admit asks -----------------------------------------------------------------------------------------------

    def site_of(self, key: bytes) -> Enrolled | None:
        """Return the site that a signing key is bound to."""
        with store_errors(self._name):
            row = self._connection.execute(
                "SELECT s.name, s.revoked_us IS NOT NULL, s.may_operate FROM keys k JOIN sites s ON s.name = k.site WHERE k.key = ?",
                (key,),
            ).fetchone()
        return None if row is None else Enrolled(row[0], bool(row[1]), bool(row[2]))

    def may_carry(self, carrier: str | None, site: str) -> bool:
        """Tell if `carrier` may bring logs of `site`: itself, the operator (None), or one with that right."""
        if carrier is None or carrier == site:
            return True
        with store_errors(self._name):
            row = self._connection.execute(
                "SELECT may_carry AND revoked_us IS NULL FROM sites WHERE name = ?", (carrier,)
            ).fetchone()
        return row is not None and bool(row[0])


def _check_name(name: str) -> None:
    if not SITE_NAME.fullmatch(name):
        raise CallerError(
            f"{name!r} can't be a site's name", "use 1 to 63 lowercase letters, digits and dashes, no dash first"
        )


def _clashes(name: str, keys: Sequence[bytes], here: Mapping[str, set[bytes]], owners: Mapping[bytes, str]) -> bool:
    """Tell if a site to be imported is not the one of that name here, or one of its keys is another's."""
    is_other = name in here and here[name].isdisjoint(keys)
    return is_other or any(owners.get(key, name) != name for key in keys)


def _hash(token: str) -> bytes:
    return sha256(token.encode()).digest()
