"""A device joins from systems that are not Linux: what they lack is taken away here, and a run is played.

Neither Windows nor macOS was at hand: this is as much as can be known without. What is taken away is what their Pythons
do not have: modules, functions of `os`, signals and readers of event loops. What stays is this system's: paths, how
files are replaced while they are open, consoles.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cutlayer.config import read_config
from cutlayer.run.inputs import prepare, write_shares
from real import values_for

WITHOUT = """
import asyncio, builtins, ctypes, os, socket

MODULES = {modules!r}
NAMES = {names!r}
have = builtins.__import__

def import_(name, globals=None, *rest, **named):
    if name in MODULES and (globals or {{}}).get("__name__", "").startswith("cutlayer"):  # others guard their own
        raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
    return have(name, globals, *rest, **named)

builtins.__import__ = import_
for name in NAMES:
    if hasattr(os, name):
        delattr(os, name)
if {windows}:
    def none(*_given, **_named):
        raise NotImplementedError
    loop = asyncio.SelectorEventLoop
    loop.add_signal_handler = none
    reader = loop.add_reader
    loop.add_reader = lambda self, fd, *rest: none() if fd == 0 else reader(self, fd, *rest)
    whole = ctypes.CDLL
    def library(name, *given, **named):
        if name is None:
            raise TypeError("bad argument type for built-in operation")
        return whole(name, *given, **named)
    ctypes.CDLL = library
    del socket.TCP_INFO
"""
WINDOWS = (
    ["fcntl", "resource", "pwd", "grp", "termios", "pty"],
    ["sched_getaffinity", "getuid", "geteuid", "getgid", "fork", "fchmod", "O_DIRECTORY"],
)
MACOS: tuple[list[str], list[str]] = ([], ["sched_getaffinity", "sched_setaffinity", "posix_fallocate"])

JOIN = """
from cutlayer.cli import main
main({words!r})
"""
SERVE = """
import sys
from cutlayer import serve
serve({config!r}, port=0, min_devices=1, on_listening=lambda port: print(port, flush=True))
"""


def without(windows: bool) -> str:
    modules, names = WINDOWS if windows else MACOS
    return WITHOUT.format(modules=modules, names=names, windows=windows)


@pytest.mark.slow
@pytest.mark.parametrize("windows", [True, False], ids=["windows", "macos"])
def test_a_device_joins_and_trains_to_the_end(windows: bool, inputs: Path, tmp_path: Path) -> None:
    fleet = {
        "server": {"tflops": 1, "efficiency": 0.3, "memory_gib": 4},
        "defaults": {"efficiency": 0.3, "up_mbit": 10, "down_mbit": 20, "latency_ms": 5, "memory_gib": 1},
        "devices": [{"name": "pi-1", "tflops": 1e-5}],
    }
    values = {**values_for(inputs, train__rounds=1, fleet=fleet), "out": str(tmp_path / "run")}
    files, config = write_shares(prepare(read_config(None, values=values)), tmp_path / "shares")
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE.format(config=str(tmp_path / "run.yaml"))], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        port = server.stdout.readline().strip()
        words = ["join", f"127.0.0.1:{port}", "--name", "pi-1", "--data", str(files["pi-1"])]
        words += ["--folder", str(tmp_path / "device"), "--model", "server", "--leash"]
        with subprocess.Popen(
            [sys.executable, "-c", without(windows) + JOIN.format(words=words)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as joined:
            assert joined.stderr is not None
            said = joined.stderr.read()
            assert joined.wait(60) == 0, said
        assert "the run is over" in said
        assert server.wait(60) == 0
        assert (tmp_path / "run" / "adapter").is_dir()
    finally:
        server.kill()
        server.stdout.close()
        server.wait()


LEASH = """
import asyncio
from cutlayer.cli.signals import run_until_signalled
async def work():
    print("here", flush=True)
    await asyncio.sleep(60)
run_until_signalled(work(), "the same command", leash={leash})
"""


def test_signals_and_leash_of_an_event_loop_that_knows_neither() -> None:
    """SIGTERM, and whoever lets go of standard input, end a device as they do elsewhere."""
    for leash, end in ((True, lambda process: process.stdin.close()), (False, lambda process: process.terminate())):
        process = subprocess.Popen(
            [sys.executable, "-c", without(True) + LEASH.format(leash=leash)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "here\n"
        end(process)
        assert process.wait(30) == 143
        assert process.stderr.read().startswith("stopping")
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()
