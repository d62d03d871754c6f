"""The carrier over gRPC: one stream in both directions per device, opened by the device, so that it works behind NAT.

Packets travel as they are (`packets.py`): gRPC's own serialisation is the identity, there is no protobuf. Who a device
is, it says in the metadata of the call: its name, and a token; or its certificate says it.

A killed peer is noticed at once, a frozen one by pings of gRPC's own threads: `grpc.http2.ping_timeout_ms` is what
decides (4.5 s in all; with the documented keepalive options alone it takes a minute).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio

from cutlayer.errors import JoinError
from cutlayer.transport.address import host_of, joined, parted
from cutlayer.transport.carrier import Carrier, CarrierLost, Dial
from cutlayer.transport.exposure import is_loopback, led_astray
from cutlayer.transport.packets import HEADER_BYTES, PIECE_BYTES

_log = logging.getLogger("cutlayer.wire")

METHOD = "Attend"
SERVICE = "cutlayer.Fleet"
NAME_KEY = "cutlayer-device"
TOKEN_KEY = "cutlayer-token"
PING_EVERY_MS = 2_500
PING_ANSWER_MS = 2_000
CLOSE_SECONDS = 1.0
"""Seconds that what is under way has to end when a server stops."""

COMMON_OPTIONS = (
    ("grpc.max_receive_message_length", PIECE_BYTES + HEADER_BYTES),
    ("grpc.max_send_message_length", PIECE_BYTES + HEADER_BYTES),
    ("grpc.keepalive_time_ms", PING_EVERY_MS),
    ("grpc.keepalive_timeout_ms", PING_ANSWER_MS),
    ("grpc.http2.ping_timeout_ms", PING_ANSWER_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
HANDSHAKE_SECONDS = 10.0
"""Seconds for TLS and the first frame of HTTP/2; a connection that takes longer is closed."""
READ_BYTES = 2**16
"""Bytes that one connection's reader takes at a time. Without a limit gRPC reads megabytes ahead of whoever sends fast,
for each connection, before anybody has proved anything; 2 MiB packets are as fast with it as without."""
METADATA_BYTES = 2**13
"""Bytes of the metadata of a call, at most: a name and a token."""
SERVER_OPTIONS = (
    *COMMON_OPTIONS,
    ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_SECONDS * 1000)),
    ("grpc.max_connection_idle_ms", int(HANDSHAKE_SECONDS * 1000)),  # one without a call: a device has one throughout
    ("grpc.experimental.tcp_max_read_buffer_size", READ_BYTES),
    ("grpc.max_metadata_size", METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", METADATA_BYTES),
    ("grpc.http2.min_ping_interval_without_data_ms", PING_EVERY_MS // 2),
    ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a share of its devices
    ("grpc.max_concurrent_streams", 4),  # of one connection, which is one device
)
CLIENT_OPTIONS = (
    *COMMON_OPTIONS,
    ("grpc.enable_retries", 0),  # a stream that ended is the session's matter
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection: nobody's back-off is inherited
)
DIRECTLY = (("grpc.enable_http_proxy", 0),)
"""Options for a call to this machine: a proxy in the environment would be sent, in plain text, what is to stay here."""


class _Calling:
    """The device's end."""

    def __init__(self, channel: grpc.aio.Channel, call: Any, *, intact: bool) -> None:
        self.intact = intact
        self._channel, self._call = channel, call

    async def send(self, packet: bytes) -> None:
        try:
            await self._call.write(packet)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError) as error:
            raise await self._lost(error) from None

    async def receive(self) -> bytes:
        try:
            packet = await self._call.read()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise await self._lost(error) from None
        if packet is grpc.aio.EOF:
            raise await self._lost(None)
        received: bytes = packet
        return received

    def close(self) -> None:
        self._call.cancel()
        self._closing = asyncio.ensure_future(self._channel.close())

    async def _lost(self, error: Exception | None) -> CarrierLost:
        if isinstance(error, grpc.aio.AioRpcError):
            return CarrierLost(f"connection: {_reason(error.code(), error.details())}")
        if self._call.done():
            return CarrierLost(f"connection: {_reason(await self._call.code(), await self._call.details())}")
        return CarrierLost("connection: closed by the server")


class _Called:
    """The server's end."""

    def __init__(self, context: grpc.aio.ServicerContext[bytes, bytes], *, intact: bool) -> None:
        self.intact = intact
        self._context = context
        self.closed = asyncio.Event()

    async def send(self, packet: bytes) -> None:
        if self.closed.is_set():
            raise CarrierLost("connection: closed")
        try:
            await self._context.write(packet)
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError) as error:
            raise CarrierLost(f"connection: {type(error).__name__}") from None

    async def receive(self) -> bytes:
        try:
            packet: Any = await self._context.read()
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError) as error:
            raise CarrierLost(f"connection: {type(error).__name__}") from None
        if packet is grpc.aio.EOF:
            raise CarrierLost("connection: closed by the device")
        received: bytes = packet
        return received

    def close(self) -> None:
        self.closed.set()


Attend = Callable[[Carrier, grpc.aio.ServicerContext[bytes, bytes]], Awaitable[None]]
"""The function with which a server attends to a connection, until it ends."""


