"""What is signed, and how it is checked (protocol/README.md, sections 5, 6 and 10): Ed25519 through PyNaCl. Pure.

Rules
- Every statement is a domain tag, a zero byte, and canonical bytes, so that no signature serves twice.
- PyNaCl is imported when a signature is made or checked: recording an event needs none.
- The signing key is never a NATS login, which signs whatever nonce a server sends.
"""

from typing import NamedTuple

from cmf_protocol.encoding import Value, encode

SEGMENT_TAG = b"cmf-sync segment v1\0"
SUCCESSION_TAG = b"cmf-sync succession v1\0"
HELLO_TAG = b"cmf-sync hello v1\0"
KEY_BYTES = 32
SEED_BYTES = 32
SIGNATURE_BYTES = 64


class Signer:
    """A site's signing key, made of its 32-byte seed."""

    def __init__(self, seed: bytes) -> None:
        from nacl.signing import SigningKey

        self._key = SigningKey(seed)
        self.public_key = bytes(self._key.verify_key)

    def sign(self, tag: bytes, statement: Value) -> bytes:
        """Return the signature (64 bytes) of a statement under its domain tag."""
        return bytes(self._key.sign(tag + encode(statement)).signature)


def verifies(public_key: bytes, signature: bytes, tag: bytes, statement: Value) -> bool:
    """Tell if the signature is that key's over this statement; False for malformed keys too."""
    if len(public_key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    from nacl.exceptions import BadSignatureError
    from nacl.signing import VerifyKey

    try:
        VerifyKey(public_key).verify(tag + encode(statement), signature)
    except (BadSignatureError, ValueError, TypeError):
        return False
    return True


class Succession(NamedTuple):
    """What a log's first event says of the log that it goes on from; `signature` is None for a bare claim."""

    log_id: bytes
    sequence: int
    event_id: bytes
    reason: str
    signature: bytes | None

    def statement(self, new_log_id: bytes, new_key: bytes) -> Value:
        """Return what the predecessor's key signs."""
        return [new_log_id, new_key, self.log_id, self.sequence, self.event_id, self.reason]

    def proven_by(self, key: bytes, new_log_id: bytes, new_key: bytes) -> bool:
        """Tell if the predecessor's `key` signed this succession of the new log."""
        if self.signature is None:
            return False
        return verifies(key, self.signature, SUCCESSION_TAG, self.statement(new_log_id, new_key))

    def body(self) -> dict[str, Value]:
        """Return the map that `log.opened` holds under `succeeds`."""
        parts: dict[str, Value] = {
            "event": self.event_id,
            "log": self.log_id,
            "reason": self.reason,
            "sequence": self.sequence,
        }
        if self.signature is not None:
            parts["signature"] = self.signature
        return parts

    @classmethod
    def from_body(cls, parts: Value) -> "Succession | None":
        """Return the succession in a `log.opened` body's `succeeds`, or None if it is malformed."""
        if type(parts) is not dict:
            return None
        log_id, sequence, event_id = parts.get("log"), parts.get("sequence"), parts.get("event")
        reason, signature = parts.get("reason"), parts.get("signature")
        if not (type(log_id) is bytes and len(log_id) == 16 and type(event_id) is bytes and len(event_id) == 32):
            return None
        if type(sequence) is not int or sequence < 1 or type(reason) is not str:
            return None
        if "signature" in parts and (type(signature) is not bytes or len(signature) != SIGNATURE_BYTES):
            return None
        return cls(log_id, sequence, event_id, reason, signature)


def sign_succession(
    predecessor: Signer,
    log_id: bytes,
    sequence: int,
    event_id: bytes,
    reason: str,
    *,
    new_log_id: bytes,
    new_key: bytes,
) -> Succession:
    """Return the proven succession of a new log after the event (log id, sequence, event id), by that log's key."""
    bare = Succession(log_id, sequence, event_id, reason, None)
    return bare._replace(signature=predecessor.sign(SUCCESSION_TAG, bare.statement(new_log_id, new_key)))
