"""`cutlayer fleet`: who may come in. A fleet is a folder: its certificates, and the roster of its devices."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cutlayer.cli.plain import PlainCommand, PlainGroup
from cutlayer.cli.terminal import AsJson, console, print_json
from cutlayer.shown import shown

fleet = typer.Typer(cls=PlainGroup, no_args_is_help=True, help="Make a fleet of real devices, and say who may come in.")

FolderOption = Annotated[Path, typer.Option("--fleet", help="The fleet folder that `init` made.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The device's name.")]


@fleet.command(cls=PlainCommand)
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that is not there yet.")],
    host: Annotated[
        list[str], typer.Option("--host", metavar="HOST", help="A name or address that devices dial; may be repeated.")
    ],
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


@fleet.command(cls=PlainCommand)
def renew(
    host: Annotated[
        list[str], typer.Option("--host", metavar="HOST", help="A name or address that devices dial; may be repeated.")
    ],
    folder: FolderOption,
    days: Annotated[float, typer.Option(min=1, help="How long the server's certificate is valid.")] = 365,
) -> None:
    """Make the server a new certificate; devices need nothing new. A server that runs shows it from then on."""
    from datetime import UTC, datetime

    from cutlayer.transport.certificates import issue_server

    issue_server(folder, host, datetime.now(UTC), days=days)
    print(f"{folder}: a new certificate of the server for {', '.join(host)}, valid for {days:g} days.")


@fleet.command(cls=PlainCommand)
def add(
    name: NameArgument,
    folder: FolderOption,
    certificate: Annotated[bool, typer.Option("--certificate", help="A certificate in place of a token.")] = False,
    days: Annotated[float, typer.Option(min=1, help="How long a client certificate is valid.")] = 365,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the token there, for its owner alone.", show_default=False),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Of the server, for the line to type.")] = 7070,
) -> None:
    """Let a device in. Its token is written or printed once, alone on standard output; no file of the server holds it.

    Ends with the command that the device types.
    """
    from datetime import UTC, datetime

    from cutlayer.files import write_atomically
    from cutlayer.gate.roster import Roster
    from cutlayer.transport.certificates import issue_device, write_issued

    now, roster = datetime.now(UTC), Roster(folder)
    if out is not None:
        _check_out(out, certificate=certificate)
    if certificate:
        issued = issue_device(folder, name, now, days=days)
        roster.add_certificate(name, issued.fingerprint, when=now)
        files = folder / "devices" / name
        files.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_issued(files / "device.crt", files / "device.key", issued)
        _say(f"Copy {files}/device.crt, {files}/device.key and {folder}/ca.crt to {name}; then delete device.key here.")
        _say_join(name, folder, port, "--certificate device.crt --key device.key")
        return
    token = roster.add(name, when=now)
    if out is not None:
        write_atomically(out, f"{token}\n", private=True)
        _say(
            f"Copy {folder}/ca.crt and {out} to {name}, so that only its owner may read it there; then delete it here."
        )
        _say_join(name, folder, port, f"--token {out.name}")
        return
    _say(f"Copy {folder}/ca.crt to {name}, and this token, which is shown only now, into a file there that only its")
    _say("owner may read (chmod 600), or into its CUTLAYER_TOKEN:")
    print(token)
    _say_join(name, folder, port, f"--token {name}.token")


@fleet.command(cls=PlainCommand)
def revoke(name: NameArgument, folder: FolderOption) -> None:
    """Let a device in no more, at once: a running server parts with it at its next sign of life."""
    from datetime import UTC, datetime

    from cutlayer.gate.roster import Roster

    Roster(folder).revoke(name, when=datetime.now(UTC))
    print(f"{name} may not come in any more.")


@fleet.command("list", cls=PlainCommand)
def list_devices(folder: FolderOption, *, as_json: AsJson = False) -> None:
    """List the devices of a fleet, and where its server runs who is here now."""
    from cutlayer.gate.roster import Roster
    from cutlayer.reading import counted
    from cutlayer.report.here import devices_of, read_here
    from cutlayer.report.listing import Listing

    here = read_here(folder)
    now = {device.name: device.state for device in devices_of(here)} if here else {}
    if as_json:
        print_json(
            [
                {"device": name, "now": now.get(name, "away") if here else None, "kind": entry.kind}
                | {"since": entry.since, "revoked": entry.revoked or None}
                for name, entry in Roster(folder).entries().items()
            ]
        )
        return
    listed = Listing("device", "now", "proves itself by", "since", "revoked", most=("now", "revoked"))
    for name, entry in Roster(folder).entries().items():
        state = now.get(name, "away") if here else "-"
        listed.add_row(*map(shown, (name, state, entry.kind, entry.since, entry.revoked or "-")))
    terminal = console()
    terminal.print(listed)
    if here:
        terminal.print(
            f"{here.round} of {counted(here.rounds, 'round')} done: cutlayer status {here.run}", soft_wrap=True
        )
    else:
        terminal.print("No server of this fleet runs, or none has for long enough to say who is here.", soft_wrap=True)


def _check_out(out: Path, *, certificate: bool) -> None:
    """Raises ConfigError for a file that cannot take a token: before the roster knows one that nobody has."""
    from cutlayer.errors import ConfigError

    if certificate:
        raise ConfigError("--out: expected none beside --certificate, whose files have their place. Leave one out.")
    if out.exists():
        raise ConfigError(f"--out: expected a file that is not there yet, got {out}. Name another, or delete it.")
    if not out.parent.is_dir():
        raise ConfigError(f"--out: expected a folder that is there, got {out.parent}. Make it first.")


def _say_join(name: str, folder: Path, port: int, proof: str) -> None:
    """The whole command that a device types."""
    from cutlayer.transport.address import joined
    from cutlayer.transport.certificates import server_hosts

    address = joined(server_hosts(folder)[0], port)
    _say(f"On {name}, where DATA is its own data:")
    _say(f"cutlayer join {address} --name {name} --ca ca.crt {proof} --data DATA --model server")


def _say(line: str) -> None:
    """Prints a line for a person, on standard error: standard output may go into a pipe to the device."""
    print(line, file=sys.stderr)
