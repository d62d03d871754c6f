"""Real processes on this machine, killed, frozen, cut off and slowed at random moments, against the undisturbed run.

Each run is a server and its devices, each behind a proxy of its own, and some faults one after the other. A killed
process is started again at once, the server with `--resume`. The run must end with the adapter of the undisturbed one,
bit for bit. On the way it is measured how long faults stay unnoticed, and how soon devices are back.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import signal
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cutlayer.report.listing import Listing
from proxy import Proxy
from real_fleet import Job, Program, adapter_of, free_port, make_job, write_run_file
from tables import publish

What = Literal["kill device", "kill server", "freeze device", "freeze server", "cut", "silence", "slow"]
FROZEN_SECONDS = 8.0
"""Longer than a peer may be silent."""
END_SECONDS = 300.0
FAREWELL_SECONDS = 20.0
START_SECONDS = 300.0
"""Seconds that the first process may take: for its imports, on a machine with other things to do."""
HARDEST: tuple[What, ...] = ("kill device", "kill server", "freeze device", "freeze server", "cut", "silence", "slow")


@dataclass(frozen=True)
class Fault:
    """One fault: so long after devices train again, what, and to which device."""

    wait_seconds: float
    what: What
    device: int


@dataclass
class Ended:
    """The outcome of a run.

    Attributes:
      same: whether its adapter is that of the undisturbed run.
      faults: those that it lived to see.
      measured: seconds, by what was measured.
      unaware: devices that had to be ended because they never learned of the run's end.
      trouble: what else went wrong.
    """

    same: bool = False
    faults: list[What] = field(default_factory=list)
    measured: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    unaware: int = 0
    trouble: str = ""


def schedule(seed: int, *, faults: int, devices: int) -> list[Fault]:
    """The faults of a run."""
    rng = random.Random(f"faults/{seed}")
    return [Fault(rng.uniform(0.0, 2.0), rng.choice(HARDEST), rng.randrange(devices)) for _ in range(faults)]


class FleetUnderFire:
    """One run: its processes and their proxies.

    Args:
      job: What is trained.
      folder: Where it writes.
    """

    def __init__(self, job: Job, folder: Path) -> None:
        self._job, self._folder = job, folder
        self._port = free_port()
        self.ended = Ended()
        self._server_words = ["--port", str(self._port), "--min-devices", str(len(job.shares))]
        run_file = write_run_file(job, folder)
        self._server = Program(["serve", str(run_file), *self._server_words], folder / "server.log")
        self._proxies = [Proxy(self._port) for _ in job.shares]
        self._devices: list[Program] = []

    async def play(self, faults: Sequence[Fault]) -> Ended:
        """Starts everything, hurts it, waits for the end."""
        try:
            await self._start()
            for fault in faults:
                await asyncio.sleep(fault.wait_seconds)
                if not self._server.running:
                    break
                self.ended.faults.append(fault.what)
                await self._hurt(fault)
            await self._finish()
        except AssertionError as error:
            if self._server.running or self._server.exit_code != 0:
                self.ended.trouble = str(error)
            else:  # it was done before the fault had passed
                await self._finish()
        finally:
            for program in (self._server, *self._devices):
                await program.kill()
            for proxy in self._proxies:
                await proxy.close()
        return self.ended

    async def _start(self) -> None:
        for proxy, (name, share) in zip(self._proxies, self._job.shares.items(), strict=True):
            await proxy.open()
            words = ["join", f"127.0.0.1:{proxy.port}", "--data", str(share), "--name", name]
            words += ["--folder", str(self._folder / name), "--patience", "120"]
            self._devices.append(Program(words, self._folder / f"{name}.log"))
        await self._server.start()
        await self._server.says("listening", 0.0, START_SECONDS)
        await asyncio.gather(*(device.start() for device in self._devices))
        await self._connected(range(len(self._devices)), 0.0)

    async def _finish(self) -> None:
        code = await self._server.end(END_SECONDS)
        if code != 0:
            self.ended.trouble = f"the server ended with {code}: {[line for _, line in self._server.lines[-3:]]}"
            return
        self.ended.same = adapter_of(self._folder / "run") == self._job.adapter
        codes = await asyncio.gather(*(device.end(FAREWELL_SECONDS) for device in self._devices))
        self.ended.unaware = sum(code is None for code in codes)
        if bad := [code for code in codes if code not in (0, None)]:
            self.ended.trouble = f"devices ended with {bad}"

    # ------------------------------------------------------------------ faults

    async def _hurt(self, fault: Fault) -> None:
        device, proxy = self._devices[fault.device], self._proxies[fault.device]
        everybody = range(len(self._devices))
        began = time.monotonic()
        if fault.what == "kill device":
            await device.kill()
            await self._noticed("killed device", proxy, "server", began)
            await device.start()
            await self._back("killed device, from its start", [fault.device], device.started)
        elif fault.what == "kill server":
            await self._server.kill()
            for each in self._proxies:
                await self._noticed("killed server", each, "device", began)
            self._server = Program(
                ["serve", "--resume", str(self._folder / "run"), *self._server_words], self._folder / "server.log"
            )
            await self._server.start()
            listening = await self._server.says("listening", began)
            await self._back("restarted server, from its listening", everybody, listening)
        elif fault.what in ("freeze device", "freeze server"):
            program = device if fault.what == "freeze device" else self._server
            os.kill(program.pid, signal.SIGSTOP)
            await asyncio.sleep(FROZEN_SECONDS)
            os.kill(program.pid, signal.SIGCONT)
            thawed = time.monotonic()
            if fault.what == "freeze device":
                await self._noticed("frozen device", proxy, "server", began)
                await self._back("thawed device", [fault.device], thawed)
            else:
                for each in self._proxies:
                    await self._noticed("frozen server", each, "device", began)
                await self._back("thawed server", everybody, thawed)
        elif fault.what == "cut":
            await proxy.cut(1.0)
            await self._back("cut", [fault.device], began)
        elif fault.what == "silence":
            await proxy.silence(FROZEN_SECONDS)
            await self._noticed("silent link", proxy, "server", began)
            await self._back("silent link", [fault.device], began + FROZEN_SECONDS)
        else:
            await proxy.slow(4.0, delay_seconds=0.1, bytes_per_second=50_000)

    async def _noticed(self, what: str, proxy: Proxy, side: Literal["device", "server"], since: float) -> None:
        """Measures the seconds until the other end ended the connection."""
        for _ in range(100):
            when = proxy.first_end(side, since)
            if when is not None:
                self.ended.measured[f"noticed: {what}"].append(when - since)
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"{what}: expected the other end to notice within 10 s, got nothing.")

    async def _back(self, what: str, devices: Sequence[int], since: float) -> None:
        for when in await self._connected(devices, since):
            self.ended.measured[f"back: {what}"].append(when - since)

    async def _connected(self, devices: Sequence[int], since: float) -> list[float]:
        return list(await asyncio.gather(*(self._devices[number].says(": connected", since) for number in devices)))


def run_one(job: Job, seed: int, *, faults: int, keep: Path | None = None) -> Ended:
    """One run; its folder goes away unless something went wrong and `keep` says where to."""
    folder = Path(tempfile.mkdtemp(prefix=f"faults-{seed}-"))
    try:
        plan = schedule(seed, faults=faults, devices=len(job.shares))
        ended = asyncio.run(FleetUnderFire(job, folder).play(plan))
        if keep is not None and not (ended.same and not ended.trouble):
            shutil.copytree(folder, keep / f"seed-{seed}", dirs_exist_ok=True)
        return ended
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Plays the runs, prints the tables and writes the JSON; ends with 1 if a run went wrong."""
    parser = argparse.ArgumentParser(prog="faults.py processes", description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the others follow")
    parser.add_argument("--faults", type=int, default=3, help="in each run")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=5, help="local steps in each round")
    parser.add_argument("--keep", type=Path, default=None, help="where folders of runs go that went wrong")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/faults-processes.json"))
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(Path(folder), devices=chosen.devices, rounds=chosen.rounds, local_steps=chosen.steps)
        runs = {}
        for seed in range(chosen.seed, chosen.seed + chosen.runs):
            runs[seed] = ended = run_one(job, seed, faults=chosen.faults, keep=chosen.keep)
            print(f"run {seed}: {'same' if ended.same else 'NOT THE SAME'} {ended.faults} {ended.trouble}", flush=True)
    settings = {key: getattr(chosen, key) for key in ("runs", "seed", "faults", "devices", "rounds", "steps")}
    rows = {str(seed): vars(ended) for seed, ended in runs.items()}
    publish(tables_of(list(runs.values())), chosen.json, settings, rows)
    if not all(ended.same and not ended.trouble for ended in runs.values()):
        raise SystemExit(1)


def tables_of(runs: Sequence[Ended]) -> list[Listing]:
    """Verdict, and what was measured."""
    verdict = Listing("runs", "same adapter", "in trouble", "devices unaware of the end", "faults")
    faults = Counter(fault for ended in runs for fault in ended.faults)
    verdict.add_row(
        str(len(runs)),
        str(sum(ended.same for ended in runs)),
        str(sum(bool(ended.trouble) for ended in runs)),
        str(sum(ended.unaware for ended in runs)),
        ", ".join(f"{what}: {count}" for what, count in faults.most_common()),
    )
    measured: dict[str, list[float]] = defaultdict(list)
    for ended in runs:
        for what, seconds in ended.measured.items():
            measured[what] += seconds
    seconds = Listing("seconds", "times", "median", "longest")
    for what, values in sorted(measured.items()):
        seconds.add_row(what, str(len(values)), f"{statistics.median(values):.2f}", f"{max(values):.2f}")
    return [verdict, seconds]
