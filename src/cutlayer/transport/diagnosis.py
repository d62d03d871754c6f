"""Faults of TLS between a device and its server: a person must mend them, so no other try will help.

gRPC says of all of these that the server is unavailable, as it says of one that is not there. So a device that could
not reach its server asks again by a handshake of its own, which says what it met.
"""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from cutlayer.errors import ConfigError
from cutlayer.transport.address import parted

PATIENCE_SECONDS = 3.0
"""Seconds for a connection, and for each answer: a diagnosis must not take longer than what it explains."""
WRONG_NAME = frozenset({62, 64})
"""OpenSSL's numbers for a certificate of another name, and of another address."""
OUT_OF_DATE = frozenset({9, 10})
"""OpenSSL's numbers for a certificate that is not valid yet, and for one that is not valid any more."""


def wrong_with(server: str, ca: Path | None, certificate: Path | None = None, key: Path | None = None) -> str | None:
    """Finds what a person must change of TLS, as a sentence; None where nobody answers, or nothing is wrong with it.

    Args:
      server: Where it listens, HOST:PORT.
      ca: The fleet's ca.crt; None for a device that talks plain text.
      certificate: The device's, if it has one.
      key: Its key.
    """
    host, port = parted(server, "join")
    try:
        with socket.create_connection((host.strip("[]"), port), PATIENCE_SECONDS) as plain:
            if ca is None:
                return _expects_tls(plain, server)
            return _as_trusted(plain, host.strip("[]"), server, ca, certificate, key)
    except OSError:  # nobody is there, or not any more: that may heal
        return None


def _expects_tls(plain: socket.socket, server: str) -> str | None:
    """Whether a server that is talked to in plain text would rather not be."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is said on it
    context.set_alpn_protocols(["h2"])
    try:
        context.wrap_socket(plain).close()
    except (ssl.SSLError, OSError):
        return None
    return (
        f"join: expected TLS, which {server} speaks, got none. Name the fleet's ca.crt (--ca) and this device's proof."
    )


def _as_trusted(
    plain: socket.socket, host: str, server: str, ca: Path, certificate: Path | None, key: Path | None
) -> str | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError:
        return (
            f"{ca}: expected the fleet's ca.crt, got a file without a certificate. Copy it from the fleet folder again."
        )
    if certificate is not None and key is not None:
        try:
            context.load_cert_chain(certificate, key)
        except ssl.SSLError:
            return f"{certificate}: expected a certificate that {key} is the key of, got another. Copy both again."
    try:
        with context.wrap_socket(plain, server_hostname=host) as trusted:
            return _after(trusted, server)
    except ssl.SSLCertVerificationError as error:
        return _unbelieved(error, host, server, ca)
    except ssl.SSLError as error:
        if "UNKNOWN_CA" in str(error.reason) or "CERTIFICATE" in str(error.reason):
            return _proof(server)
        return (
            f"join: expected TLS at {server}, got a server that speaks none ({error.reason or 'it hung up'}). Start it "
            "with --roster, or leave --ca out and say --insecure."
        )


def _after(trusted: ssl.SSLSocket, server: str) -> str | None:
    """Waits a while after the handshake, when a server hangs up on a device whose certificate it misses."""
    trusted.settimeout(PATIENCE_SECONDS)
    try:
        said = trusted.recv(1)
    except TimeoutError:
        return None
    except OSError:  # `ssl.SSLError` too: an alert, or the end without a word
        return _proof(server)
    return None if said else _proof(server)


def _proof(server: str) -> str:
    return (
        f"join: expected a certificate of this device that the fleet of {server} has issued, got none or another. Name "
        "it: --certificate device.crt --key device.key."
    )


def _unbelieved(error: ssl.SSLCertVerificationError, host: str, server: str, ca: Path) -> str:
    if error.verify_code in WRONG_NAME:
        return (
            f"join: expected a server that is called {host}, got one at {server} whose certificate names others. Dial "
            f"it by a name that it has, or give it this one, at the server: cutlayer fleet renew --host {host} --fleet "
            "FOLDER."
        )
    if error.verify_code in OUT_OF_DATE:
        return (
            f"join: expected a certificate of {server} that is valid now, got another ({error.verify_message}). Renew "
            "it (cutlayer fleet renew, at the server), or set this machine's clock."
        )
    return (
        f"join: expected a server of the fleet of {ca}, got one at {server} of another authority "
        f"({error.verify_message}). Copy ca.crt from the fleet folder of this server, and check the address."
    )


def check_authority(ca: Path) -> None:
    """Looks whether a file can be a fleet's ca.crt.

    Raises:
      ConfigError: It cannot be read, or holds no certificate.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{ca}: expected the fleet's ca.crt, got {_why(error)}. Copy it from the fleet folder."
        ) from None


def _why(error: OSError) -> str:
    """The fault of a file in words; those of SSL mean nothing to a person."""
    return "a file without a certificate" if isinstance(error, ssl.SSLError) else str(error.strerror)
