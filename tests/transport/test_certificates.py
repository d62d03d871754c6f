"""Contents of a fleet's certificates. That TLS heeds them: `test_tls.py`."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from cutlayer.errors import ConfigError
from cutlayer.transport.certificates import issue_device, issue_server, make_authority

WHEN = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    make_authority(tmp_path, WHEN)
    return tmp_path


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_the_authority_signs_and_nothing_else(fleet: Path) -> None:
    authority = read(fleet / "ca.crt")
    basic = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert (basic.value.ca, basic.value.path_length) == (True, 0)
    usage = authority.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.digital_signature) == (True, False)
    assert (fleet / "ca.key").stat().st_mode & 0o777 == 0o600


def test_the_server_has_its_names_and_is_no_client(fleet: Path) -> None:
    issue_server(fleet, ["pi.example", "10.0.0.7", "::1"], WHEN)
    certificate = read(fleet / "server.crt")
    certificate.verify_directly_issued_by(read(fleet / "ca.crt"))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["pi.example"]
    addresses = [ipaddress.ip_address("10.0.0.7"), ipaddress.ip_address("::1")]
    assert names.get_values_for_type(x509.IPAddress) == addresses
    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert (fleet / "server.key").stat().st_mode & 0o777 == 0o600


def test_a_device_has_its_name_and_an_end(fleet: Path) -> None:
    issued = issue_device(fleet, "pi-1", WHEN, days=30)
    certificate = x509.load_pem_x509_certificate(issued.certificate)
    certificate.verify_directly_issued_by(read(fleet / "ca.crt"))
    assert certificate.subject.rfc4514_string() == "CN=pi-1"
    assert certificate.not_valid_after_utc == WHEN + timedelta(days=30)
    assert certificate.not_valid_before_utc < WHEN
    key = load_pem_private_key(issued.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP256R1)
    assert key.public_key() == certificate.public_key()
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert "PRIVATE" not in repr(issued)


def test_two_devices_share_nothing(fleet: Path) -> None:
    one, other = issue_device(fleet, "pi-1", WHEN), issue_device(fleet, "pi-1", WHEN)
    assert one.key != other.key
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize("host", ["", "my server", "a..b", "http://x", "pi:50051", "ä", "*.example"])
def test_hosts_are_names_or_addresses(host: str, fleet: Path) -> None:
    with pytest.raises(ConfigError, match="Change --host"):
        issue_server(fleet, [host], WHEN)


def test_there_is_one_authority(fleet: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without an authority"):
        make_authority(fleet, WHEN)
    (fleet / "ca.crt").write_text("torn")
    with pytest.raises(ConfigError, match="cutlayer fleet init"):
        issue_device(fleet, "pi-1", WHEN)
    with pytest.raises(ConfigError, match="cutlayer fleet init"):
        issue_server(tmp_path / "nowhere", ["localhost"], WHEN)
