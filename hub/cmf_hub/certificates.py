"""The hub's TLS: a CA of its own, made once, and the server's certificate, which renews itself.

ca.key                the CA's key: whoever has it can pose as this hub     (0600)
ca.pem                the CA's certificate, which join files carry          (0600)
server.pem            the server's key and certificate                      (0600)

Rules
- The CA stays: join files carry it, so another one would shut out every site. Lost with the data folder's `tls/`, it
  can't be made again; lost without its key (`ca.key`), it can: same key, same name, and old join files still hold.
- Key and certificate are in one file, put in place in one step, so that no server ever reads half a pair.
- When to renew is a pure function of the certificate, the hosts that it must name, and the time.
- Only `serve` imports this module: nothing else needs the package `cryptography`.
"""

import ipaddress
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cmf_hub.accounts import CA_FILE, SERVER_FILE
from cmf_hub.broker_files import folder_errors, put_in_place, write_draft
from cmf_protocol.errors import StoreError

CA_KEY_FILE = "ca.key"
CA_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cmf-hub CA")])
SERVER_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cmf-hub")])
CA_LIFE = timedelta(days=3650)
#: Short, since nothing revokes a server's certificate: a stolen one is of use for so long at most.
SERVER_LIFE = timedelta(days=90)
#: Certificates hold from so long before they were made: clocks at sites may be late.
CLOCK_LATE_MAX = timedelta(days=1)
#: Sites need a new join file when the CA ends: told so long before, at each renewal.
CA_WARNING = timedelta(days=365)

logger = logging.getLogger("cmf_hub")

_Read = TypeVar("_Read")


class Certificates:
    """The CA and the server's certificate in one folder, for one set of hosts."""

    def __init__(self, folder: Path, names: frozenset[str]) -> None:
        self.folder = folder
        self._names = names

    def renew(self, now: datetime) -> str | None:
        """Make what is missing or due at `now` (UTC); return why the server's certificate is new, None if it is not.

        Raises `StoreError` if a file can't be read or written.
        """
        with folder_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            key, ca = self._authority(now)
            reason = self._reason(ca, now)
            if reason is not None:
                logger.info("the NATS server gets a new certificate: %s", reason)
                if ca.not_valid_after_utc - now < CA_WARNING:
                    logger.warning("the hub's CA ends on %s, and with it every join file", _day(ca.not_valid_after_utc))
                server_key = ec.generate_private_key(ec.SECP256R1())
                certificate = make_server_certificate(key, ca, server_key.public_key(), self._names, now)
                self._write(SERVER_FILE, key_pem(server_key) + certificate_pem(certificate))
        return reason

    def _authority(self, now: datetime) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        """Return the CA's key and certificate, made now if there are none."""
        key_file, file = self.folder / CA_KEY_FILE, self.folder / CA_FILE
        if not key_file.exists():
            if file.exists():
                raise StoreError(
                    f"{key_file} is missing, so no certificate can be made that sites would trust",
                    f"bring it back from a copy; or remove {self.folder}, and give every site a new join file",
                )
            self._write(CA_KEY_FILE, key_pem(ec.generate_private_key(ec.SECP256R1())))
        key = _read(key_file, _load_key, key_file.read_bytes())
        if not file.exists():
            self._write(CA_FILE, certificate_pem(make_authority(key, now)))
        ca = _read(file, x509.load_pem_x509_certificate, file.read_bytes())
        if ca.public_key() != key.public_key():
            raise StoreError(f"{key_file} is not the key of {file}", "bring both back from one copy")
        if now >= ca.not_valid_after_utc:
            raise StoreError(
                f"the hub's CA in {file} ended on {_day(ca.not_valid_after_utc)}",
                f"check this machine's clock; else remove {self.folder}, and give every site a new join file",
            )
        return key, ca

    def _reason(self, ca: x509.Certificate, now: datetime) -> str | None:
        try:
            content = (self.folder / SERVER_FILE).read_bytes()
        except FileNotFoundError:
            return "there was none"
        try:
            held, key = x509.load_pem_x509_certificate(content), _load_key(content)
        except ValueError:
            return "the one before can't be read"
        if held.public_key() != key.public_key():
            return "the one before does not fit its key"
        return reason_to_renew(held, ca, self._names, now)

    def _write(self, name: str, content: str) -> None:
        draft = self.folder / f"{name}.draft"
        write_draft(draft, content)
        put_in_place(draft, self.folder / name)


def reason_to_renew(held: x509.Certificate, ca: x509.Certificate, names: frozenset[str], now: datetime) -> str | None:
    """Return why the server's certificate `held` must be replaced at `now`, None if it need not be yet."""
    begin, end = held.not_valid_before_utc, held.not_valid_after_utc
    try:
        held.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return "the one before is another CA's"
    if names_of(held) != names:
        return "the hub's addresses have changed"
    if now < begin:
        return "the one before is not yet valid"
    if end - now < (end - begin) / 3:
        return f"the one before ends on {_day(end)}"
    return None


def make_authority(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    """Return the certificate of a CA with this key, for ten years, that can sign servers' and nothing else."""
    begin = now - CLOCK_LATE_MAX
    return (
        _builder(CA_NAME, CA_NAME, key.public_key(), begin, begin + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def make_server_certificate(
    ca_key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    key: ec.EllipticCurvePublicKey,
    names: frozenset[str],
    now: datetime,
) -> x509.Certificate:
    """Return a certificate for a server at these hosts, for 90 days at most, never longer than the CA's."""
    begin = now - CLOCK_LATE_MAX
    end = min(begin + SERVER_LIFE, ca.not_valid_after_utc)
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        _builder(SERVER_NAME, ca.subject, key, begin, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in sorted(names)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(by, critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def names_of(certificate: x509.Certificate) -> frozenset[str]:
    """Return the hosts that a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    addresses = (str(address) for address in names.get_values_for_type(x509.IPAddress))
    return frozenset({*names.get_values_for_type(x509.DNSName), *addresses})


def certificate_pem(certificate: x509.Certificate) -> str:
    """Return a certificate as text."""
    return certificate.public_bytes(Encoding.PEM).decode("ascii")


def key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """Return a private key as text, not encrypted: the file's mode guards it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _load_key(content: bytes) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(content, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not a key on an elliptic curve")
    return key


def _day(time: datetime) -> str:
    return f"{time:%Y-%m-%d}"


def _read(file: Path, load: Callable[[bytes], _Read], content: bytes) -> _Read:
    try:
        return load(content)
    except ValueError as error:
        raise StoreError(f"{file} can't be read: {error}", "bring it back from a copy") from error
