"""NATS logins: the nkey pair with which a site or the hub signs in, and nothing else.

Rule: a client signs whatever nonce the server sends, so this key must never sign anything of ours.
"""

import secrets
from dataclasses import dataclass, field

import nkeys

from cmf_protocol.errors import CallerError

SEED_BYTES = 32


@dataclass(frozen=True)
class Login:
    """A user's nkey pair as NATS writes it: `public` begins with U, `seed` with SU and is secret."""

    public: str
    seed: str = field(repr=False)  # kept out of logs and tracebacks


def new_login() -> Login:
    """Make a new login from the system's randomness."""
    seed: bytes = nkeys.encode_seed(secrets.token_bytes(SEED_BYTES), nkeys.PREFIX_BYTE_USER)
    return login_from_seed(seed.decode())


def login_from_seed(seed: str) -> Login:
    """Return the pair that belongs to `seed`. Raises `CallerError` if it is not a user's seed."""
    try:
        public: bytes = nkeys.from_seed(bytearray(seed.strip().encode())).public_key
    except Exception as error:  # nkeys lets ValueError, its own and codec errors out
        raise CallerError(
            "that is not a NATS login seed", "a seed begins with SU: use the join file as it came"
        ) from error
    if not public.startswith(b"U"):
        raise CallerError("that NATS seed is not a user's", "a user's seed begins with SU")
    return Login(public=public.decode(), seed=seed.strip())
