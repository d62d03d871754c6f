"""A real fleet on this machine, for benchmarks that hurt it: processes of `cutlayer serve` and `cutlayer join`."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import time
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

import forked
from cutlayer.config import RunConfig, read_config
from cutlayer.report.progress import NoProgress
from cutlayer.run.inputs import prepare, write_shares
from cutlayer.run.simulated import simulate
from models import model_folder

WORDS = [f"word{number}" for number in range(60)]
SAMPLES_PER_DEVICE = 40
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Job:
    """A run that processes are started for.

    Attributes:
      config: its run file.
      shares: by device, its data.
      adapter: of the undisturbed run, whose fleet is simulated: the bytes of its safetensors file.
    """

    config: RunConfig
    shares: dict[str, Path]
    adapter: bytes


def make_job(folder: Path, *, devices: int, rounds: int, local_steps: int, simulated: bool = True) -> Job:
    """Writes a tiny model, data and a run below `folder`, and trains it undisturbed unless `simulated` is False."""
    model, data = folder / "model", folder / "data"
    shutil.copytree(model_folder("tiny"), model)
    save_tokenizer(model)
    data.mkdir()
    rng = random.Random(0)
    for name, count in (("train", SAMPLES_PER_DEVICE * devices), ("validation", 20)):
        rows = [json.dumps({"text": " ".join(rng.choices(WORDS, k=rng.randint(6, 16)))}) for _ in range(count)]
        (data / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    values: dict[str, Any] = {
        "model.name": str(model),
        "data.path": str(data),
        "data.task": "causal-lm",
        "data.text": "text",
        "data.max_length": 16,
        "train.rounds": rounds,
        "train.local_steps": local_steps,
        "train.batch_size": 4,
        "lora.rank": 2,
        "method.name": "memsfl",
        "fleet": {
            "server": {"tflops": 1, "efficiency": 0.3, "memory_gib": 4},
            "defaults": {"efficiency": 0.3, "up_mbit": 10, "down_mbit": 20, "latency_ms": 5, "memory_gib": 1},
            "devices": [
                {"name": f"device-{number:02d}", "tflops": 1e-5 * (1 + number % 2), "max_blocks": 1 + number % 2}
                for number in range(devices)
            ],
        },
        "out": str(folder / "undisturbed"),
    }
    inputs = prepare(read_config(None, values=values))
    shares, config = write_shares(inputs, folder / "shares")
    return Job(config, shares, adapter_of(simulate(inputs, NoProgress()).folder) if simulated else b"")


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of whole `WORDS`, for a random model that has none."""
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[END]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[END]")
    fast.save_pretrained(folder)


def adapter_of(run: Path) -> bytes:
    """The bytes of a run's adapter."""
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def free_port() -> int:
    """A port that nobody has at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


class Program:
    """A `cutlayer` process, with what it says and when.

    Args:
      words: The command line after `cutlayer`.
      log: Where what it says is kept.

    Attributes:
      name: of its log.
      lines: what it said on standard error or output, with the time (`time.monotonic`).
    """

    def __init__(self, words: list[str], log: Path) -> None:
        self.lines: list[tuple[float, str]] = []
        self.name = log.stem
        self._words, self._log = words, log
        self._process: ForkServerProcess | None = None

    async def start(self) -> None:
        """Starts it; it may be started again when it has ended."""
        ours, theirs = Pipe(duplex=False)
        self.started = time.monotonic()
        self._process = await asyncio.to_thread(forked.start, self._words, theirs)
        theirs.close()
        self._reading = asyncio.create_task(self._read(ours))

    async def _read(self, said: Connection) -> None:
        reader = asyncio.StreamReader()
        with os.fdopen(os.dup(said.fileno()), "rb") as pipe, open(self._log, "a") as log:
            said.close()
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), pipe
            )
            async for line in reader:
                text = line.decode(errors="replace").rstrip()
                self.lines.append((time.monotonic(), text))
                log.write(f"{self.lines[-1][0]:.3f} {text}\n")
                log.flush()
            transport.close()

    @property
    def pid(self) -> int:
        assert self._process is not None
        assert self._process.pid is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs, or before it was started."""
        return None if self._process is None else self._process.exitcode

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.exitcode is None

    async def kill(self) -> None:
        """Ends it as `kill -9` does."""
        if self.running:
            os.kill(self.pid, signal.SIGKILL)
            await self.end(10.0)

    async def says(self, words: str, since: float, timeout_seconds: float = 120.0) -> float:
        """Waits until it has said this; returns when.

        Raises:
          AssertionError: It ended, or did not say it in time.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            said = next((when for when, line in self.lines if when >= since and words in line), None)
            if said is not None:
                return said
            left = deadline - time.monotonic()
            assert left > 0, f"{self.name}: expected {words!r} within {timeout_seconds:g} s, got {self.lines[-3:]}"
            assert self.running, f"{self.name}: expected {words!r}, got its end: {self.lines[-3:]}"
            await asyncio.sleep(POLL_SECONDS)

    async def end(self, timeout_seconds: float) -> int | None:
        """Waits for its end; returns its exit code, None when it had to be killed."""
        deadline = time.monotonic() + timeout_seconds
        while self.running and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)
        if self.running:
            await self.kill()
            return None
        await self._reading
        return self.exit_code


def write_run_file(job: Job, folder: Path) -> Path:
    """The job as `cutlayer serve` reads it, with its run folder below `folder`."""
    config = job.config.model_copy(update={"out": str(folder / "run")})
    path = folder / "run.yaml"
    path.write_text(config.to_yaml())
    return path
