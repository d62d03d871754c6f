"""A device's token comes from a file of its own or from the environment, and is never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from cutlayer.device.token import read_token
from cutlayer.errors import ConfigError

TOKEN = "Zk3-x_" * 7


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(f"{TOKEN}\n")
    return path


def test_from_a_file_that_is_its_owners(file: Path) -> None:
    assert read_token(file, {"CUTLAYER_TOKEN": "another"}) == TOKEN
    file.chmod(0o400)
    assert read_token(file, {}) == TOKEN


def test_from_the_environment() -> None:
    assert read_token(None, {"CUTLAYER_TOKEN": TOKEN}) == TOKEN
    assert read_token(None, {}) is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o644])
def test_not_from_a_file_of_others(mode: int, file: Path) -> None:
    file.chmod(mode)
    with pytest.raises(ConfigError, match=f"got mode {mode:o}.*chmod 600"):
        read_token(file, {"CUTLAYER_TOKEN": TOKEN})


@pytest.mark.parametrize("content", ["", "\n", f"{TOKEN} {TOKEN}", f"token:\n{TOKEN}", "tökén", "a\x00b"])
def test_anything_else_is_no_token_and_is_not_shown(content: str, file: Path) -> None:
    file.write_text(content)
    for path, environment in ((file, {}), (None, {"CUTLAYER_TOKEN": content})):
        with pytest.raises(ConfigError, match="Copy it again") as error:
            read_token(path, environment)
        assert TOKEN not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected the device's token"):
        read_token(tmp_path / "token", {"CUTLAYER_TOKEN": TOKEN})
