"""The one tree of errors that cmf-sync raises, split by who must act.

    CmfError                      exit 1
    ├── CallerError               the caller gave something that can't be used        exit 2
    ├── StoreError                a local file, database or disk refused              exit 1
    ├── PeerError                 what another party sent is wrong                    exit 5
    │   ├── DecodeError             bytes that break the format
    │   └── IntegrityError          a digest, a chain or a signature does not hold
    └── LinkError                 the way to the hub                                  exit 4
        ├── HubUnreachable          nobody answers there
        ├── AccessDenied            the hub's server refuses this login or subject, or can't be trusted
        └── BackPressure            the hub's buffer is full: wait, nothing is lost

Rules
- Every message names the thing; every `hint` is one sentence that names the way out.
- A foreign error (sqlite3, nats, git, OS) becomes one of these at one place per library, with the original as its cause.
- Library code raises; only the command lines, the consumer and a run's capture decide what to do about it.
"""


class CmfError(Exception):
    """Base of all our errors: a message, a hint with the way out, and the exit code of a command that ends with it."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class CallerError(CmfError):
    """The caller gave something that can't be used: an argument, a file, a name."""

    exit_code = 2


class StoreError(CmfError):
    """A local file, database or disk refused; nothing was recorded by the call that raised this."""


class PeerError(CmfError):
    """What another party sent, or what a stored file holds, is wrong."""

    exit_code = 5


class DecodeError(PeerError):
    """Bytes that break the format (protocol/README.md)."""


class IntegrityError(PeerError):
    """A digest, a chain or a signature does not hold."""


class LinkError(CmfError):
    """The way to the hub failed; what was not confirmed stays in the outbox."""

    exit_code = 4


class HubUnreachable(LinkError):
    """Nobody answers at the hub's address."""


class AccessDenied(LinkError):
    """The hub's server refuses this login or subject, or can't be trusted."""


class BackPressure(LinkError):
    """The hub's buffer is full: wait and send again, nothing is lost."""
