"""The commands together, and how they end."""

from __future__ import annotations

import pytest

import cutlayer
from commands import run
from cutlayer.cli import methods as methods_command
from cutlayer.errors import MalformedMessage


def test_the_version() -> None:
    assert run("--version").out == f"cutlayer {cutlayer.__version__}\n"


def test_help_names_every_command() -> None:
    shown = run("--help")
    assert shown.code == 0
    assert all(
        name in shown.out
        for name in (
            "train",
            "plan",
            "compare",
            "evaluate",
            "export",
            "generate",
            "methods",
            "fleets",
            "families",
            "--debug",
        )
    )


def test_an_unknown_command_is_a_usage_error() -> None:
    ran = run("trian")
    assert ran.code == 2
    assert "trian" in ran.err


def test_what_arrived_wrong_is_one_line_and_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise MalformedMessage("frame: expected a magic,\ngot none. Drop it.")

    monkeypatch.setattr(methods_command, "console", broken)
    ran = run("methods")
    assert (ran.code, ran.err) == (1, "error: frame: expected a magic,\\ngot none. Drop it.\n")


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(methods_command, "console", broken)
    with pytest.raises(ZeroDivisionError):
        run("methods")
