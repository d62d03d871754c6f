"""Who can reach an address, and whether it is safe to listen there."""

from __future__ import annotations

import ipaddress

from cutlayer.errors import ConfigError


def is_loopback(host: str) -> bool:
    """Whether only processes of this machine can reach it: 127.x.x.x, ::1 and localhost.

    Any other name is none: who knows what it resolves to tomorrow.
    """
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return host.lower() == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def check_exposure(host: str, *, tls: bool, authenticated: bool, insecure: bool) -> None:
    """Refuses to be open to others by accident.

    Args:
      host: Where the server will listen.
      tls: Whether what crosses the network is encrypted.
      authenticated: Whether devices must prove who they are.
      insecure: Whether a person has said that it shall be so all the same.

    Raises:
      ConfigError: It is none of these.
    """
    if is_loopback(host) or (tls and authenticated) or insecure:
        return
    risks = [] if tls else ["anybody on the way reads and changes activations, labels, adapters and tokens"]
    risks += [] if authenticated else ["anybody who reaches the port can join the run, read the adapter and spoil it"]
    raise ConfigError(
        f"serve: expected TLS and devices that prove who they are where others can connect, got {host} without "
        f"{' and without '.join(['TLS'] * (not tls) + ['authentication'] * (not authenticated))}: {'; '.join(risks)}. "
        "Make a fleet (`cutlayer fleet init`), listen on 127.0.0.1, or say --insecure."
    )
