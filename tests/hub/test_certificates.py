import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from tests.support.tls import new_authority, put_certificate, read_authority, server_certificate

from cmf_hub.certificates import (
    CA_KEY_FILE,
    CA_LIFE,
    CLOCK_LATE_MAX,
    SERVER_LIFE,
    Certificates,
    certificate_pem,
    make_authority,
    make_server_certificate,
    names_of,
    reason_to_renew,
)
from cmf_link.transport import trust_in
from cmf_protocol.errors import CallerError, StoreError

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
NAMES = frozenset({"hub.example.org", "localhost", "10.0.0.1", "::1"})


def server(authority: tuple[ec.EllipticCurvePrivateKey, x509.Certificate], made: datetime = NOW) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    return make_server_certificate(*authority, key.public_key(), NAMES, made)


def verified(ca: x509.Certificate, certificate: x509.Certificate, host: str, at: datetime) -> None:
    """Verify as a strict stranger would (RFC 5280 as in the web's PKI): chain, usage, time and host."""
    builder = PolicyBuilder().store(Store([ca])).time(at.replace(tzinfo=None))
    subject = x509.DNSName(host)
    builder.build_server_verifier(subject).verify(certificate, [])


# --- what is made


def test_the_chain_verifies_for_each_host_while_it_lasts_and_for_no_other() -> None:
    authority = new_authority(NOW)
    certificate = server(authority)
    for at in (NOW, NOW - CLOCK_LATE_MAX + timedelta(minutes=1), NOW + 88 * DAY):
        verified(authority[1], certificate, "hub.example.org", at)
    for host, at, ca in (
        ("other.example.org", NOW, authority[1]),
        ("hub.example.org", NOW + 90 * DAY, authority[1]),
        ("hub.example.org", NOW - 2 * DAY, authority[1]),
        ("hub.example.org", NOW, new_authority(NOW)[1]),
    ):
        with pytest.raises(VerificationError):
            verified(ca, certificate, host, at)


def test_the_ca_signs_servers_only_and_a_server_signs_nothing() -> None:
    _, ca = authority = new_authority(NOW)
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    usage = ca.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign and not usage.digital_signature
    made = server(authority)
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not made.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert isinstance(ca.public_key(), ec.EllipticCurvePublicKey)


def test_a_server_certificate_lasts_90_days_at_most_and_never_longer_than_its_ca() -> None:
    key, ca = new_authority(NOW)
    assert ca.not_valid_after_utc - ca.not_valid_before_utc == CA_LIFE
    made = server((key, ca))
    assert made.not_valid_after_utc - made.not_valid_before_utc == SERVER_LIFE
    late = server((key, ca), NOW + CA_LIFE - 30 * DAY)
    assert late.not_valid_after_utc == ca.not_valid_after_utc


def test_names_and_addresses_are_both_named() -> None:
    assert names_of(server(new_authority(NOW))) == NAMES


# --- when it is renewed


def test_it_is_renewed_when_less_than_a_third_of_its_life_is_left() -> None:
    authority = new_authority(NOW)
    held = server(authority)
    due = held.not_valid_after_utc - SERVER_LIFE / 3
    assert reason_to_renew(held, authority[1], NAMES, NOW) is None
    assert reason_to_renew(held, authority[1], NAMES, due) is None
    for at in (due + timedelta(seconds=1), NOW + 200 * DAY):
        assert "ends on" in str(reason_to_renew(held, authority[1], NAMES, at))


def test_it_is_renewed_when_its_hosts_are_others() -> None:
    authority = new_authority(NOW)
    for names in (NAMES | {"new.example.org"}, NAMES - {"10.0.0.1"}):
        assert "addresses" in str(reason_to_renew(server(authority), authority[1], frozenset(names), NOW))


def test_it_is_renewed_when_the_ca_is_another_or_the_clock_was_wrong() -> None:
    authority = new_authority(NOW)
    held = server(authority)
    assert "another CA" in str(reason_to_renew(held, new_authority(NOW)[1], NAMES, NOW))
    assert "not yet valid" in str(reason_to_renew(held, authority[1], NAMES, NOW - 30 * DAY))


# --- the folder


