"""A command as a user sees it, and the folder of tiny things that it is given."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from cutlayer.cli import main
from cutlayer.server.checkpoint import save_checkpoint
from cutlayer.state import State

FLEET: dict[str, Any] = {
    "server": {"tflops": 1, "efficiency": 0.3, "memory_gib": 4},
    "defaults": {"efficiency": 0.3, "up_mbit": 10, "down_mbit": 20, "latency_ms": 5, "memory_gib": 1},
    "devices": [
        {"name": "slow", "tflops": 0.00001, "max_blocks": 1},
        {"name": "quick", "tflops": 0.00002, "max_blocks": 2, "data_weight": 2},
    ],
}


@dataclass(frozen=True)
class Ran:
    """The result of a command: its exit code and what it printed.

    Attributes:
      err: on standard error, but for its progress.
      progress: what consoles of progress say there.
    """

    code: int
    out: str
    err: str
    progress: str = ""


def run(*arguments: object, apart: bool = True) -> Ran:
    """Runs `cutlayer` with these arguments in this process; `apart` tells its progress from its errors."""
    out, err, progress, code = io.StringIO(), io.StringIO(), io.StringIO(), 0
    stream = mock.patch("cutlayer.cli.terminal.progress_stream", return_value=progress)
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        stream if apart else contextlib.nullcontext(),
    ):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as exit:
            code = int(exit.code or 0)
    return Ran(code, out.getvalue(), err.getvalue(), progress.getvalue())


@dataclass(frozen=True)
class World:
    """Everything that a tiny run needs, in one folder."""

    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "run"

    @property
    def fleet(self) -> Path:
        return self.folder / "fleet.yaml"

    @property
    def classifier(self) -> Path:
        return self.folder / "bert"

    @property
    def writer(self) -> Path:
        return self.folder / "llama"

    @property
    def reviews(self) -> Path:
        return self.folder / "reviews"

    @property
    def sums(self) -> Path:
        return self.folder / "sums"

    def linked(self, folder: Path) -> World:
        """The same content in another folder, by links."""
        for path in self.folder.iterdir():
            (folder / path.name).symlink_to(path)
        return World(folder)

    def classification(self) -> list[object]:
        """Flags of a run of about a second."""
        return ["--model", self.classifier, "--data", self.reviews, *self._common()]

    def causal_lm(self) -> list[object]:
        """The same for a causal LM on prompts and answers."""
        columns = ["--task", "causal-lm", "--prompt", "question", "--answer", "reply", "--template", "plain"]
        return ["--model", self.writer, "--data", self.sums, *columns, *self._common()]

    def _common(self) -> list[object]:
        size = ["--rounds", 2, "--local-steps", 2, "--batch-size", 4, "--max-length", 16, "--lr", 0.01]
        return ["--fleet", self.fleet, *size, "--out", self.out]


def stopped_after_a_round(*arguments: object) -> Ran:
    """Runs `cutlayer` until the first checkpoint is written; then Ctrl-C."""

    def save_and_stop(folder: Path, state: State, run: str, *, keep: int) -> None:
        save_checkpoint(folder, state, run, keep=keep)
        raise KeyboardInterrupt

    with mock.patch("cutlayer.run.run.save_checkpoint", save_and_stop):
        return run(*arguments)
