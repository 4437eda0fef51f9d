"""The one place where what nats-py, the operating system or a NATS server says becomes one of our errors.

Rules
- `HubUnreachable`: nothing was sent, or nobody took it. `AccessDenied`: this login or subject is refused, or the
  server can't be trusted: trying again soon changes neither.
  `BackPressure`: the buffer is full. Plain `LinkError`: unknown whether it arrived; the same bytes may be
  sent again.
- Every message names the address or the subject.
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import nats.errors

from cmf_link.address import Address
from cmf_link.transport import NoCaGiven, NoTlsOffered
from cmf_protocol.errors import (
    AccessDenied,
    BackPressure,
    CallerError,
    CmfError,
    HubUnreachable,
    LinkError,
    StoreError,
)

#: What servers write when they refuse a login or cut one: "Authorization Violation",
#: "User Authentication Revoked", "Account Authentication Expired", "Authentication Timeout" …
REFUSAL_WORDS = ("authorization violation", "authentication")
#: JetStream error codes that mean "not now": a limit of the stream or of the server is reached
#: (nats-server, server/errors.json): 10023 insufficient resources, 10047 insufficient storage, 10077 store
#: failed (where all limits of a stream end), 10122 and 10167 too much in flight.
FULL_CODES = frozenset({10023, 10047, 10077, 10122, 10167})
#: JetStream can't reserve what a stream's `max_bytes` asks for.
NO_ROOM_CODE = 10047

#: What is wrong with a certificate, in OpenSSL's numbers (x509_vfy.h, X509_V_ERR_…).
CERTIFICATE_NOT_YET_VALID = 9
CERTIFICATE_EXPIRED = 10
CERTIFICATE_FOR_OTHER_HOSTS = frozenset({62, 64})  # a name, an IP address

UNKNOWN_HINT = "it is not known whether it arrived: send the same again"
OFFLINE_HINT = "nothing is lost: it is tried again once the hub answers"


def connect_failure(error: BaseException, address: Address, *, reached: bool, greeted: bool) -> CmfError:
    """Return our error for a login that failed: was TCP `reached`, and had a NATS server `greeted` us?"""
    match error:
        case ssl.SSLCertVerificationError():
            return _untrusted(error, address)
        case NoTlsOffered():
            return AccessDenied(
                f"what listens at {address} offers no TLS, and this site's join file asks for it: nothing was sent",
                "check the address; if the hub was changed to plain NATS, a new join file is needed",
            )
        case NoCaGiven():
            return no_ca(address)
    text = _words(error)
    if any(word in text.lower() for word in REFUSAL_WORDS):
        return AccessDenied(
            f"the hub at {address} refuses this login ({text})",
            "the site was revoked, or this is another hub: ask the hub's operator for a new join file",
        )
    if greeted:
        return HubUnreachable(f"the hub at {address} broke off the login ({text})", OFFLINE_HINT)
    if reached:
        return HubUnreachable(
            f"what listens at {address} does not answer as a NATS server ({text})",
            "check host and port: it must be the hub's NATS address, not its HTTP address",
        )
    return HubUnreachable(
        f"nobody answers at {address} ({text})", "check the address, the network, and that the hub is running"
    )


def no_ca(address: Address) -> AccessDenied:
    """There is TLS at `address`, and no CA by which to know the hub."""
    return AccessDenied(
        f"the hub at {address} speaks TLS, and this login came without the CA to know it by: nothing was sent",
        "the join file is older than the hub's TLS: ask the hub's operator for a new one",
    )


def _untrusted(error: ssl.SSLCertVerificationError, address: Address) -> AccessDenied:
    """Return our error for a server whose certificate does not hold."""
    certificate = f"the certificate of the hub at {address}"
    if error.verify_code == CERTIFICATE_EXPIRED:
        return AccessDenied(
            f"{certificate} has expired",
            "check this machine's clock; else the hub's: `cmf-hub serve` makes a new one as soon as it starts",
        )
    if error.verify_code == CERTIFICATE_NOT_YET_VALID:
        return AccessDenied(
            f"{certificate} is not yet valid", "most likely a clock is wrong: check this machine's, then the hub's"
        )
    if error.verify_code in CERTIFICATE_FOR_OTHER_HOSTS:
        return AccessDenied(
            f"{certificate} is for other hosts, not for {address.host}",
            f"use the address in the join file, or have the hub started with --advertise {address}",
        )
    return AccessDenied(
        f"{certificate} was not made by the CA in this site's join file ({error.verify_message})",
        "another hub answers there, or this one got a new CA: ask its operator, and for a new join file then",
    )


@contextmanager
def link_errors(subject: str, address: Address) -> Iterator[None]:
    """Turn what nats-py raises while something is sent to `subject` into our errors."""
    try:
        yield
    except (TimeoutError, nats.errors.Error, OSError) as error:
        raise _send_failure(error, subject, address) from error


def _send_failure(error: Exception, subject: str, address: Address) -> CmfError:
    match error:
        case nats.errors.NoRespondersError():
            return HubUnreachable(
                f"nobody at {address} takes {subject}: the hub does not serve, or not this site any more",
                "the login works: most likely the hub is starting or stopped; else ask whether the site was revoked",
            )
        case nats.errors.BadSubjectError():
            return CallerError(f"{subject!r} is not a NATS subject")
        case nats.errors.MaxPayloadError():
            return CallerError(f"the message for {subject} is larger than {address} takes")
        case nats.errors.ConnectionClosedError() | nats.errors.OutboundBufferLimitError():
            return HubUnreachable(f"the connection to {address} is closed; nothing was sent to {subject}", OFFLINE_HINT)
        case TimeoutError():
            return LinkError(f"{address} did not answer on {subject} in time", UNKNOWN_HINT)
    return LinkError(f"{subject} at {address}: {_words(error)}", UNKNOWN_HINT)


def broken_off(subject: str, address: Address) -> LinkError:
    """The connection was lost while an answer was awaited."""
    return LinkError(f"the connection to {address} broke before {subject} was answered", UNKNOWN_HINT)


def refused_subject(subject: str, address: Address) -> AccessDenied:
    """The server said "permissions violation" for a subject."""
    return AccessDenied(
        f"{address} does not let this login use {subject}",
        "the NATS server's permissions must allow cmf.v1 subjects",
    )


def stream_refusal(subject: str, code: int, text: str) -> CmfError:
    """Return our error for a JetStream answer with error `code`."""
    if code in FULL_CODES:
        return BackPressure(f"the hub's buffer is full: {subject}: {text}", "wait and send it again; nothing is lost")
    return LinkError(
        f"JetStream refused {subject}: {text} (error {code})",
        "it was not stored: it is tried again; see the server's log",
    )


def no_room(stream: str, bytes_max: int) -> StoreError:
    """JetStream can't reserve the space that the buffer is to have."""
    return StoreError(
        f"the buffer {stream} can't reserve {bytes_max} bytes on the hub's disk",
        "free some space there, or give the buffer a smaller size",
    )


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).removeprefix("nats: ").strip("' \r\n")
    if text:
        return text
    return "timed out" if isinstance(error, TimeoutError) else type(error).__name__
