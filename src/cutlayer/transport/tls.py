"""TLS of the real transport: gRPC's credentials from a fleet's files, and whose certificate is at the other end."""

from __future__ import annotations

import hashlib
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import grpc

from cutlayer.errors import ConfigError
from cutlayer.transport.address import parted
from cutlayer.transport.exposure import is_loopback

RENEWED_SECONDS = 1.0


class ServerTls:
    """The server's end, of one port. A second after its certificate was renewed, connections are shown the new one.

    Args:
      folder: The fleet folder, with server.crt, server.key and ca.crt (`transport/certificates.py`).
      require_client_certificate: Whether nobody is heard who has no certificate of the fleet's authority. False asks
        nobody for one; gRPC knows nothing in between, so a fleet has certificates or tokens.
      clock: Seconds.

    Attributes:
      credentials: gRPC's.
      begun: connections so far. gRPC ends one that talks plain text, or whose certificate is not believed, and tells
        nobody; that it asks for the server's certificate at the beginning of each is how they can be counted.

    Raises:
      ConfigError: A file is not there.
    """

    def __init__(
        self, folder: Path, *, require_client_certificate: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._key, self._certificate, self._authority = (
            folder / name for name in ("server.key", "server.crt", "ca.crt")
        )
        self.begun = 0
        self._lock, self._clock, self._look_again = Lock(), clock, 0.0
        self._written = self._when_written()
        self.credentials = grpc.dynamic_ssl_server_credentials(
            self._configuration(),
            self._begin,  # type: ignore[arg-type]  # gRPC's documentation says that it may return None
            require_client_authentication=require_client_certificate,
        )

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        pair = _read(self._key), _read(self._certificate)
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=_read(self._authority))

    def _when_written(self) -> tuple[int, ...]:
        return tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in (self._key, self._certificate))

    def _begin(self) -> grpc.ServerCertificateConfiguration | None:
        """A connection, in a thread of gRPC's: a certificate that is new, or None for the one that it has."""
        with self._lock:
            self.begun += 1
            if self._clock() < self._look_again:  # strangers come by thousands a second, and wait for Python here
                return None
            self._look_again = self._clock() + RENEWED_SECONDS
            written = self._when_written()
            if written == self._written:
                return None
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._certificate, self._key)
                renewed = self._configuration()
            except (OSError, ConfigError):  # `ssl.SSLError` too: one of the two is not written yet
                return None
            self._written = written
            return renewed


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


def credentials_for(
    server: str, ca: Path | None, certificate: Path | None, key: Path | None, *, insecure: bool
) -> grpc.ChannelCredentials | None:
    """A device's end, as its owner asks for it; None for plain text.

    Args:
      server: Where it listens, HOST:PORT.
      ca: The fleet's ca.crt, without which no server on another machine is talked to.
      certificate: device.crt.
      key: device.key.
      insecure: Whether to do without TLS.

    Raises:
      ConfigError: It cannot be so.
    """
    host, _ = parted(server, "join")
    if ca is not None:
        return channel_credentials(ca, certificate, key)
    if certificate is not None or key is not None:
        raise ConfigError("join: expected --ca beside a certificate, got none. Name the fleet's ca.crt.")
    if not is_loopback(host) and not insecure:
        raise ConfigError(
            f"join: expected TLS to a server on another machine, got none for {host}: anybody on the way reads and "
            "changes activations, labels, adapters and the token. Name the fleet's ca.crt (--ca), or say --insecure."
        )
    return None


@dataclass(frozen=True, slots=True)
class Proved:
    """The facts that a client certificate proves.

    Attributes:
      name: the device's.
      fingerprint: SHA-256 of the certificate, in hex, as the roster knows it.
    """

    name: str
    fingerprint: str


def proved(auth_context: Mapping[str, Iterable[bytes]]) -> Proved | None:
    """Reads whose certificate is at the other end; None where there is none.

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
