"""TLS of the real transport: gRPC's credentials from a fleet's files, and whose certificate is at the other end."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from cutlayer.errors import ConfigError


def server_credentials(folder: Path, *, require_client_certificate: bool) -> grpc.ServerCredentials:
    """The server's end.

    Args:
      folder: The fleet folder, with server.crt, server.key and ca.crt (`wire/certificates.py`).
      require_client_certificate: Whether nobody is heard who has no certificate of the fleet's authority. False asks
        nobody for one; gRPC knows nothing in between, so a fleet has certificates or tokens.

    Raises:
      ConfigError: A file is not there.
    """
    key, certificate, authority = (_read(folder / name) for name in ("server.key", "server.crt", "ca.crt"))
    return grpc.ssl_server_credentials(
        [(key, certificate)],
        root_certificates=authority if require_client_certificate else None,
        require_client_auth=require_client_certificate,
    )


def channel_credentials(
    authority: Path, certificate: Path | None = None, key: Path | None = None
) -> grpc.ChannelCredentials:
    """A device's end.

    Args:
      authority: The fleet's ca.crt: no other authority is believed.
      certificate: The device's, if it has one.
      key: Its key.

    Raises:
      ConfigError: A file is not there, or a certificate without a key, or the reverse.
    """
    if (certificate is None) != (key is None):
        raise ConfigError("device: expected a certificate and its key, got one without the other. Name both files.")
    return grpc.ssl_channel_credentials(
        root_certificates=_read(authority),
        private_key=None if key is None else _read(key),
        certificate_chain=None if certificate is None else _read(certificate),
    )


@dataclass(frozen=True, slots=True)
class Proved:
    """What a client certificate proves.

    Attributes:
      name: the device's.
      fingerprint: SHA-256 of the certificate, in hex, as the roster knows it.
    """

    name: str
    fingerprint: str


def proved(auth_context: Mapping[str, Iterable[bytes]]) -> Proved | None:
    """Whose certificate is at the other end; None where there is none.

    Args:
      auth_context: Of gRPC's `ServicerContext`: TLS has checked the certificate against the authority.
    """
    names, certificates = (list(auth_context.get(key, ())) for key in ("x509_common_name", "x509_pem_cert"))
    if len(names) != 1 or len(certificates) != 1:
        return None
    der = ssl.PEM_cert_to_DER_cert(certificates[0].decode())
    return Proved(names[0].decode(), hashlib.sha256(der).hexdigest())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: expected a file of the fleet, got {error.strerror}. `cutlayer fleet init` makes a server's, "
            "`cutlayer fleet add` says what a device needs."
        ) from None
