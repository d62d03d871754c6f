"""The cost of a real fleet on one machine, beside a bare training loop and a peer: the job that peers were measured on.

    python benchmarks/peers.py [--nvflare PYTHON]

The job: `nano` (GPT-2 of 6 blocks, 1.6 M parameters, random), LoRA r 8 on c_attn, batches of 8 x 64 tokens, cut after
block 2, two devices, method memsfl. Ours is `cutlayer serve` and two `cutlayer join`, processes of their own, over gRPC
on loopback. The bare loop is transformers and PEFT in one process, without network or cut: the least that a batch can
cost. NVFlare (its Collab API, the same cut, two clients: `nvflare_split.py`) runs in the interpreter that `--nvflare`
names, because it wants another transformers.

Contenders take turns, one thread in each process. A turn of ours is a run; its first round and its last, with what
begins and ends a run, are not counted, but what each round has is (adapters, aggregation, checkpoint). Processor time
is that of all processes. Wall time is that of a batch of one of two devices, which overlap.

How soon a run begins is measured apart, with processes that are forked when everything is imported.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch

from cutlayer.config import RunConfig
from cutlayer.report.listing import Listing
from cutlayer.report.run_folder import RunFolder
from cutlayer.run.inputs import prepare, write_shares
from jobs import JOBS, PlainLoop, random_batches
from links import make_config
from real_fleet import Job, Program, free_port, write_run_file
from tables import in_fresh_process, publish

JOB = JOBS["nano"]
HIDDEN = 128
IDEAL_BYTES = 2 * 4 * JOB.num_samples * JOB.num_tokens * HIDDEN
"""A client batch: activations up, their gradients down, in fp32."""
DEVICES, ROUNDS = 2, 4
WARM_STEPS = 5
MIB = 2**20
POLL_SECONDS = 0.02
END_SECONDS = 600.0
BARE, OURS, BF16, NVFLARE = "bare loop", "cutlayer", "cutlayer, bf16", "NVFlare Collab"


@dataclass(frozen=True, slots=True)
class Turn:
    """One contender's turn.

    Attributes:
      cpu_ms: of all processes, a client batch.
      wall_ms: a client batch.
      payload_bytes: activations and gradients with all around them, a client batch; None where nothing is sent.
      device_mib: the most memory that the process of a device had; of the bare loop, its own.
      server_mib: the most that the server's had.
    """

    cpu_ms: float
    wall_ms: float
    payload_bytes: float | None = None
    device_mib: float | None = None
    server_mib: float | None = None


# ------------------------------------------------------------------ contenders


def bare(steps: int) -> Turn:
    """The plain loop, in this process."""
    torch.set_num_threads(1)
    loop = PlainLoop(JOB, random_batches(JOB, 8), fused=True)
    for _ in range(WARM_STEPS):
        loop.step()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        loop.step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Turn(1e3 * cpu / steps, 1e3 * wall / steps, device_mib=peak_mib(os.getpid()))


def ours(job: Job, folder: Path) -> Turn:
    """A run of processes, started as a user starts them."""
    port, run = free_port(), folder / "run"
    server = _cutlayer("serve", str(write_run_file(job, folder)), "--port", str(port), "--min-devices", str(DEVICES))
    processes = [server]
    try:
        for name, share in job.shares.items():
            where = ["--name", name, "--data", str(share), "--folder", str(folder / name), "--patience", "120"]
            processes.append(_cutlayer("join", f"127.0.0.1:{port}", *where))
        wall, cpu = _at_round(1, run, processes)
        wall_end, cpu_end = _at_round(ROUNDS - 1, run, processes)
        peaks = [peak_mib(process.pid) for process in processes]
        codes = [process.wait(END_SECONDS) for process in processes]
        assert codes == [0] * len(codes), f"expected every process to end well, got exit codes {codes}"
    finally:
        for process in processes:
            if process.is_running():
                process.kill()
    batches = (ROUNDS - 2) * job.config.train.local_steps * DEVICES
    sent = [event.num_bytes for event in RunFolder.reopen(run).read_events() if event.step is not None]
    payload = sum(sent) / (ROUNDS * job.config.train.local_steps * DEVICES)
    return Turn(1e3 * (cpu_end - cpu) / batches, 1e3 * (wall_end - wall) / batches, payload, max(peaks[1:]), peaks[0])


def _cutlayer(*words: str) -> psutil.Popen:
    return psutil.Popen(
        [sys.executable, "-m", "cutlayer", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _at_round(rounds: int, run: Path, processes: Sequence[psutil.Popen]) -> tuple[float, float]:
    """Waits until so many rounds are done; returns the moment, and the processor time of all processes by then."""
    deadline, rows = time.monotonic() + END_SECONDS, run / "metrics.jsonl"
    while not rows.exists() or len(rows.read_text().splitlines()) < rounds:
        assert time.monotonic() < deadline, f"expected round {rounds} to end, got {run}"
        assert all(process.is_running() for process in processes), "expected every process to live"
        time.sleep(POLL_SECONDS)
    times = [process.cpu_times() for process in processes]
    return time.monotonic(), sum(each.user + each.system for each in times)


def peak_mib(pid: int) -> float:
    """The most memory that a process has had (VmHWM)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(peak) / 1024


