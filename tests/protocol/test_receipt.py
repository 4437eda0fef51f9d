"""Receipts: of the hub that is meant, whole, or refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import second_decoder as second
from tests.support.strategies import SIGNERS, values

from cmf_protocol.encoding import encode
from cmf_protocol.errors import DecodeError, IntegrityError, PeerError
from cmf_protocol.messages import Refusal
from cmf_protocol.receipts import RECEIPT_MAGIC, RECEIPT_TAG, Receipt, decode_receipt, sign_receipt, verify_receipt

HUB, OTHER = SIGNERS[0], SIGNERS[1]
HUB_ID, INCARNATION = b"h" * 16, b"i" * 16
CONFIRMED = ((b"l" * 16, 12, b"e" * 32), (b"m" * 16, 1, b"f" * 32))
REFUSED = (Refusal(b"l" * 16, 13, b"g" * 32, "revoked", "the site is revoked"), Refusal(b"", 0, b"", "malformed", "?"))
STATEMENT: dict[str, Any] = {
    "confirmed": [list(row) for row in CONFIRMED], "hub": HUB_ID, "incarnation": INCARNATION, "key": HUB.public_key,
    "refused": [list(row) for row in REFUSED], "time": 1_750_000_000_000_000, "v": 1,
}  # fmt: skip


def receipt(**changes: Any) -> bytes:
    statement = {key: value for key, value in (STATEMENT | changes).items() if value is not ...}
    return RECEIPT_MAGIC + encode([statement, HUB.sign(RECEIPT_TAG, statement)])


def checked(data: bytes) -> Receipt:
    found = decode_receipt(data)
    verify_receipt(found, hub_id=HUB_ID, hub_key=HUB.public_key)
    return found


def test_a_receipt_says_what_went_in_to_both_decoders() -> None:
    data = sign_receipt(
        HUB, hub_id=HUB_ID, incarnation=INCARNATION, time_us=STATEMENT["time"], confirmed=CONFIRMED, refused=REFUSED
    )
    assert data == receipt()
    found = checked(data)
    assert (found.hub_id, found.incarnation, found.key, found.time_us) == (
        HUB_ID,
        INCARNATION,
        HUB.public_key,
        STATEMENT["time"],
    )
    assert (found.confirmed, found.refused) == (CONFIRMED, REFUSED)
    assert second.read_receipt(data) == STATEMENT | {"signed": True}


def test_a_receipt_of_another_hub_or_key_or_of_nobody_is_refused() -> None:
    with pytest.raises(IntegrityError, match="another hub"):
        checked(receipt(hub=b"x" * 16))
    with pytest.raises(IntegrityError, match="another key"):
        verify_receipt(decode_receipt(receipt()), hub_id=HUB_ID, hub_key=OTHER.public_key)
    forged = receipt(key=OTHER.public_key)  # signed by HUB, says that it was OTHER
    with pytest.raises(IntegrityError, match="altered"):
        verify_receipt(decode_receipt(forged), hub_id=HUB_ID, hub_key=OTHER.public_key)
    assert second.read_receipt(forged)["signed"] is False


@given(st.integers(0, len(receipt()) - 1), st.integers(1, 255))
def test_a_receipt_that_was_cut_or_altered_is_refused(at: int, mask: int) -> None:
    whole = receipt()
    with pytest.raises(PeerError):
        checked(whole[:at])
    with pytest.raises(PeerError):
        checked(whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :])
    with pytest.raises(PeerError):
        checked(whole + bytes([mask]))


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"v": ...},
        {"hub": b"short"},
        {"incarnation": ...},
        {"key": b"k" * 31},
        {"time": 1.5},
        {"confirmed": ...},
        {"confirmed": [[b"l" * 16, "1", b"e" * 32]]},
        {"confirmed": [[b"l" * 16, 1]]},
        {"refused": [[b"", 0, b"", "code"]]},
        {"refused": {}},
    ],
)
def test_a_statement_that_breaks_the_format_is_refused_though_it_is_signed(changes: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        decode_receipt(receipt(**changes))
    with pytest.raises(second.Broken):
        second.read_receipt(receipt(**changes))


def test_what_a_later_release_adds_is_covered_by_the_signature_and_ignored() -> None:
    longer = [[*row, "more"] for row in CONFIRMED]
    found = checked(receipt(more={"of": "it"}, confirmed=longer))
    assert found.confirmed == CONFIRMED


@given(values(max_leaves=6))
def test_any_value_is_a_receipt_or_refused(value: Any) -> None:
    for data in (RECEIPT_MAGIC + encode(value), RECEIPT_MAGIC + encode([value, b"s" * 64]), encode(value)):
        with pytest.raises(DecodeError):
            decode_receipt(data)
