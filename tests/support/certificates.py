"""Certificates that no sound authority issues, for servers that show them."""

from __future__ import annotations

import datetime
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

_NOW = datetime.datetime.now(datetime.UTC)
_MONTH = datetime.timedelta(30)
_SIGNS_CERTIFICATES = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True)
class Certified:
    """A certificate, and the key that it is for."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        """The certificate alone."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def whole_pem(self) -> bytes:
        """The certificate and its key."""
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return self.pem + key


def authority(name: str = "Root") -> Certified:
    """An authority that may sign others."""
    return _signed(name, None, x509.BasicConstraints(ca=True, path_length=None))


def self_signed(name: str) -> Certified:
    """A server's certificate that nobody vouches for."""
    return _signed(name, None, x509.SubjectAlternativeName([x509.DNSName(name)]))


def without_names(name: str, by: Certified) -> Certified:
    """A server's certificate whose name stands in the subject alone."""
    return _signed(name, by, x509.BasicConstraints(ca=False, path_length=None))


def served(shown: Certified, directory: Path) -> ssl.SSLContext:
    """The TLS settings of a server that shows a certificate."""
    file = directory / "server.pem"
    file.write_bytes(shown.whole_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


def _signed(name: str, by: Certified | None, extension: x509.ExtensionType) -> Certified:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(
        by.certificate.subject if by else subject,
        subject,
        key.public_key(),
        x509.random_serial_number(),
        _NOW - _MONTH,
        _NOW + _MONTH,
    ).add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    # What Python 3.13 wants of all but what is to be wrong (VERIFY_X509_STRICT; RFC 5280, 4.2.1).
    signer = by.key if by else key
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    of_signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    builder = builder.add_extension(own, critical=False).add_extension(of_signer, critical=False)
    if isinstance(extension, x509.BasicConstraints) and extension.ca:
        builder = builder.add_extension(_SIGNS_CERTIFICATES, critical=True)
    return Certified(builder.sign(signer, hashes.SHA256()), key)
