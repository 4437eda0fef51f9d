"""Certificates of a hub's own CA that it would not make itself: expired, for other hosts, another CA's."""

from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from cmf_hub.accounts import CA_FILE, SERVER_FILE
from cmf_hub.certificates import (
    CA_KEY_FILE,
    certificate_pem,
    key_pem,
    make_authority,
    make_server_certificate,
)


def new_authority(now: datetime) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """Return the key and the certificate of a CA that nobody has heard of."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key, make_authority(key, now)


def read_authority(folder: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """Return the key and the certificate of the CA in a hub's `tls` folder."""
    key = load_pem_private_key((folder / CA_KEY_FILE).read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key, x509.load_pem_x509_certificate((folder / CA_FILE).read_bytes())


def put_certificate(
    folder: Path,
    made: datetime,
    names: frozenset[str],
    authority: tuple[ec.EllipticCurvePrivateKey, x509.Certificate] | None = None,
) -> None:
    """Give a hub's server a certificate as made at another time, for these hosts, by its CA or by another."""
    ca_key, ca = authority or read_authority(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = make_server_certificate(ca_key, ca, key.public_key(), names, made)
    (folder / SERVER_FILE).write_text(key_pem(key) + certificate_pem(certificate))


def server_certificate(folder: Path) -> x509.Certificate:
    """Return the certificate that lies in a hub's `tls` folder."""
    return x509.load_pem_x509_certificate((folder / SERVER_FILE).read_bytes())
