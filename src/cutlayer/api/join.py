"""`cutlayer join` from Python."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any

import grpc

from cutlayer.api.apart import run_apart
from cutlayer.device.token import read_token
from cutlayer.errors import ConfigError
from cutlayer.joining import Joining
from cutlayer.joining import join as join_run
from cutlayer.transport.address import parted
from cutlayer.transport.allocator import ON_A_DEVICE, keep_freed_memory
from cutlayer.transport.exposure import is_loopback
from cutlayer.transport.grpc_carrier import dialler
from cutlayer.transport.tls import channel_credentials


def join(
    server: str,
    /,
    *,
    data: str | Path,
    name: str,
    model: str | Path = "",
    folder: str | Path | None = None,
    hardware: str = "cpu",
    max_blocks: int | None = None,
    ca: str | Path | None = None,
    token: str | Path | None = None,
    certificate: str | Path | None = None,
    key: str | Path | None = None,
    insecure: bool = False,
    patience_seconds: float = 600.0,
    on_notice: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> None:
    """Joins a server's run as a device: measures this machine and trains on its data, which stays here, to the end.

    A process has at most one server or device: torch builds models for one thread of it at a time.

    Args:
      server: Where it listens, HOST:PORT.
      data: This device's training data: a file or folder.
      name: Of the device in the fleet.
      model: A folder, a hub name, or `server`, which then sends what is needed; empty for the name that the run has.
      folder: What must outlive this process; None for cutlayer-NAME.
      hardware: Where this process computes: cpu, cuda or cuda:N.
      max_blocks: The most blocks that are lent; None for as many as fit.
      ca: The fleet's ca.crt, without which no server on another machine is joined.
      token: A file with this device's token; None takes the one in CUTLAYER_TOKEN.
      certificate: device.crt, in place of a token.
      key: device.key.
      insecure: Join a server on another machine without TLS.
      patience_seconds: Without a server, before giving up.
      on_notice: Called with what happens, a line at a time.

    Raises:
      JoinError: The server refuses, or there is none.
      UserError: The data, the model or the hardware are not what the run needs.

    Example:
      >>> import tempfile
      >>> from cutlayer import join
      >>> from cutlayer.errors import JoinError
      >>> try:  # where nobody listens
      ...     join("127.0.0.1:9", data="mine.jsonl", name="pi-1", folder=tempfile.mkdtemp(), patience_seconds=0)
      ... except JoinError as error:
      ...     print(str(error).partition(":")[0])
      join
    """
    joining = Joining(
        name=name,
        data=str(data),
        model=str(model),
        folder=Path(folder or f"cutlayer-{name}"),
        hardware=hardware,
        max_blocks=max_blocks,
        patience_seconds=patience_seconds,
    )
    files = [None if path is None else Path(path) for path in (ca, token, certificate, key)]
    run_apart(attending(joining, server, *files, insecure=insecure, notice=on_notice))


def attending(
    joining: Joining,
    server: str,
    ca: Path | None,
    token: Path | None,
    certificate: Path | None,
    key: Path | None,
    *,
    insecure: bool,
    notice: Callable[[str], None],
) -> Coroutine[Any, Any, None]:
    """Finds what a person got wrong of the way to the server, and returns what then takes part in its run.

    Args:
      joining: Who joins, with what.
      server: Where it listens; see `join`, as for the others.
      ca: The fleet's ca.crt.
      token: A file with the token.
      certificate: device.crt.
      key: device.key.
      insecure: Whether to do without TLS.
      notice: Called with what happens.

    Raises:
      UserError: Something cannot be.
    """
    credentials = credentials_to(server, ca, certificate, key, insecure=insecure)
    secret = read_token(token, os.environ)
    keep_freed_memory(ON_A_DEVICE)
    dial = dialler(server, name=joining.name, token=secret, credentials=credentials, insecure=insecure)
    return join_run(joining, dial, Random(joining.name), notice)


def credentials_to(
    server: str, ca: Path | None, certificate: Path | None, key: Path | None, *, insecure: bool
) -> grpc.ChannelCredentials | None:
    """The TLS of a way to a server; None for plain text.

    Args:
      server: Where it listens, HOST:PORT.
      ca: The fleet's ca.crt.
      certificate: The certificate of whoever dials.
      key: Its key.
      insecure: Whether to do without TLS.

    Raises:
      ConfigError: TLS is needed, or a file of it cannot be read.
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