async def listen(
    attend: Attend, address: str, credentials: grpc.ServerCredentials | None, *, most_sockets: int | None = None
) -> tuple[grpc.aio.Server, int]:
    """Starts a server.

    Args:
      attend: Called with each new connection.
      address: `HOST:PORT`; port 0 takes a free one.
      credentials: Of TLS; None for plain text.
      most_sockets: Connections at a time, and streams; gRPC closes what is more as soon as it has come.

    Returns:
      The server and its port.

    Raises:
      OSError: The port cannot be had.
    """
    capped = () if most_sockets is None else (("grpc.max_allowed_incoming_connections", most_sockets),)
    server = grpc.aio.server(options=SERVER_OPTIONS + capped, maximum_concurrent_rpcs=most_sockets)

    async def handle(_requests: Any, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        carrier = _Called(context, intact=credentials is not None or _is_here(context.peer()))
        serving = asyncio.ensure_future(attend(carrier, context))
        closed = asyncio.ensure_future(carrier.closed.wait())
        try:
            await asyncio.wait({serving, closed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (serving, closed):
                task.cancel()
            ended, _ = await asyncio.gather(serving, closed, return_exceptions=True)
            if isinstance(ended, Exception):  # a defect of ours: its device comes again, and somebody should know
                _log.error("a connection of %s ended with an error", context.peer(), exc_info=ended)

    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {METHOD: grpc.stream_stream_rpc_method_handler(handle)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    try:
        port = (
            server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
        )
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from None
    await server.start()
    return server, port


async def dial(
    address: str,
    *,
    name: str,
    token: str | None,
    credentials: grpc.ChannelCredentials | None,
) -> Carrier:
    """Opens a stream to the server; whether anybody answers shows with the first packet.

    Args:
      address: `HOST:PORT`.
      name: The device's.
      token: Its proof, where it has no certificate; never sent without TLS except to this machine.
      credentials: Of TLS; None for plain text.
    """
    here = is_loopback(host_of(address))
    options = CLIENT_OPTIONS + DIRECTLY if here else CLIENT_OPTIONS
    if credentials is None:
        channel = grpc.aio.insecure_channel(address, options=options)
    else:
        channel = grpc.aio.secure_channel(address, credentials, options=options)
    metadata = [(NAME_KEY, name)] + ([(TOKEN_KEY, token)] if token else [])
    call: Any = channel.stream_stream(f"/{SERVICE}/{METHOD}")(metadata=metadata)
    return _Calling(channel, call, intact=credentials is not None or here)


def dialler(
    server: str,
    *,
    name: str,
    token: str | None,
    credentials: grpc.ChannelCredentials | None,
    insecure: bool = False,
) -> Dial:
    """A device's way to its server.

    Args:
      server: `HOST:PORT`.
      name, token, credentials: As of `dial`.
      insecure: Whether the device's owner lets it talk to another machine without TLS.
    """

    async def call(address: str = "") -> Carrier:
        if address.startswith(":"):
            address = server.rpartition(":")[0] + address
        if address:
            parted(address, "join")  # gRPC has other kinds of addresses, such as files of this machine
        if address and credentials is None and not insecure and not is_loopback(host_of(address)):
            raise JoinError(
                f"join: expected TLS to another machine, got none for {address}, where the server sends this device on "
                "to. Name the fleet's ca.crt (--ca), or say --insecure."
            )
        if address and credentials is None and host_of(address) != host_of(server):
            address = await _as_far_as(server, address)
        return await dial(address or server, name=name, token=token, credentials=credentials)

    return call


async def _as_far_as(server: str, address: str) -> str:
    """An address to which a server sends a device on in plain text, as the number that was looked at.

    Raises:
      JoinError: It leads to this machine, or to what only this machine reaches, and the server is not there.
      CarrierLost: Nobody knows the host.
    """
    _, port = parted(address, "join")
    try:
        found, own = [await _resolved(host_of(one)) for one in (address, server)]
    except OSError as error:
        raise CarrierLost(f"connection: expected a host that has an address, got {error.strerror or error}.") from None
    astray = led_astray(found, own)
    if astray is not None:
        raise JoinError(
            f"join: expected to be sent on to a machine like the server's, got {address}, which is {astray}. Ask the "
            "server's owner, or name the fleet's ca.crt (--ca)."
        )
    return joined(found[0], port)


async def _resolved(host: str) -> list[str]:
    """The addresses of a host, in the order in which they are to be tried."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def said_of(context: grpc.aio.ServicerContext[bytes, bytes]) -> tuple[str, str]:
    """The name and the token in the metadata of a call, empty where it says none."""
    metadata = dict(context.invocation_metadata() or ())
    return str(metadata.get(NAME_KEY, "")), str(metadata.get(TOKEN_KEY, ""))


def peer_of(context: grpc.aio.ServicerContext[bytes, bytes]) -> str:
    """The address that a call comes from, as `HOST:PORT`."""
    return _plain(context.peer())


def _plain(peer: str) -> str:
    """The address in gRPC's word for a peer (`ipv4:127.0.0.1:4711`, `ipv6:%5B::1%5D:4711`)."""
    return unquote(peer.partition(":")[2])


def _is_here(peer: str) -> bool:
    """Whether gRPC's word for a peer is of this machine."""
    return is_loopback(host_of(_plain(peer)))


def _reason(code: grpc.StatusCode | None, details: str | None) -> str:
    if code is grpc.StatusCode.OK and not details:
        return "closed by the server"
    words = code.name.lower().replace("_", " ") if code else "ended"
    return f"{words}: {details}" if details else words
