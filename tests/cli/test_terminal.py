"""The lines and warnings that the terminal shows."""

from __future__ import annotations

import os
import sys
import warnings

import pytest

from cutlayer.cli.terminal import LIBRARIES, console, quiet_libraries
from cutlayer.report.listing import Listing


def test_a_row_is_a_line_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Listing("name", numbers=["count"])
    shown.add_row("x" * 200, "[1]")
    console().print(shown)
    assert f"{'x' * 200}    [1]" in capsys.readouterr().out


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    monkeypatch.delenv("DATASETS_VERBOSITY", raising=False)
    quiet_libraries()
    assert (os.environ["TRANSFORMERS_VERBOSITY"], os.environ["DATASETS_VERBOSITY"]) == ("info", "error")


@pytest.mark.parametrize("asked", [[], ["default"]], ids=["by default", "with -W"])
def test_warnings_of_libraries_are_silent_unless_asked_for(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "warnoptions", asked)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        quiet_libraries()
        for library in LIBRARIES:
            warnings.warn_explicit("chatter", UserWarning, "file.py", 1, module=f"{library}.inner")
        warnings.warn_explicit("ours", UserWarning, "file.py", 1, module="cutlayer.config")
    said = {str(warning.message) for warning in heard}
    assert said == ({"ours", "chatter"} if asked else {"ours"})
