"""`cutlayer join` from Python."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from cutlayer.api.apart import run_apart
from cutlayer.device.limits import Limits
from cutlayer.device.token import read_token
from cutlayer.joining import Joining
from cutlayer.joining import join as join_run
from cutlayer.transport.allocator import ON_A_DEVICE, keep_freed_memory
from cutlayer.transport.carrier import Dial
from cutlayer.transport.diagnosis import wrong_with
from cutlayer.transport.grpc_carrier import dialler
from cutlayer.transport.tls import credentials_for


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
    task: str = "",
    text: Sequence[str] = (),
    label: Sequence[str] = (),
    least_blocks: int = 0,
    never: Sequence[str] = (),
    only: Sequence[str] = (),
    rounds: int | None = None,
    until: str = "",
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
      task: The server may have learned nothing but this: classification or causal-lm; empty for either.
      text: Columns that it may have read as text.
      label: Columns that it may have read as labels; no other column, where either is said.
      least_blocks: Hidden states leave after so many blocks or more.
      never: What may not leave: labels (of samples), counts (of samples by class), activations.
      only: Names of methods that the run may have.
      rounds: In how many the device takes part.
      until: And for how long: 2026-12-24T18:00, or 18:00.
      on_notice: Called with what happens, a line at a time.

    Raises:
      JoinError: The server refuses, or there is none.
      Declined: The server asks for what is not allowed.
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
    limits = Limits.read(
        task=task,
        text=text,
        label=label,
        least_blocks=least_blocks,
        never=never,
        only=only,
        rounds=rounds,
        until=until,
    )
    joining = Joining.read(
        name,
        data,
        model=model,
        folder=folder,
        hardware=hardware,
        max_blocks=max_blocks,
        patience_seconds=patience_seconds,
        limits=limits,
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
    dial = way_to(server, joining.name, ca, token, certificate, key, insecure=insecure)
    keep_freed_memory(ON_A_DEVICE)
    wrong = partial(asyncio.to_thread, wrong_with, server, ca, certificate, key)
    return join_run(joining, dial, Random(joining.name), notice, wrong=wrong)


def way_to(
    server: str,
    name: str,
    ca: Path | None,
    token: Path | None,
    certificate: Path | None,
    key: Path | None,
    *,
    insecure: bool,
) -> Dial:
    """The way of a device, or of a site, to a server.

    Args:
      server: Where it listens; see `join`, as for the others.
      name: Who dials.
      ca: The fleet's ca.crt.
      token: A file with the token.
      certificate: device.crt.
      key: device.key.
      insecure: Whether to do without TLS.

    Raises:
      UserError: Something cannot be.
    """
    credentials = credentials_for(server, ca, certificate, key, insecure=insecure)
    secret = read_token(token, os.environ)
    return dialler(server, name=name, token=secret, credentials=credentials, insecure=insecure)
