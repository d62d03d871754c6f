"""Yardsticks of the real transport: a tensor there and another one back, over bare sockets and bare gRPC.

No names, no numbers, no checks, and nothing is done about a connection that ends. A tensor is read where it lies and
handed over as a view of what arrived; gRPC wants `bytes`, so there it is copied once, as in any program that sends
tensors by gRPC.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import grpc
import grpc.aio
import numpy as np
import torch
from torch import Tensor

_LENGTH = struct.Struct("<Q")
_PATH = "echo", "Echo"
MOST_CONNECTIONS = 64


class Contender(Protocol):
    """Some connections to the server's process, all opened before anything is measured."""

    async def trips(self, tensor: Tensor, connections: int, each: int) -> None:
        """Makes so many round trips on each of so many connections, one after the other on each."""

    async def close(self) -> None:
        """Ends the connections."""


class Replies:
    """The server's tensors: one for each length, so that no reply is the buffer that has just arrived."""

    def __init__(self) -> None:
        self._by_length: dict[int, Tensor] = {}

    def like(self, num_bytes: int) -> Tensor:
        """The reply to so many bytes, as fp32."""
        if num_bytes not in self._by_length:
            self._by_length[num_bytes] = torch.full((num_bytes // 4,), 0.5)
        return self._by_length[num_bytes]


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's elements where they lie."""
    view: memoryview = tensor.numpy().data
    return view.cast("B")


# ------------------------------------------------------------------ sockets


def serve_sockets(replies: Replies, context: ssl.SSLContext | None) -> int:
    """Answers in threads from now on; returns the port."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=MOST_CONNECTIONS)

    def accept() -> None:
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=_answer, args=(connection, context, replies), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    port: int = listening.getsockname()[1]
    return port


def _answer(connection: socket.socket, context: ssl.SSLContext | None, replies: Replies) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if context is not None:
        connection = context.wrap_socket(connection, server_side=True)
    while (length := _receive(connection)) is not None:
        _send(connection, replies.like(length))


class Sockets:
    """Blocking sockets, a thread each."""

    def __init__(self, port: int, connections: int, context: ssl.SSLContext | None) -> None:
        self._sockets = [_connected(port, context) for _ in range(connections)]
        self._threads = ThreadPoolExecutor(connections)

    async def trips(self, tensor: Tensor, connections: int, each: int) -> None:
        """See `Contender`."""
        loop = asyncio.get_running_loop()
        used = self._sockets[:connections]
        await asyncio.gather(*(loop.run_in_executor(self._threads, _round_trips, one, tensor, each) for one in used))

    async def close(self) -> None:
        """See `Contender`."""
        self._threads.shutdown()
        for connection in self._sockets:
            connection.close()


def _connected(port: int, context: ssl.SSLContext | None) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection if context is None else context.wrap_socket(connection, server_hostname="127.0.0.1")


def _round_trips(connection: socket.socket, tensor: Tensor, count: int) -> None:
    for _ in range(count):
        _send(connection, tensor)
        assert _receive(connection) == tensor.nbytes, "a reply is as long as what it answers"


def _send(connection: socket.socket, tensor: Tensor) -> None:
    connection.sendall(_LENGTH.pack(tensor.nbytes))
    connection.sendall(bytes_of(tensor))


def _receive(connection: socket.socket) -> int | None:
    """Takes one tensor in; its length, or None at the end."""
    start = connection.recv(_LENGTH.size, socket.MSG_WAITALL) if not _is_tls(connection) else _exactly(connection)
    if not start:
        return None
    (length,) = _LENGTH.unpack(start)
    tensor = torch.empty(length // 4)
    view, filled = bytes_of(tensor), 0
    while filled < length:
        filled += connection.recv_into(view[filled:])
    return int(length)


def _is_tls(connection: socket.socket) -> bool:
    return isinstance(connection, ssl.SSLSocket)


def _exactly(connection: socket.socket) -> bytes:
    """A length from a TLS socket, which knows no MSG_WAITALL; empty at the end."""
    start = b""
    while len(start) < _LENGTH.size:
        if not (more := connection.recv(_LENGTH.size - len(start))):
            return b""
        start += more
    return start


# ------------------------------------------------------------------ gRPC

_OPTIONS = (("grpc.max_receive_message_length", 2**26), ("grpc.max_send_message_length", 2**26))


async def serve_grpc(replies: Replies, credentials: grpc.ServerCredentials | None) -> tuple[grpc.aio.Server, int]:
    """Answers from now on; returns the server and its port."""

    async def handle(_requests: Any, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        while (arrived := await context.read()) is not grpc.aio.EOF:
            await context.write(_as_bytes(replies.like(_viewed(arrived).nbytes)))

    server = grpc.aio.server(options=_OPTIONS)
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(handle)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_PATH[0], {_PATH[1]: handler}),))
    address = "127.0.0.1:0"
    port = server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    await server.start()
    return server, port


class Grpc:
    """A stream and a connection each, in asyncio."""

    def __init__(self, port: int, connections: int, credentials: grpc.ChannelCredentials | None) -> None:
        self._channels = [_channel(f"127.0.0.1:{port}", credentials) for _ in range(connections)]
        self._calls = [channel.stream_stream("/" + "/".join(_PATH))() for channel in self._channels]

    async def trips(self, tensor: Tensor, connections: int, each: int) -> None:
        """See `Contender`."""

        async def one(call: Any) -> None:
            for _ in range(each):
                await call.write(_as_bytes(tensor))
                assert _viewed(await call.read()).nbytes == tensor.nbytes, "a reply is as long as what it answers"

        await asyncio.gather(*map(one, self._calls[:connections]))

    async def close(self) -> None:
        """See `Contender`."""
        await asyncio.gather(*(channel.close() for channel in self._channels))


def _channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    options = (*_OPTIONS, ("grpc.use_local_subchannel_pool", 1))
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, credentials, options=options)


def _as_bytes(tensor: Tensor) -> bytes:
    return bytes(bytes_of(tensor))


def _viewed(arrived: bytes) -> np.ndarray:
    return np.frombuffer(arrived, dtype=np.float32)