def nvflare(python: Path, steps: int, folder: Path) -> Turn:
    """Its Collab API, in an interpreter of its own; see `nvflare_split.py`."""
    script = Path(__file__).parent / "nvflare_split.py"
    done = subprocess.run(
        [python, script, "--steps", str(steps), "--folder", folder], capture_output=True, text=True, timeout=END_SECONDS
    )
    assert done.returncode == 0, f"{script.name}: expected exit code 0, got {done.returncode}: {done.stderr[-2000:]}"
    return Turn(**json.loads(done.stdout.splitlines()[-1]))


async def seconds_to_first_step(job: Job, folder: Path) -> float:
    """Seconds from the start of three processes, their imports done, until the last device is at its first step."""
    port = free_port()
    words = ["--port", str(port), "--min-devices", str(DEVICES)]
    server = Program(["serve", str(write_run_file(job, folder)), *words], folder / "server.log")
    programs = [server]
    for name, share in job.shares.items():
        words = ["join", f"127.0.0.1:{port}", "--data", str(share), "--name", name, "--folder", str(folder / name)]
        programs.append(Program(words, folder / f"{name}.log"))
    try:
        start = time.monotonic()
        await asyncio.gather(*(program.start() for program in programs))
        last = max([await device.says("round 1/", 0.0) for device in programs[1:]])
        codes = [await program.end(END_SECONDS) for program in programs]
        assert codes == [0] * len(codes), f"expected every process to end well, got exit codes {codes}"
    finally:
        for program in programs:
            await program.kill()
    return last - start


# ------------------------------------------------------------------ measuring


def measure(settings: argparse.Namespace, folder: Path) -> tuple[dict[str, list[Turn]], list[float]]:
    """The turns of each contender, and the seconds to the first step."""
    shape = {"model": "nano", "batch": JOB.num_samples, "tokens": JOB.num_tokens, "cut": JOB.cut, "mbit": 1000.0}
    config = make_config(folder, argparse.Namespace(**shape, rounds=ROUNDS, steps=settings.steps))
    lora = config.lora.model_copy(update={"rank": JOB.lora.rank, "alpha": JOB.lora.alpha, "targets": JOB.lora.targets})
    shares, config = write_shares(prepare(config.model_copy(update={"lora": lora})), folder / "shares")
    packed = config.model_copy(
        update={"wire": config.wire.model_copy(update={"activations": "bf16", "gradients": "bf16"})}
    )

    def run(config: RunConfig) -> Turn:
        return ours(Job(config, shares, b""), Path(tempfile.mkdtemp(dir=folder)))

    turns, starts = defaultdict[str, list[Turn]](list), list[float]()
    for turn in range(settings.turns):
        contenders = {BARE: lambda: in_fresh_process(bare, 2 * settings.steps)}
        contenders |= {OURS: lambda: run(config), BF16: lambda: run(packed)}
        if settings.nvflare:
            scratch = Path(tempfile.mkdtemp(dir=folder))
            contenders[NVFLARE] = lambda scratch=scratch: nvflare(settings.nvflare, settings.steps, scratch)
        for name in contenders if turn % 2 else reversed(contenders):
            turns[name].append(contenders[name]())
        job = Job(config, shares, b"")
        starts.append(asyncio.run(seconds_to_first_step(job, Path(tempfile.mkdtemp(dir=folder)))))
    return {name: turns[name] for name in (BARE, OURS, BF16, NVFLARE) if name in turns}, starts


def table(turns: dict[str, list[Turn]], starts: Sequence[float]) -> Listing:
    """Medians of turns; ratios are medians of those of the same turn."""
    shown = Listing(title="A client batch: nano GPT-2, LoRA r 8, 8 x 64 tokens, cut after block 2, two devices")
    for heading in ("", "cpu ms", "over bare", "wall ms", "KiB", "over ideal", "device MiB", "server MiB"):
        shown.add_column(heading, justify="right" if heading else "left")
    for name, each in turns.items():
        ratio = statistics.median(one.cpu_ms / base.cpu_ms for one, base in zip(each, turns[BARE], strict=True))
        payload = each[0].payload_bytes
        shown.add_row(
            name,
            f"{_median([one.cpu_ms for one in each]):.1f}",
            f"{ratio:.2f}",
            f"{_median([one.wall_ms for one in each]):.0f}",
            "-" if payload is None else f"{payload / 1024:.1f}",
            "-" if payload is None else f"{payload / IDEAL_BYTES:.3f}",
            _memory([one.device_mib for one in each]),
            _memory([one.server_mib for one in each]),
        )
    shown.caption = f"ours, from start to first step, imports done: {_median(starts):.1f} s (most {max(starts):.1f} s)"
    return shown


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _memory(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{max(known):.0f}" if known else "-"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="local steps of a round")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--nvflare", type=Path, help="an interpreter with nvflare, torch, transformers and peft")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/peers.json"))
    settings = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"  # of every process that is started
    with tempfile.TemporaryDirectory() as folder:
        turns, starts = measure(settings, Path(folder))
    named = {"steps": settings.steps, "turns": settings.turns, "ideal_bytes": IDEAL_BYTES}
    rows = {name: [asdict(turn) for turn in each] for name, each in turns.items()}
    publish([table(turns, starts)], settings.json, named, {"turns": rows, "seconds_to_first_step": starts})


if __name__ == "__main__":
    main()
