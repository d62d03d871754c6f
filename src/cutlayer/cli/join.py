"""`cutlayer join`: a device of a real fleet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from cutlayer.cli.log import say
from cutlayer.cli.signals import run_until_signalled

ALLOWED = "What the server is allowed"


def _limit(flag: str, metavar: str, help: str, **checks: Any) -> Any:
    """An option by which the device's owner keeps something from the server."""
    return typer.Option(flag, metavar=metavar, help=help, rich_help_panel=ALLOWED, show_default=False, **checks)


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
    task: Annotated[str, _limit("--task", "KIND", "Learn nothing but this: classification or causal-lm.")] = "",
    text: Annotated[str, _limit("--text", "COLUMN,...", "Columns that may be read as text.")] = "",
    label: Annotated[
        str, _limit("--label", "COLUMN,...", "Columns that may be read as labels; no other, where either is said.")
    ] = "",
    least_blocks: Annotated[
        int, _limit("--least-blocks", "N", "Hidden states leave after N blocks or more.", min=0)
    ] = 0,
    never: Annotated[
        str, _limit("--never", "WORD,...", "What may not leave: labels, counts (by class), activations.")
    ] = "",
    only: Annotated[str, _limit("--only", "METHOD,...", "Methods that the run may have.")] = "",
    rounds: Annotated[int | None, _limit("--rounds", "N", "Take part in so many rounds.", min=1)] = None,
    until: Annotated[str, _limit("--until", "TIME", "And no longer than to 2026-12-24T18:00, or 18:00.")] = "",
    leash: Annotated[
        bool, typer.Option("--leash", hidden=True, help="End when standard input closes: whoever started this is gone.")
    ] = False,
) -> None:
    """Join a server's run: measure this machine, train on its data, which stays here; until the run is over."""
    from cutlayer.data.source import check_place
    from cutlayer.device.limits import Limits
    from cutlayer.device.token import read_token
    from cutlayer.model.place import check_place as check_model
    from cutlayer.reading import check_hardware
    from cutlayer.transport.diagnosis import check_authority
    from cutlayer.transport.tls import credentials_for

    # Seconds of imports come after what can be told without them.
    credentials_for(server, ca, certificate, key, insecure=insecure)
    read_token(token, os.environ)
    check_place(data)
    check_hardware(hardware)
    if model not in ("", "server"):
        check_model(model)
    if ca is not None:
        check_authority(ca)
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
    say(f"{name}: starting")
    from cutlayer.api.join import attending
    from cutlayer.joining import Joining

    joining = Joining.read(
        name,
        data,
        model=model,
        folder=folder,
        hardware=hardware,
        max_blocks=max_blocks,
        patience_seconds=patience,
        limits=limits,
    )
    work = attending(
        joining,
        server,
        ca,
        token,
        certificate,
        key,
        insecure=insecure,
        notice=lambda line: say(f"{name}: {line}"),
    )
    run_until_signalled(work, "the same command", leash=leash)
    say(f"{name}: the run is over")