def test_the_ca_is_made_once_and_the_server_certificate_again_and_again(tmp_path: Path) -> None:
    held = Certificates(tmp_path / "tls", NAMES)
    assert held.renew(NOW) == "there was none"
    files = {file.name: file.read_bytes() for file in held.folder.iterdir()}
    assert {*files} == {"ca.key", "ca.pem", "server.pem"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in held.folder.iterdir()} == {0o600}
    assert stat.S_IMODE(held.folder.stat().st_mode) == 0o700
    assert held.renew(NOW + 59 * DAY) is None
    assert {file.name: file.read_bytes() for file in held.folder.iterdir()} == files
    assert held.renew(NOW + 60 * DAY) is not None
    changed = {file.name for file in held.folder.iterdir() if file.read_bytes() != files[file.name]}
    assert changed == {"server.pem"}
    _, ca = read_authority(held.folder)
    verified(ca, server_certificate(held.folder), "hub.example.org", NOW + 60 * DAY)


@pytest.mark.parametrize("content", [b"", b"not a certificate", b"-----BEGIN CERTIFICATE-----\n"])
def test_a_damaged_server_certificate_is_made_anew(tmp_path: Path, content: bytes) -> None:
    held = Certificates(tmp_path, NAMES)
    held.renew(NOW)
    (tmp_path / "server.pem").write_bytes(content)
    assert "can't be read" in str(held.renew(NOW))
    assert held.renew(NOW) is None


def test_half_a_pair_is_made_anew(tmp_path: Path) -> None:
    held = Certificates(tmp_path, NAMES)
    held.renew(NOW)
    key = (tmp_path / "server.pem").read_text().partition("-----BEGIN CERTIFICATE")[0]
    put_certificate(tmp_path, NOW, NAMES)
    certificate = certificate_pem(server_certificate(tmp_path))
    (tmp_path / "server.pem").write_text(key + certificate)
    assert "does not fit its key" in str(held.renew(NOW))


def test_a_ca_that_lost_its_certificate_is_the_same_to_sites_as_before(tmp_path: Path) -> None:
    held = Certificates(tmp_path, NAMES)
    held.renew(NOW)
    _, before = read_authority(tmp_path)
    (tmp_path / "ca.pem").unlink()
    held.renew(NOW + 61 * DAY)
    verified(before, server_certificate(tmp_path), "hub.example.org", NOW + 61 * DAY)


def test_a_ca_without_its_key_is_told_and_nothing_is_put_in_its_place(tmp_path: Path) -> None:
    held = Certificates(tmp_path, NAMES)
    held.renew(NOW)
    key = (tmp_path / CA_KEY_FILE).read_bytes()
    before = (tmp_path / "ca.pem").read_bytes()
    (tmp_path / CA_KEY_FILE).unlink()
    with pytest.raises(StoreError, match=r"ca\.key is missing") as caught:
        held.renew(NOW)
    assert "copy" in caught.value.hint
    for content, said in ((key[:40], "can't be read"), (b"", "can't be read")):
        (tmp_path / CA_KEY_FILE).write_bytes(content)
        with pytest.raises(StoreError, match=said):
            held.renew(NOW)
    Certificates(tmp_path / "other", NAMES).renew(NOW)
    (tmp_path / CA_KEY_FILE).write_bytes((tmp_path / "other" / CA_KEY_FILE).read_bytes())
    with pytest.raises(StoreError, match="is not the key of"):
        held.renew(NOW)
    assert (tmp_path / "ca.pem").read_bytes() == before


def test_the_end_of_the_ca_is_told_a_year_before_and_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = Certificates(tmp_path, NAMES)
    held.renew(NOW)
    held.renew(NOW + CA_LIFE - 400 * DAY)
    assert "CA ends" not in caplog.text
    held.renew(NOW + CA_LIFE - 300 * DAY)
    assert "the hub's CA ends on 2036-02-26" in caplog.text
    with pytest.raises(StoreError, match="ended on 2036-02-26"):
        held.renew(NOW + CA_LIFE)


# --- the site's side


def test_a_site_trusts_the_join_files_ca_only_and_checks_the_host() -> None:
    _, ca = new_authority(NOW)
    context = trust_in(certificate_pem(ca))
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert len(context.get_ca_certs()) == 1


@pytest.mark.parametrize("text", ["", "no PEM", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n", "ü"])
def test_what_is_no_ca_is_refused(text: str) -> None:
    with pytest.raises(CallerError, match="not a certificate"):
        trust_in(text)


def test_an_authority_is_told_by_its_key_not_by_its_name() -> None:
    one, other = new_authority(NOW), new_authority(NOW)
    assert one[1].subject == other[1].subject
    with pytest.raises(VerificationError):
        verified(other[1], server(one), "hub.example.org", NOW)
    verified(make_authority(one[0], NOW + DAY), server(one), "hub.example.org", NOW + DAY)
