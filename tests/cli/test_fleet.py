"""`fleet` makes a fleet, lets devices in and out, and shows a token once, where a pipe can take it."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import run
from cutlayer.errors import Refused
from cutlayer.gate.roster import Roster
from cutlayer.report.fleet_view import DeviceNow
from cutlayer.report.here import write_here


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    assert run("fleet", "init", tmp_path / "fleet", "--host", "localhost", "--host", "127.0.0.1").code == 0
    return tmp_path / "fleet"


def test_init_makes_all_that_a_server_needs(fleet: Path) -> None:
    files = {path.name: path.stat().st_mode & 0o777 for path in fleet.iterdir()}
    secret = {"ca.key": 0o600, "server.key": 0o600, "roster.json": 0o600}
    assert {name: files[name] for name in secret} == secret
    assert files.keys() == {*secret, "ca.crt", "server.crt"}
    assert fleet.stat().st_mode & 0o777 == 0o700


def test_a_fleet_is_not_made_twice(fleet: Path) -> None:
    before = (fleet / "ca.crt").read_bytes()
    ran = run("fleet", "init", fleet, "--host", "localhost")
    assert (ran.code, "Name another folder" in ran.err) == (2, True)
    assert (fleet / "ca.crt").read_bytes() == before


def test_a_host_that_nobody_can_dial_makes_nothing(tmp_path: Path) -> None:
    ran = run("fleet", "init", tmp_path / "fleet", "--host", "my server")
    assert (ran.code, "Change --host" in ran.err) == (2, True)
    assert not (tmp_path / "fleet").exists()


def test_a_token_is_alone_on_standard_output(fleet: Path) -> None:
    ran = run("fleet", "add", "pi-1", "--fleet", fleet)
    assert ran.code == 0
    token = ran.out.strip()
    Roster(fleet).admit("pi-1", token)
    assert len(token.split()) == 1
    assert token not in ran.err
    assert "ca.crt" in ran.err
    assert all(token.encode() not in path.read_bytes() for path in fleet.rglob("*") if path.is_file())


def test_a_token_is_written_for_its_owner_alone_and_the_command_is_whole(fleet: Path, tmp_path: Path) -> None:
    file = tmp_path / "pi-1.token"
    ran = run("fleet", "add", "pi-1", "--fleet", fleet, "--out", file)
    assert (ran.code, ran.out) == (0, "")
    assert file.stat().st_mode & 0o777 == 0o600
    Roster(fleet).admit("pi-1", file.read_text().strip())
    typed = ran.err.splitlines()[-1]
    assert typed == (
        "cutlayer join localhost:7070 --name pi-1 --ca ca.crt --token pi-1.token --data DATA --model server"
    )


@pytest.mark.parametrize("words", [["--out", "there"], ["--out", "none/x"], ["--out", "x", "--certificate"]])
def test_a_token_that_could_not_be_written_is_never_made(
    words: list[str], fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").touch()
    ran = run("fleet", "add", "pi-1", "--fleet", fleet, *words)
    assert (ran.code, "--out" in ran.err) == (2, True)
    assert Roster(fleet).names() == []


def test_the_list_says_who_is_here(fleet: Path, tmp_path: Path) -> None:
    for name in ("pi-1", "pi-2"):
        run("fleet", "add", name, "--fleet", fleet)
    assert "No server of this fleet runs" in run("fleet", "list", "--fleet", fleet).out
    write_here([fleet], tmp_path / "run", [DeviceNow("pi-1", "training")], rounds_done=1, rounds=2)
    said = run("fleet", "list", "--fleet", fleet).out
    assert [line.split()[:2] for line in said.splitlines() if "pi-" in line] == [["pi-1", "training"], ["pi-2", "away"]]
    assert "1 of 2 rounds done: cutlayer status " in said


def test_a_certificate_is_written_for_its_device(fleet: Path) -> None:
    ran = run("fleet", "add", "pi-1", "--fleet", fleet, "--certificate")
    assert (ran.code, ran.out) == (0, "")
    files = fleet / "devices" / "pi-1"
    assert {path.name for path in files.iterdir()} == {"device.crt", "device.key"}
    assert (files / "device.key").stat().st_mode & 0o777 == 0o600
    assert Roster(fleet).kind == "certificate"


def test_revoke_ends_it_and_list_shows_it(fleet: Path) -> None:
    token = run("fleet", "add", "pi-1", "--fleet", fleet).out.strip()
    run("fleet", "add", "pi-2", "--fleet", fleet)
    assert run("fleet", "revoke", "pi-1", "--fleet", fleet).code == 0
    with pytest.raises(Refused):
        Roster(fleet).admit("pi-1", token)
    shown = run("fleet", "list", "--fleet", fleet).out
    rows = {cells[0]: cells[1:] for line in shown.splitlines() if (cells := line.split())}
    assert [rows[name][:2] for name in ("pi-1", "pi-2")] == [["-", "token"], ["-", "token"]]
    assert rows["pi-1"][3].startswith("20")
    assert rows["pi-2"][3] == "-"


@pytest.mark.parametrize("command", [("add", "pi/1"), ("revoke", "pi-1"), ("list",)])
def test_what_is_wrong_is_one_line(command: tuple[str, ...], fleet: Path, tmp_path: Path) -> None:
    folder = tmp_path if command == ("list",) else fleet
    ran = run("fleet", *command, "--fleet", folder)
    assert ran.code == 2
    assert len(ran.err.splitlines()) == 1


def test_a_bad_name_gets_no_certificate(fleet: Path) -> None:
    assert run("fleet", "add", "../x", "--fleet", fleet, "--certificate").code == 2
    assert not (fleet / "devices").exists()
    assert not (fleet / "x").exists()


def test_renew_makes_the_server_a_new_certificate(fleet: Path) -> None:
    before = {name: (fleet / name).read_bytes() for name in ("ca.crt", "server.crt", "server.key")}
    assert run("fleet", "renew", "--fleet", fleet, "--host", "pi.example", "--days", 2).code == 0
    changed = {name for name, content in before.items() if (fleet / name).read_bytes() != content}
    assert changed == {"server.crt", "server.key"}
