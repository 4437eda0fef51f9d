"""A receipt: what a hub holds of a site's logs, signed by the hub, to be carried back as a file (protocol/README.md, section 11). Pure.

Rules
- It is worth what its key is worth: whoever reads it compares hub id and key with those of its join file (`verify_receipt`).
- A confirmation in it counts like one that came over the link: only where the own event at that sequence has that id.
"""

from typing import NamedTuple

from cmf_protocol.encoding import Value, decode, encode
from cmf_protocol.errors import DecodeError, IntegrityError
from cmf_protocol.forms import array_of, bin_of, is_bytes, is_integer, is_map, is_text, part, row_of
from cmf_protocol.messages import Confirmation, Refusal
from cmf_protocol.signing import KEY_BYTES, SIGNATURE_BYTES, Signer, verifies

RECEIPT_MAGIC = b"CMFRCPT1"
RECEIPT_VERSION = 1
RECEIPT_TAG = b"cmf-sync receipt v1\0"


_IS_CONFIRMATIONS = array_of(row_of(bin_of(16), is_integer, bin_of(32)))
#: A malformed segment has no log to name.
_IS_REFUSALS = array_of(row_of(is_bytes, is_integer, is_bytes, is_text, is_text))


class Receipt(NamedTuple):
    """What a hub says that it holds, and when (µs UTC); `statement` is what its signature covers, as it was written."""

    hub_id: bytes
    incarnation: bytes
    key: bytes
    time_us: int
    confirmed: tuple[Confirmation, ...]
    refused: tuple[Refusal, ...]
    statement: Value
    signature: bytes


def sign_receipt(
    signer: Signer,
    *,
    hub_id: bytes,
    incarnation: bytes,
    time_us: int,
    confirmed: tuple[Confirmation, ...],
    refused: tuple[Refusal, ...],
) -> bytes:
    """Return the bytes of a receipt by the hub's own key."""
    statement: Value = {
        "confirmed": [list(row) for row in confirmed],
        "hub": hub_id,
        "incarnation": incarnation,
        "key": signer.public_key,
        "refused": [list(row) for row in refused],
        "time": time_us,
        "v": RECEIPT_VERSION,
    }
    return RECEIPT_MAGIC + encode([statement, signer.sign(RECEIPT_TAG, statement)])


def decode_receipt(data: bytes) -> Receipt:
    """Return the receipt of these bytes, its signature not checked; raise `DecodeError` for any others."""
    if not data.startswith(RECEIPT_MAGIC):
        raise DecodeError("this file is not a receipt")
    try:
        parts = decode(data[len(RECEIPT_MAGIC) :])
    except DecodeError as error:
        raise DecodeError(f"this receipt was cut or altered: {error}") from error
    if type(parts) is not tuple or len(parts) != 2:
        raise DecodeError("a receipt is a statement and a signature")
    statement, signature = parts
    if not is_map(statement) or not bin_of(SIGNATURE_BYTES)(signature):
        raise DecodeError("a receipt's statement or signature is malformed")
    if statement.get("v") != RECEIPT_VERSION:
        raise DecodeError(f"a receipt is of version {RECEIPT_VERSION}: this one says {statement.get('v')!r}")
    return Receipt(
        part(statement, "hub", bin_of(16)), part(statement, "incarnation", bin_of(16)),
        part(statement, "key", bin_of(KEY_BYTES)), part(statement, "time", is_integer),
        tuple((row[0], row[1], row[2]) for row in part(statement, "confirmed", _IS_CONFIRMATIONS)),
        tuple(Refusal._make(row[:5]) for row in part(statement, "refused", _IS_REFUSALS)), statement, signature,
    )  # fmt: skip


def verify_receipt(receipt: Receipt, *, hub_id: bytes, hub_key: bytes) -> None:
    """Raise `IntegrityError` unless this is the receipt of the hub with this id, signed with this key."""
    if receipt.hub_id != hub_id:
        raise IntegrityError(
            f"this receipt is of another hub ({receipt.hub_id.hex()})", f"take one of the hub {hub_id.hex()}"
        )
    if receipt.key != hub_key:
        raise IntegrityError(
            f"this receipt is signed with another key ({receipt.key.hex()[:12]}…) than the hub's",
            "ask the hub's operator who made it; if the hub was made anew, join with a new file",
        )
    if not verifies(receipt.key, receipt.signature, RECEIPT_TAG, receipt.statement):
        raise IntegrityError(
            "this receipt was altered: its signature does not verify", "have it made and carried again"
        )
