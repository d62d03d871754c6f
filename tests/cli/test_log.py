"""The log is on standard error, as text or as lines of JSON; its options may stand anywhere."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator

import pytest

from cutlayer.cli import log
from cutlayer.cli.log import FORMAT, LEVEL, set_up
from cutlayer.errors import ConfigError


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """The environment and the loggers of this process, which `set_up` changes."""
    before = {name: os.environ.pop(name, None) for name in (LEVEL, FORMAT)}
    ours = logging.getLogger("cutlayer")
    state = ours.level, ours.propagate, list(ours.handlers), log.PROGRESS.level
    yield
    ours.level, ours.propagate, log.PROGRESS.level = state[0], state[1], state[3]
    ours.handlers[:] = state[2]
    logging.root.manager._clear_cache()  # type: ignore[attr-defined]
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.mark.parametrize(
    "words",
    [
        ["--log-level", "debug", "train", "--out", "x"],
        ["train", "--log-level=DEBUG", "--out", "x"],
        ["train", "--out", "x", "--log-level", "debug"],
    ],
    ids=" ".join,
)
def test_its_options_may_stand_anywhere_and_hold_for_children(words: list[str]) -> None:
    assert set_up(words) == ["train", "--out", "x"]
    assert logging.getLogger("cutlayer.door").isEnabledFor(logging.DEBUG)
    assert os.environ[LEVEL] == "debug"


def test_the_environment_says_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LEVEL, "error")
    assert set_up([]) == []
    assert not logging.getLogger("cutlayer.door").isEnabledFor(logging.WARNING)
    set_up(["--log-level", "info"])
    assert logging.getLogger("cutlayer.door").isEnabledFor(logging.INFO)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--log-level", "loud"], "--log-level: expected one of debug, info, warning, error, got 'loud'"),
        (["--log-level"], "--log-level: expected one of debug, info, warning, error, got ''"),
        (["--log-format=xml"], "--log-format: expected one of text, json, got 'xml'"),
    ],
)
def test_what_is_none_of_them_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        set_up(words)
    assert said in str(error.value)


def test_warnings_are_said_and_less_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    set_up([])
    logger = logging.getLogger("cutlayer.door")
    logger.info("pi-1 is connected from 10.0.0.1:5")
    logger.warning("refused %s", "a stranger")
    log.say("round 1/2")
    log.say_error("no such file")
    assert capsys.readouterr() == (
        "",
        "WARNING: cutlayer.door: refused a stranger\nround 1/2\nerror: no such file\n",
    )


def test_as_json_everything_is_a_line_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(["--log-format", "json"])
    logger = logging.getLogger("cutlayer.door")
    logger.warning("two\nlines")
    try:
        raise ValueError("no")
    except ValueError:
        logger.exception("a defect")
    print("half a line, ", end="", file=(stream := log.progress_stream()))
    print("the rest\n\nanother", file=stream)
    log.say_error("no such file")
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in err.splitlines()]
    assert out == ""
    assert [(row["level"], row["logger"], row["message"]) for row in rows] == [
        ("warning", "cutlayer.door", "two\nlines"),
        ("error", "cutlayer.door", "a defect"),
        ("info", "cutlayer.progress", "half a line, the rest"),
        ("info", "cutlayer.progress", "another"),
        ("error", "cutlayer.error", "no such file"),
    ]
    assert "ValueError: no" in rows[1]["error"]
    assert all(row["time"].endswith("+00:00") for row in rows)


def test_an_asked_level_holds_for_progress_as_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(["--log-format", "json", "--log-level", "warning"])
    log.say("round 1/2")
    assert capsys.readouterr().err == ""
