"""A command that waits for others ends as it is told to, with the signal in its exit code."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

WAITING = """
import asyncio, sys
from cutlayer.cli.signals import run_until_signalled

async def work():
    print("here", flush=True)
    await asyncio.Event().wait()

run_until_signalled(work(), "the same command", leash=len(sys.argv) > 1)
"""


def waiting(*words: str) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", WAITING, *words], **pipes)  # type: ignore[call-overload]
    assert process.stdout.readline() == "here\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_exit_code_is_the_signals(number: signal.Signals, code: int) -> None:
    process = waiting()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (code, "stopping; once more ends at once. Go on with: the same command\n")


def test_whoever_lets_go_of_the_leash_ends_it() -> None:
    process = waiting("leash")
    _, said = process.communicate("", timeout=60)  # closes its standard input
    assert process.returncode == 143
    assert said.startswith("stopping")
