"""Help that a person reads: values have names, switches have none, and no sentence is broken in two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.core import TyperOption

from cutlayer.cli.app import app


def commands() -> Iterator[tuple[str, Any]]:
    root = typer.main.get_group(app)
    for name, command in root.commands.items():
        inner = getattr(command, "commands", None)
        yield from [(name, command)] if inner is None else ((f"{name} {one}", inner[one]) for one in inner)


COMMANDS = dict(commands())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_plain(name: str) -> None:
    command = COMMANDS[name]
    options = [one for one in command.params if isinstance(one, TyperOption)]
    for option in options:
        assert option.metavar is not None, f"{option.name}: say in CALLED what a value of its type is called"
        assert bool(option.metavar) != option.is_flag, option.name
        assert option.help, option.name
    assert "\n" not in command.help.replace("\n\n", "")


def test_every_command_has_its_place() -> None:
    assert all(command.rich_help_panel for command in typer.main.get_group(app).commands.values())
