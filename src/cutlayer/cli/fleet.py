"""`cutlayer fleet`: who may come in. A fleet is a folder: its certificates, and the roster of its devices."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cutlayer.cli.terminal import AsJson, console, print_json, table

fleet = typer.Typer(no_args_is_help=True, help="Make a fleet of real devices, and say who may come in.")

FolderOption = Annotated[Path, typer.Option("--fleet", help="The fleet folder that `init` made.")]
NameArgument = Annotated[str, typer.Argument(help="The device's name.")]


@fleet.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet.")],
    host: Annotated[list[str], typer.Option("--host", help="A name or address that devices dial; may be repeated.")],
    days: Annotated[float, typer.Option(min=1, help="How long the server's certificate is valid.")] = 365,
) -> None:
    """Make a fleet folder: an authority, the server's certificate, an empty roster."""
    from datetime import UTC, datetime

    from cutlayer.gate.roster import Roster
    from cutlayer.transport.certificates import alternatives, issue_server, make_authority

    now = datetime.now(UTC)
    alternatives(host)  # what is wrong with them shows before anything is written
    Roster.create(folder)
    make_authority(folder, now)
    issue_server(folder, host, now, days=days)
    print(f"{folder}: a fleet whose server answers to {', '.join(host)}. Keep it secret: ca.key can let anybody in.")
    print(f"Next: cutlayer fleet add NAME --fleet {folder}")


@fleet.command()
def renew(
    host: Annotated[list[str], typer.Option("--host", help="A name or address that devices dial; may be repeated.")],
    folder: FolderOption,
    days: Annotated[float, typer.Option(min=1, help="How long the server's certificate is valid.")] = 365,
) -> None:
    """Make the server a new certificate; devices need nothing new. A server that runs shows it from then on."""
    from datetime import UTC, datetime

    from cutlayer.transport.certificates import issue_server

    issue_server(folder, host, datetime.now(UTC), days=days)
    print(f"{folder}: a new certificate of the server for {', '.join(host)}, valid for {days:g} days.")


@fleet.command()
def add(
    name: NameArgument,
    folder: FolderOption,
    certificate: Annotated[bool, typer.Option("--certificate", help="A certificate in place of a token.")] = False,
    days: Annotated[float, typer.Option(min=1, help="How long a client certificate is valid.")] = 365,
) -> None:
    """Let a device in. Its token is printed once, alone on standard output; no file of the server holds it."""
    from datetime import UTC, datetime

    from cutlayer.gate.roster import Roster
    from cutlayer.transport.certificates import issue_device, write_issued

    now, roster = datetime.now(UTC), Roster(folder)
    if certificate:
        issued = issue_device(folder, name, now, days=days)
        roster.add_certificate(name, issued.fingerprint, when=now)
        files = folder / "devices" / name
        files.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_issued(files / "device.crt", files / "device.key", issued)
        _say(f"Copy {files}/device.crt, {files}/device.key and {folder}/ca.crt to {name}; then delete device.key here.")
        return
    token = roster.add(name, when=now)
    _say(f"Copy {folder}/ca.crt to {name}, and this token, which is shown only now, into a file there that only its")
    _say("owner may read (chmod 600), or into its CUTLAYER_TOKEN:")
    print(token)


@fleet.command()
def revoke(name: NameArgument, folder: FolderOption) -> None:
    """Let a device in no more, at once: a running server parts with it at its next sign of life."""
    from datetime import UTC, datetime

    from cutlayer.gate.roster import Roster

    Roster(folder).revoke(name, when=datetime.now(UTC))
    print(f"{name} may not come in any more.")


@fleet.command("list")
def list_devices(folder: FolderOption, *, as_json: AsJson = False) -> None:
    """List the devices of a fleet."""
    from cutlayer.gate.roster import Roster

    if as_json:
        entries = Roster(folder).entries().items()
        print_json([{"device": n, "kind": e.kind, "since": e.since, "revoked": e.revoked or None} for n, e in entries])
        return
    shown = table("device", "proves itself by", "since", "revoked")
    for name, entry in Roster(folder).entries().items():
        shown.add_row(name, entry.kind, entry.since, entry.revoked or "-")
    console().print(shown)


def _say(line: str) -> None:
    """What is for a person, while standard output may go into a pipe to the device."""
    print(line, file=sys.stderr)
