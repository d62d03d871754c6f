"""Flower's own programs on loopback: a SuperLink with TLS, two SuperNodes that it knows, and the example app."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from cutlayer.config import read_config
from cutlayer.run.inputs import prepare, write_shares
from cutlayer.testing.tiny import CLASSES
from cutlayer.transport.certificates import issue_server, make_authority
from real import simulated, values_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("flwr") is None, reason="flwr is not installed: cutlayer[flower]"),
]

APP = Path(__file__).parents[2] / "examples" / "flower-app"
NODES = ("slow", "quick")
START_SECONDS, RUN_SECONDS = 300.0, 600.0
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "OMP_NUM_THREADS": "1",
    "NO_COLOR": "1",
}


class Flower:
    """A SuperLink and two SuperNodes, as processes, with a home of their own."""

    def __init__(self, folder: Path, data: dict[str, Path], keep: ExitStack) -> None:
        self.folder, self._keep = folder, keep
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # they start more of Flower's programs
        self._environment = os.environ | QUIET | {"FLWR_HOME": str(folder / "home"), "PATH": path}
        ports = free_ports(1 + len(data))
        make_authority(folder, datetime.now(UTC))
        issue_server(folder, ["127.0.0.1"], datetime.now(UTC))
        address, authority = f"127.0.0.1:{ports[0]}", str(folder / "ca.crt")
        (folder / "home").mkdir()
        (folder / "home" / "config.toml").write_text(
            f'[superlink]\ndefault = "fleet"\n\n[superlink.fleet]\naddress = "{address}"\n'
            f'root-certificates = "{authority}"\n'
        )
        tls = ["--ssl-ca-certfile", authority, "--ssl-certfile", str(folder / "server.crt")]
        tls += ["--ssl-keyfile", str(folder / "server.key")]
        words = ["--enable-supernode-auth", "--disable-runtime-dependency-installation", "--port", str(ports[0])]
        self._start("superlink", "flower-superlink", *tls, *words)
        self._wait_for_port(ports[0])
        for (name, file), port in zip(data.items(), ports[1:], strict=True):
            self.flwr("supernode", "register", str(self._key(name)))
            words = ["--superlink", address, "--root-certificates", authority, "--port", str(port), *tls]
            words += ["--auth-supernode-private-key", str(folder / name)]
            self._start(name, "flower-supernode", *words, "--node-config", f'name="{name}" data="{file}"')

    def flwr(self, *words: str) -> str:
        """Runs `flwr` and returns what it said."""
        done = subprocess.run(
            [program("flwr"), *words],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, **config: str | int) -> None:
        """Submits the example app and waits until its run is over."""
        given = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        started = json.loads(self.flwr("run", str(APP), "fleet", "--run-config", given, "--format", "json"))
        number, until = str(started["run-id"]), time.monotonic() + RUN_SECONDS
        while time.monotonic() < until:
            listed = json.loads(self.flwr("list", "--run-id", number, "--format", "json"))
            status = listed["runs"][0]["status"]
            if status.startswith("finished"):
                assert status == "finished:completed", self.flwr("log", number, "fleet", "--show") + self.logs()
                return
            time.sleep(2)
        pytest.fail(self.logs())

    def logs(self) -> str:
        """The text that the programs have logged."""
        return "\n".join(f"== {file.name}\n{file.read_text()}" for file in sorted(self.folder.glob("*.log")))

    def _key(self, name: str) -> Path:
        key, public = ec.generate_private_key(ec.SECP384R1()), self.folder / f"{name}.pub"
        (self.folder / name).write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        public.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
        return public

    def _start(self, name: str, command: str, *words: str) -> None:
        with open(self.folder / f"{name}.log", "w") as log:
            process = subprocess.Popen(
                [program(command), *words], cwd=self.folder, env=self._environment, stdout=log, stderr=log
            )
        self._keep.callback(end, process)

    def _wait_for_port(self, port: int) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.2)
        pytest.fail(self.logs())


def program(name: str) -> str:
    """Beside this Python."""
    return str(Path(sys.executable).parent / name)


def free_ports(number: int) -> list[int]:
    """Different ones, all at once."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shares")


@pytest.fixture(scope="module")
def flower(inputs: Path, shares: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    files, _ = write_shares(prepare(read_config(None, values=values_for(inputs))), shares)
    with ExitStack() as keep:
        yield Flower(tmp_path_factory.mktemp("flower"), files, keep)


CUTS = {"memsfl": "method.cut=memory", "fedlora": ""}
"""A real fleet is cut by time where nobody says."""


@pytest.mark.parametrize("method", ["memsfl", "fedlora"])
def test_the_adapter_of_the_simulated_run(
    method: str, flower: Flower, inputs: Path, shares: Path, tmp_path: Path
) -> None:
    values = values_for(inputs, data__path=str(shares), data__labels=sorted(CLASSES))
    (tmp_path / "run.yaml").write_text(read_config(None, values=values).to_yaml())
    flower.run(
        run=str(tmp_path / "run.yaml"),
        set=f"method.name={method} {CUTS[method]}",
        out=str(tmp_path / "real"),
        devices=2,
    )
    expected = simulated(values_for(inputs, method__name=method), tmp_path / "simulated")
    adapter = tmp_path / "real" / "adapter" / "adapter_model.safetensors"
    assert adapter.is_file(), flower.logs()
    assert adapter.read_bytes() == (expected.adapter / "adapter_model.safetensors").read_bytes()


PAGE = Path(__file__).parents[2] / "docs" / "deploy.md"


def test_the_page_does_it_from_nothing(inputs: Path, tmp_path: Path) -> None:
    """Its blocks, as they are written, one after the other; with ports that are free, and an app beside the run."""
    page = PAGE.read_text()
    blocks = re.findall(r"```sh\n(.*?)```", page[page.index("## 9. Flower") :], flags=re.DOTALL)[:4]
    files, _ = write_shares(prepare(read_config(None, values=values_for(inputs))), tmp_path / "shares")
    for name, file in zip(("pi-1", "pi-2"), files.values(), strict=True):
        shutil.copy(file, tmp_path / f"{name}.jsonl")
    values = values_for(inputs, data__path=str(tmp_path / "shares"), data__labels=sorted(CLASSES))
    values.pop("fleet", None)
    (tmp_path / "run.yaml").write_text(read_config(None, values=values).to_yaml())
    shutil.copytree(APP, tmp_path / "flower-app")
    script = "\n".join(blocks)
    ports = dict(zip((8000, 8101, 8102, 7070), free_ports(4), strict=True))
    for port, free in ports.items():
        script = script.replace(f":{port}", f":{free}").replace(f"--port {port}", f"--port {free}")
    wait = f"until (echo > /dev/tcp/localhost/{ports[8000]}) 2>/dev/null; do sleep 1; done"  # a person is slower
    script = script.replace("# where runs are submitted: which", f"{wait}\n# where runs are submitted: which", 1)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", f"trap 'kill $(jobs -p)' EXIT\n{script}"],
        cwd=tmp_path,
        env=os.environ | QUIET | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
    )
    logs = "\n".join(file.read_text() for file in sorted(tmp_path.glob("*.log")))
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file(), done.stdout + done.stderr + logs
