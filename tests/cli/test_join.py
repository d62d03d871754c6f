"""`cutlayer join` with wrong input: one line, exit code 2, nothing written. Whole runs: run/test_served.py."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from commands import run


@pytest.fixture
def nobody() -> str:
    """An address of this machine on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as once:
        return f"127.0.0.1:{once.getsockname()[1]}"


def wrong(folder: Path, *flags: object) -> str:
    (folder / "reviews.jsonl").touch()
    given = ["--data", folder / "reviews.jsonl", "--name", "pi-1", "--folder", folder / "kept"]
    ran = run("join", *flags, *given)
    assert ran.code == 2, ran.err
    assert not (folder / "kept").exists()
    return ran.err.splitlines()[-1]


@pytest.mark.parametrize("address", ["localhost", "localhost:", "localhost:http", ":7070", "::1:7070"])
def test_an_address_is_a_host_and_a_port(address: str, tmp_path: Path) -> None:
    assert "expected HOST:PORT" in wrong(tmp_path, address)


def test_a_port_that_there_is_not(tmp_path: Path) -> None:
    assert "expected a port up to 65535, got 99999" in wrong(tmp_path, "localhost:99999")


def test_another_machine_is_not_trusted_by_accident(tmp_path: Path) -> None:
    assert "--ca" in wrong(tmp_path, "fleet.example.org:7070")


def test_a_token_that_others_may_read_is_refused_unseen(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secretword")
    token.chmod(0o644)
    said = wrong(tmp_path, "localhost:1", "--token", token)
    assert "chmod 600" in said
    assert "secretword" not in said


def test_a_certificate_has_a_key_and_an_authority(tmp_path: Path) -> None:
    certificate = tmp_path / "device.crt"
    certificate.write_text("x")
    assert "--ca" in wrong(tmp_path, "localhost:1", "--certificate", certificate)
    (tmp_path / "ca.crt").write_text("x")
    said = wrong(tmp_path, "localhost:1", "--certificate", certificate, "--ca", tmp_path / "ca.crt")
    assert "Name both files" in said


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--task", "poetry", "expected classification or causal-lm, got 'poetry'"),
        ("--never", "labels,label", "expected some of labels, counts, activations, got 'label'"),
        ("--until", "noon", "expected a time such as 2026-12-24T18:00 or 18:00, got 'noon'"),
        ("--until", "2020-01-01T00:00", "expected no question after 2020-01-01T00:00"),
    ],
)
def test_what_is_no_limit(flag: str, value: str, says: str, nobody: str, tmp_path: Path) -> None:
    assert says in wrong(tmp_path, nobody, flag, value)


def test_a_server_that_is_not_there(nobody: str, tmp_path: Path) -> None:
    said = wrong(tmp_path, nobody, "--patience", 0)
    assert said.startswith("error: join: expected an answer of the server within 0 s")
    assert "Check the address" in said
