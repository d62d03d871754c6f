"""Files that a person gives and that cannot be read, at whatever moment: one line in our form, and nothing written.

Each command is run once, and everything that it opens, lists or looks at of what it was given is counted; then it is
run again with one of these failing, as a disk does, for each. What C and Rust open (safetensors, tokenizers, pyarrow)
is not seen here; the file before it is.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

from cli.test_bad_input import FORM
from commands import Ran, World, run

SEEN = ("open", "os.listdir", "os.scandir")
"""Events of `sys.audit` whose first argument is a path."""
STEPS = {"quick": 11, "every": 1}

Touch = Callable[[str], None]
_touch: Touch | None = None


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _touch is not None and event in SEEN and isinstance(arguments[0], str | bytes | os.PathLike):
        _touch(os.fsdecode(arguments[0]))


sys.addaudithook(_hook)  # which nobody can take away again: it asks for `_touch`


@contextmanager
def touching(touch: Touch) -> Iterator[None]:
    """Tells `touch` of each file or folder before it is opened, listed or looked at meanwhile."""
    global _touch
    stat = os.stat

    def looked_at(path: object, *args: object, **options: object) -> os.stat_result:
        if isinstance(path, str | bytes | os.PathLike):
            touch(os.fsdecode(path))
        return stat(path, *args, **options)  # type: ignore[arg-type]

    _touch = touch
    try:
        with mock.patch("os.stat", looked_at):
            yield
    finally:
        _touch = None


def touched(given: Path, command: Callable[[], Ran], failing: int | None = None) -> tuple[Ran, list[str]]:
    """Runs a command, of whose touches of what was given one may fail.

    Args:
      given: The folder of all that.
      command: Runs it.
      failing: Which, counted from 0; None for none.
    """
    paths, roots = list[str](), [Path(os.path.realpath(path)) for path in given.iterdir()]  # they may be links

    def touch(path: str) -> None:
        if any(Path(os.path.realpath(path)).is_relative_to(root) for root in roots):
            paths.append(path)
            if len(paths) - 1 == failing:
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    with touching(touch):
        ran = command()
    return ran, paths


def without_memory(out: str) -> list[str]:
    """Lines that were printed, without those of the memory of this process, which grows from run to run."""
    return [line for line in out.splitlines() if "process" not in line]


COMMANDS: dict[str, Callable[[World], list[object]]] = {
    "plan": lambda world: ["plan", *world.classification()],
    "show-data": lambda world: ["show-data", *world.causal_lm()],
    "fleet file": lambda world: ["plan", world.folder / "run.yaml"],
}


@pytest.mark.parametrize("step", [STEPS["quick"], pytest.param(STEPS["every"], marks=pytest.mark.slow)], ids=STEPS)
@pytest.mark.parametrize("name", COMMANDS)
def test_every_look_at_what_was_given(name: str, step: int, world: World) -> None:
    (world.folder / "run.yaml").write_text(
        f"{{model: {{name: {world.classifier}}}, data: {{path: {world.reviews}, max_length: 16}}, "
        f"fleet: {world.fleet}, train: {{rounds: 1, local_steps: 2, batch_size: 4}}}}"
    )
    words = COMMANDS[name](world)
    whole, paths = touched(world.folder, lambda: run(*words))
    assert whole.code == 0, whole.err
    assert len(paths) > 20
    wrong = {}
    for number in range(0, len(paths), step):
        ran, there = touched(world.folder, lambda: run(*words), number)
        path = there[number] if number < len(there) else "?"
        if ran.code == 0 and without_memory(ran.out) == without_memory(whole.out):
            continue  # it was looked for, and is not needed
        lines = ran.err.splitlines()
        if ran.code != 2 or len(lines) != 1 or not FORM.match(lines[0]):
            wrong[f"{number} {Path(path).name}"] = (ran.code, ran.err[-600:])
    assert not wrong, "\n".join(f"{where}: {told}" for where, told in wrong.items())
    assert not world.out.exists()
