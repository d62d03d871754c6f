"""The reach of an address: who can connect to it, and whether it is safe to listen there."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

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


METADATA = frozenset(
    map(ipaddress.ip_address, ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"))
)
"""Addresses at which clouds tell a machine its secrets, in plain text, because it is that machine that asks."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def led_astray(addresses: Sequence[str], server: Sequence[str]) -> str | None:
    """Finds where a server would lead a device astray in plain text: nearer than the server, or to a cloud's secrets.

    Args:
      addresses: Of the host that it names, as they were resolved.
      server: Its own, likewise.

    Returns:
      What is wrong with the addresses, in words; None where nothing is.

    Example:
      >>> led_astray(["10.0.0.8"], ["10.0.0.7"]), led_astray(["127.0.0.1"], ["127.0.0.1"])
      (None, None)
      >>> led_astray(["127.0.0.1"], ["10.0.0.7"])
      'this machine itself'
    """
    own = {_place(_parsed(address)) for address in server}
    for address in map(_parsed, addresses):
        place = _place(address)
        if address in METADATA or (place is not None and place not in own):
            return "where clouds keep secrets" if address in METADATA else place
    return None


def _parsed(address: str) -> Address:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped or parsed.sixtofour if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed


def _place(address: Address) -> str | None:
    """The meaning of a special address, in words; None for any other."""
    if address.is_loopback or address.is_unspecified:
        return "this machine itself"
    if address.is_link_local:
        return "only this machine's own link"
    return "no single machine" if address.is_multicast else None


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
