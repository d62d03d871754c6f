"""The log: what cutlayer's loggers say, on standard error, as text or as a JSON object in each line.

    --log-level LEVEL      or CUTLAYER_LOG_LEVEL: debug, info, warning (the default), error
    --log-format FORMAT    or CUTLAYER_LOG_FORMAT: text (the default), json

Both may stand behind any command, and hold for the processes that it starts. With `json` nothing but such lines is on
standard error, except where the command line itself is wrong: what else would be said there, progress and errors, is
said by the loggers `cutlayer.progress`, which is heard from info on where no level is asked for, and `cutlayer.error`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from io import TextIOBase
from typing import TextIO

from cutlayer.errors import ConfigError

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
LEVEL, FORMAT = "CUTLAYER_LOG_LEVEL", "CUTLAYER_LOG_FORMAT"
_OPTIONS = {"--log-level": (LEVEL, LEVELS), "--log-format": (FORMAT, FORMATS)}

PROGRESS = logging.getLogger("cutlayer.progress")
ERROR = logging.getLogger("cutlayer.error")


class _ToStandardError(logging.Handler):
    """Writes to what standard error is at the moment: a live display may have taken its place."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except (OSError, ValueError):  # nobody reads it any more
            self.handleError(record)


class _AsText(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("{levelname}: {name}: {message}", style="{")

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record) if record.name != PROGRESS.name else record.getMessage()


class _AsJson(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            said["error"] = self.formatException(record.exc_info)
        return json.dumps(said)


_handler = _ToStandardError()


def set_up(arguments: Sequence[str]) -> list[str]:
    """Takes the options of the log out of a command line, wherever they stand, and sets it up as they say.

    Args:
      arguments: What stands behind `cutlayer`.

    Returns:
      The rest.

    Raises:
      ConfigError: An option, or a variable of the environment, is none of those that there are.
    """
    rest, words = list[str](), iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in _OPTIONS:
            rest.append(word)
            continue
        variable, known = _OPTIONS[name]
        os.environ[variable] = _checked(value if equals else next(words, ""), name, known)
    level = _checked(os.environ.get(LEVEL) or "warning", LEVEL, LEVELS)
    form = _checked(os.environ.get(FORMAT) or "text", FORMAT, FORMATS)
    ours = logging.getLogger("cutlayer")
    ours.setLevel(level.upper())
    ours.propagate = False
    _handler.setFormatter(_AsJson() if form == "json" else _AsText())
    if _handler not in ours.handlers:
        ours.addHandler(_handler)
    PROGRESS.setLevel(level.upper() if os.environ.get(LEVEL) else logging.INFO)
    return rest


def _checked(given: str, where: str, known: Sequence[str]) -> str:
    if given.lower() not in known:
        raise ConfigError(f"{where}: expected one of {', '.join(known)}, got {given!r}. Choose one of them.")
    return given.lower()


def as_json() -> bool:
    """Whether everything on standard error is a line of JSON."""
    return os.environ.get(FORMAT) == "json"


class _Said(TextIOBase):
    """A stream for a console whose lines go into the log."""

    def __init__(self) -> None:
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if line.strip():
                PROGRESS.info("%s", line.rstrip())
        return len(text)


def progress_stream() -> TextIO:
    """The stream of progress: standard error, as text or as lines of the log."""
    return _Said() if as_json() else sys.stderr  # type: ignore[return-value]


def say(line: str) -> None:
    """Progress, of one line."""
    print(line, file=progress_stream(), flush=True)


def say_error(line: str) -> None:
    """Says why a command has failed, in one line."""
    if as_json():
        ERROR.error("%s", line)
    else:
        print(f"error: {line}", file=sys.stderr)
