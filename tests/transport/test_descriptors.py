"""Descriptors: the soft limit is raised, too few are said in one line, and what lacks one is tried again."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from cutlayer import sealed
from cutlayer.errors import ConfigError
from cutlayer.sealed import seal
from cutlayer.state import State
from cutlayer.transport import descriptors
from cutlayer.transport.descriptors import LEAST, SPARE, TRIES, WANTED, most_sockets, with_descriptors


class Limits:
    """The module `resource`, of a machine with these limits."""

    RLIMIT_NOFILE, RLIM_INFINITY = 7, -1

    def __init__(self, soft: int, hard: int, *, stubborn: bool = False) -> None:
        self.now, self.stubborn = (soft, hard), stubborn

    def getrlimit(self, _which: int) -> tuple[int, int]:
        return self.now

    def setrlimit(self, _which: int, limits: tuple[int, int]) -> None:
        if self.stubborn:
            raise ValueError("not allowed")
        self.now = limits


@pytest.mark.parametrize(
    ("limits", "soft", "sockets"),
    [
        (Limits(1024, 1024), 1024, 1024 - SPARE),
        (Limits(256, 1_000_000), WANTED, 1280),
        (Limits(1024, 2048), 2048, 1280),
        (Limits(1024, -1), WANTED, 1280),
        (Limits(-1, -1), -1, 1280),
        (Limits(20_000, 20_000), 20_000, 1280),
        (Limits(1024, 4096, stubborn=True), 1024, 1024 - SPARE),
    ],
)
def test_the_soft_limit_is_raised_and_some_are_spared(
    limits: Limits, soft: int, sockets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptors, "resource", limits)
    assert most_sockets(1280) == sockets
    assert limits.now[0] == soft


def test_too_few_are_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "resource", Limits(64, LEAST - 1))
    with pytest.raises(ConfigError, match=rf"serve: expected at least {LEAST} file descriptors.*got {LEAST - 1}"):
        most_sockets(1280)


def test_a_system_without_limits_has_no_cap_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "resource", None)
    assert most_sockets(1280) == 1280


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_what_lacks_descriptors_is_tried_again(number: int) -> None:
    waited: list[float] = []

    def write() -> str:
        if len(waited) < 3:
            raise OSError(number, "too many")
        return "written"

    assert with_descriptors(write, waited.append) == "written"
    assert len(waited) == 3


def test_it_is_not_tried_for_ever_and_nothing_else_is_tried_again() -> None:
    waited: list[float] = []

    def fail(number: int) -> Any:
        raise OSError(number, "no")

    with pytest.raises(OSError, match="no"):
        with_descriptors(lambda: fail(errno.EMFILE), waited.append)
    assert len(waited) == TRIES
    with pytest.raises(OSError, match="no"):
        with_descriptors(lambda: fail(errno.ENOSPC), waited.append)
    assert len(waited) == TRIES


def test_a_checkpoint_says_by_its_number_that_it_lacked_a_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Safetensors has words of its own for it, and no number."""

    def starved(*_given: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: Too many open files (os error 24)")

    monkeypatch.setattr(sealed, "save_file", starved)
    with pytest.raises(OSError, match="Too many") as error:
        seal(tmp_path / "at", {}, State())
    assert error.value.errno == errno.EMFILE
