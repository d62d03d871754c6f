"""A fleet's own certificates: an authority in the fleet folder signs the server's and the devices'.

    fleet/ca.crt, ca.key            the authority; whoever has ca.key can let anybody in
    fleet/server.crt, server.key    for the names and addresses that devices dial
    device.crt, device.key          for one device, whose name is the common name

ECDSA on P-256, which every TLS stack has. A server's certificate serves no client and a device's no server, so that a
device cannot pose as the server to another one.
"""

from __future__ import annotations

import ipaddress
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cutlayer.errors import ConfigError
from cutlayer.files import write_atomically

AUTHORITY_DAYS = 3650
"""Days that an authority is valid, longer than a fleet lives: a new authority means to visit every device."""
SERVER_DAYS = DEVICE_DAYS = 365
"""A lost key is worth nothing after a year, if nobody noticed before. `revoke` works at once."""
SKEW = timedelta(days=1)
"""Certificates begin this much earlier: the clock of a device that was switched off is behind."""


@dataclass(frozen=True, slots=True, repr=False)
class Issued:
    """A certificate and its key, PEM. Its repr shows neither.

    Attributes:
      certificate: what everybody may see.
      key: what only its owner may.
      fingerprint: SHA-256 of the certificate's DER bytes, in hex.
    """

    certificate: bytes
    key: bytes
    fingerprint: str


def make_authority(folder: Path, when: datetime, *, days: float = AUTHORITY_DAYS) -> None:
    """Writes the authority of a new fleet.

    Args:
      folder: The fleet folder.
      when: Now.
      days: How long it is valid.

    Raises:
      ConfigError: The folder has one.
    """
    if (folder / "ca.key").exists():
        raise ConfigError(
            f"fleet: expected a folder without an authority, got {folder / 'ca.key'}. Name another folder."
        )
    key, name = ec.generate_private_key(ec.SECP256R1()), _name("cutlayer fleet")
    usage = x509.KeyUsage(**_usage("key_cert_sign", "crl_sign"))
    builder = _builder(name, name, key.public_key(), key.public_key(), when, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    _write(folder, "ca", _issued(builder.add_extension(usage, critical=True), key, key))


def issue_server(folder: Path, hosts: Sequence[str], when: datetime, *, days: float = SERVER_DAYS) -> None:
    """Writes the server's certificate, in place of an earlier one.

    Args:
      folder: The fleet folder.
      hosts: The names and addresses by which devices dial the server.
      when: Now.
      days: How long it is valid.

    Raises:
      ConfigError: The folder has no authority, or a host is neither a name nor an address.
    """
    names = alternatives(hosts)
    _write(folder, "server", _signed(folder, "cutlayer server", ExtendedKeyUsageOID.SERVER_AUTH, names, when, days))


def server_hosts(folder: Path) -> list[str]:
    """The names and addresses of the server's certificate, in the order in which they were given.

    Args:
      folder: The fleet folder.

    Raises:
      ConfigError: It has no server's certificate.
    """
    try:
        return names_in(folder / "server.crt")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"fleet: expected a server's certificate (server.crt) in {folder}, got {type(error).__name__}. "
            "Make one with `cutlayer fleet init`, or `cutlayer fleet renew`."
        ) from error


def names_in(certificate: Path) -> list[str]:
    """The names and addresses in a certificate, in the order in which they were given.

    Args:
      certificate: The file, PEM.

    Raises:
      OSError: It cannot be read.
      ValueError: It is no certificate, or names nobody.
    """
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise ValueError(f"no names: {error}") from error
    return [str(name.value) for name in names]


def issue_device(folder: Path, name: str, when: datetime, *, days: float = DEVICE_DAYS) -> Issued:
    """A device's certificate. The roster lets it in (`Roster.add_certificate`); the caller writes it where it belongs.

    Args:
      folder: The fleet folder.
      name: The device's.
      when: Now.
      days: How long it is valid.

    Raises:
      ConfigError: The folder has no authority.
    """
    return _signed(folder, name, ExtendedKeyUsageOID.CLIENT_AUTH, [], when, days)


def _signed(
    folder: Path,
    name: str,
    purpose: x509.ObjectIdentifier,
    names: Sequence[x509.GeneralName],
    when: datetime,
    days: float,
) -> Issued:
    """A certificate that the folder's authority signs."""
    try:
        authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        signer = load_pem_private_key((folder / "ca.key").read_bytes(), None)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"fleet: expected an authority (ca.crt, ca.key) in {folder}, got {type(error).__name__}. "
            "Make one with `cutlayer fleet init`."
        ) from error
    assert isinstance(signer, ec.EllipticCurvePrivateKey), "make_authority made it"
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name(name), authority.subject, key.public_key(), signer.public_key(), when, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(x509.KeyUsage(**_usage("digital_signature")), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return _issued(builder, key, signer)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePublicKey,
    when: datetime,
    days: float,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(when - SKEW)
        .not_valid_after(when + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )


def _issued(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> Issued:
    certificate = builder.sign(signer, hashes.SHA256())
    return Issued(
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        certificate.fingerprint(hashes.SHA256()).hex(),
    )


def _write(folder: Path, name: str, issued: Issued) -> None:
    write_issued(folder / f"{name}.crt", folder / f"{name}.key", issued)


def write_issued(certificate: Path, key: Path, issued: Issued) -> None:
    """Writes both files, the key for its owner's eyes only."""
    write_atomically(key, issued.key, private=True)
    write_atomically(certificate, issued.certificate)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def alternatives(hosts: Sequence[str]) -> list[x509.GeneralName]:
    """Host names and addresses as a certificate has them.

    Raises:
      ConfigError: One is neither.
    """
    return [_alternative(host) for host in hosts]


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.split(".")
    if not all(label.replace("-", "a").isalnum() and label.isascii() for label in labels):
        raise ConfigError(
            f"fleet: expected a host name or an address that devices dial, got {reprlib.repr(host)}. Change --host."
        )
    return x509.DNSName(host)


def _usage(*allowed: str) -> dict[str, bool]:
    signing = ["digital_signature", "content_commitment", "key_cert_sign", "crl_sign"]
    enciphering = ["key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"]
    return {name: name in allowed for name in signing + enciphering}
