"""A page that was asked for: kept with the run, but for its token, and laid over by what is said anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from cutlayer.errors import CheckpointError, ConfigError
from cutlayer.page.asked import PageAsked, started_of
from cutlayer.report.run_folder import RunFolder


def test_a_run_that_goes_on_has_its_page_again(tmp_path: Path) -> None:
    tls = tmp_path / "fleet"
    asked = PageAsked.of("0.0.0.0:7072", tls, None)
    assert asked == PageAsked("0.0.0.0:7072", tls)
    folder = RunFolder.create(tmp_path / "run")
    folder.write_started({"command": "serve", **started_of(asked)})
    assert "token" not in (tmp_path / "run" / "started.json").read_text()
    for address, said_tls, expected in (
        (None, None, asked),
        ("127.0.0.1:0", None, PageAsked("127.0.0.1:0", tls)),
        ("", tmp_path, PageAsked("", tmp_path)),
        (None, tmp_path, PageAsked("0.0.0.0:7072", tmp_path)),
        ("none", None, None),
    ):
        assert PageAsked.of(address, said_tls, folder.path) == expected
    folder.write_started({"command": "serve", **started_of(None)})
    assert PageAsked.of(None, None, folder.path) is None
    with pytest.raises(ConfigError, match="expected --page HOST:PORT beside it"):
        PageAsked.of(None, tls, folder.path)


def test_what_is_no_page_is_told(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.write_started({"command": "train", "page": 7072})
    with pytest.raises(CheckpointError, match="the address of the run's page, got '7072'"):
        PageAsked.of(None, None, folder.path)
    assert PageAsked.of(None, None, tmp_path / "none") is None
