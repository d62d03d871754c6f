"""Addresses: a host and a port as text, put together and taken apart in one place."""

from __future__ import annotations

from cutlayer.errors import ConfigError

HIGHEST_PORT = 65535


def joined(host: str, port: int, where: str = "address") -> str:
    """`HOST:PORT`, an IPv6 address in brackets.

    Args:
      host: A name or an address, with or without brackets.
      port: From 0, which takes a free one where somebody listens.
      where: Begins the error.

    Raises:
      ConfigError: There is no such port.

    Example:
      >>> joined("::1", 7070), joined("[::1]", 7070), joined("pi-1", 7070)
      ('[::1]:7070', '[::1]:7070', 'pi-1:7070')
    """
    if not 0 <= port <= HIGHEST_PORT:
        raise ConfigError(f"{where}: expected a port from 0 to {HIGHEST_PORT}, got {port}. Change it.")
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def parted(address: str, where: str) -> tuple[str, int]:
    """Host, without brackets, and port.

    Args:
      address: `HOST:PORT`.
      where: Begins the error.

    Raises:
      ConfigError: It is none: it has no host or no port, there is no such port, or an IPv6 address without brackets,
        where nobody can say which colon is the port's.

    Example:
      >>> parted("[::1]:7070", "join")
      ('::1', 7070)
    """
    host, _, port = address.rpartition(":")
    inner = host.removeprefix("[").removesuffix("]") if host.startswith("[") and host.endswith("]") else host
    if not inner or not (port.isascii() and port.isdecimal()) or (":" in inner and inner == host):
        raise ConfigError(
            f"{where}: expected HOST:PORT, an IPv6 address in brackets, got {address!r}. Write for example "
            "fleet.example.org:7070 or [::1]:7070."
        )
    if int(port) > HIGHEST_PORT:
        raise ConfigError(f"{where}: expected a port up to {HIGHEST_PORT}, got {port} in {address!r}. Change it.")
    return inner, int(port)


def host_of(address: str) -> str:
    """The host of an address that has been looked at, without brackets; all of it where it has no port."""
    host = address.rpartition(":")[0] or address
    return host.removeprefix("[").removesuffix("]")
