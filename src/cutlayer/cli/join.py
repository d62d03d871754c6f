"""`cutlayer join`: a device of a real fleet."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cutlayer.cli.signals import run_until_signalled
from cutlayer.errors import ConfigError

if TYPE_CHECKING:
    import grpc


def join(
    server: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the server listens.")],
    *,
    data: Annotated[str, typer.Option("--data", metavar="PATH", help="This device's training data.")],
    name: Annotated[str, typer.Option("--name", help="This device's name in the fleet.")],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="NAME",
            help="A folder, a hub name, or `server`, which then sends what is needed; by default the run's own name.",
            show_default=False,
        ),
    ] = "",
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="What must outlive this process: by default cutlayer-NAME.", show_default=False),
    ] = None,
    hardware: Annotated[str, typer.Option(help="Where this process computes: cpu, cuda or cuda:N.")] = "cpu",
    max_blocks: Annotated[
        int | None, typer.Option(min=0, help="The most blocks that you lend.", show_default=False)
    ] = None,
    ca: Annotated[
        Path | None, typer.Option("--ca", metavar="FILE", help="The fleet's ca.crt.", show_default=False)
    ] = None,
    token: Annotated[
        Path | None,
        typer.Option("--token", metavar="FILE", help="Holds this device's token; or CUTLAYER_TOKEN does."),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", metavar="FILE", help="device.crt, in place of a token.")
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", metavar="FILE", help="device.key.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Join a server on another machine without TLS.")] = False,
    patience: Annotated[float, typer.Option(min=0, help="Seconds without a server before giving up.")] = 600.0,
    leash: Annotated[
        bool, typer.Option("--leash", hidden=True, help="End when standard input closes: whoever started this is gone.")
    ] = False,
) -> None:
    """Join a server's run: measure this machine, train on its data, which stays here; until the run is over."""
    from random import Random

    from cutlayer.device.token import read_token
    from cutlayer.joining import Joining
    from cutlayer.joining import join as join_run
    from cutlayer.transport.allocator import keep_freed_memory
    from cutlayer.transport.grpc_carrier import dialler

    credentials = _credentials(server, ca, certificate, key, insecure=insecure)
    secret = read_token(token, os.environ)
    keep_freed_memory()
    joining = Joining(
        name=name,
        data=data,
        model=model,
        folder=folder or Path(f"cutlayer-{name}"),
        hardware=hardware,
        max_blocks=max_blocks,
        patience_seconds=patience,
    )
    run_until_signalled(
        join_run(
            joining,
            dialler(server, name=name, token=secret, credentials=credentials, insecure=insecure),
            Random(name),
            lambda line: print(f"{name}: {line}", file=sys.stderr),
        ),
        "the same command",
        leash=leash,
    )
    print(f"{name}: the run is over", file=sys.stderr)


def _credentials(
    server: str, ca: Path | None, certificate: Path | None, key: Path | None, *, insecure: bool
) -> grpc.ChannelCredentials | None:
    from cutlayer.transport.exposure import is_loopback
    from cutlayer.transport.tls import channel_credentials

    host, _, port = server.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"join: expected HOST:PORT, got {server!r}. Write for example fleet.example.org:7070.")
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
