"""Step time of a real fleet over the same run in one process: on loopback and on slow links, with overlap and without.

    python benchmarks/links.py

Two devices and a server, each a process of its own with one thread, as `cutlayer up` starts them; on a slow link each
device is behind a proxy that lets through so much a second in each direction. The same run in one process is the
simulated one, whose wall time is what its arithmetic takes: all of it, one piece after the other.

Each is run with whole batches, with micro-batches one after the other, and with two of those under way at a time. What
they train is checked: all places agree bit for bit, and overlap changes nothing.

The time of a step is the median over rounds of the round's wall time by its local steps: with what a round costs,
without the first, which warms up, and the last, which evaluates. All are run in turns, one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cutlayer.config import RunConfig, read_config
from cutlayer.report.listing import Listing
from cutlayer.report.progress import NoProgress
from cutlayer.run.inputs import prepare, write_shares
from cutlayer.run.simulated import simulate
from jobs import JOBS
from models import model_folder, model_name
from proxy import Proxy
from real_fleet import WORDS, Job, Program, adapter_of, free_port, save_tokenizer, write_run_file
from tables import in_fresh_process, publish

DEVICES = 2
LABELS = ("one", "other")
START_SECONDS = 300.0
END_SECONDS = 1800.0


@dataclass(frozen=True, slots=True)
class How:
    """The number of parts in which a batch crosses the network, and whether two of them may be under way."""

    micro_batches: int
    overlap: bool

    def __str__(self) -> str:
        if self.micro_batches == 1:
            return "whole batches"
        return f"{self.micro_batches} parts, {'two under way' if self.overlap else 'one after the other'}"


@dataclass(frozen=True, slots=True)
class Cell:
    """Step times of one way, in one place: milliseconds, the median over its turns and each turn's."""

    how: str
    place: str
    step_ms: float
    turns_ms: tuple[float, ...]
    over_in_process: float


def make_config(folder: Path, settings: argparse.Namespace) -> RunConfig:
    """Writes data below `folder`; the texts are as long as the model may read, so that all batches are alike."""
    rng, data = random.Random(0), folder / "data"
    data.mkdir(parents=True)
    for name, count in (("train", DEVICES * settings.batch * settings.steps), ("validation", 4)):
        rows = [
            json.dumps({"text": " ".join(rng.choices(WORDS, k=settings.tokens)), "label": rng.choice(LABELS)})
            for _ in range(count)
        ]
        (data / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    fleet = {
        "server": {"tflops": 1, "efficiency": 0.3, "memory_gib": 8},
        "defaults": {
            "tflops": 0.1,
            "efficiency": 0.3,
            "latency_ms": 1,
            "up_mbit": 100,
            "down_mbit": 100,
            "memory_gib": 8,
        },
        "devices": [{"name": f"device-{number}"} for number in range(DEVICES)],
    }
    task = JOBS[settings.model].task
    values: dict[str, Any] = {
        "model.name": _model(settings.model, folder),
        "data.path": str(data),
        "data.task": task,
        "data.text": "text",
        "data.labels": LABELS if task == "classification" else (),
        "data.max_length": settings.tokens,
        "train.rounds": settings.rounds,
        "train.local_steps": settings.steps,
        "train.batch_size": settings.batch,
        "train.eval_every": settings.rounds,
        "method.name": "memsfl",
        "method.cut": settings.cut,
        "fleet": fleet,
        "out": str(folder / "run"),
    }
    return read_config(None, values=values)


def _model(name: str, folder: Path) -> str:
    """The value of `model.name`: for a random model the folder of a copy that has a tokenizer."""
    if name == "minilm":
        return model_name(name)
    shutil.copytree(model_folder(name), folder / "model")
    save_tokenizer(folder / "model")
    return str(folder / "model")


def step_seconds(run: Path) -> float:
    """Seconds of a step in a run: the median round's wall time by its steps, without the first round and the last."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    config = read_config(run / "config.yaml")
    return statistics.median(row["wall_seconds"] for row in rows[1:-1]) / config.train.local_steps


def in_process(config: RunConfig) -> None:
    """The run with its fleet simulated."""
    simulate(prepare(config), NoProgress())


async def real(job: Job, folder: Path, bytes_per_second: float | None) -> None:
    """The run as processes; with a rate, each device is behind a proxy that is as slow as that."""
    port, proxies, devices = free_port(), list[Proxy](), list[Program]()
    words = ["--port", str(port), "--min-devices", str(len(job.shares))]
    server = Program(["serve", str(write_run_file(job, folder)), *words], folder / "server.log")
    try:
        await server.start()
        await server.says("listening", 0.0, START_SECONDS)
        for name, share in job.shares.items():
            where = port
            if bytes_per_second is not None:
                proxies.append(Proxy(port))
                proxies[-1].bytes_per_second = bytes_per_second
                await proxies[-1].open()
                where = proxies[-1].port
            words = ["join", f"127.0.0.1:{where}", "--data", str(share), "--name", name, "--folder", str(folder / name)]
            devices.append(Program(words, folder / f"{name}.log"))
            await devices[-1].start()
        codes = [await program.end(END_SECONDS) for program in (server, *devices)]
        assert codes == [0] * len(codes), f"{folder}: expected every process to end well, got exit codes {codes}"
    finally:
        for program in (server, *devices):
            await program.kill()
        for proxy in proxies:
            await proxy.close()


def measure(settings: argparse.Namespace, folder: Path) -> list[Cell]:
    """Every way in every place, in turns."""
    places: Mapping[str, float | None] = {
        "loopback": None,
        **{f"{mbit:g} Mbit/s": mbit * 1e6 / 8 for mbit in settings.mbit},
    }
    ways = [How(1, False), How(settings.parts, False), How(settings.parts, True)]
    config = make_config(folder, settings)
    shares, shared = write_shares(prepare(config), folder / "shares")
    seconds = defaultdict[tuple[How, str], list[float]](list)
    for _ in range(settings.turns):
        adapters = dict[str, set[bytes]]()
        for how in ways:
            more = {"micro_batches": how.micro_batches, "overlap": how.overlap}
            adapters.setdefault(f"{how.micro_batches} parts", set())
            for place in ("in process", *places):
                out = Path(tempfile.mkdtemp(dir=folder))
                whose = config if place == "in process" else shared
                changed = whose.model_copy(
                    update={"train": whose.train.model_copy(update=more), "out": str(out / "run")}
                )
                if place == "in process":
                    in_fresh_process(in_process, changed)
                else:
                    asyncio.run(real(Job(changed, shares, b""), out, places[place]))
                seconds[how, place].append(step_seconds(out / "run"))
                adapters[f"{how.micro_batches} parts"].add(adapter_of(out / "run"))
                shutil.rmtree(out)
        assert all(len(same) == 1 for same in adapters.values()), "one adapter, wherever and however it is trained"
    first = statistics.median(seconds[ways[0], "in process"])
    return [
        Cell(
            str(how),
            place,
            1e3 * statistics.median(turns),
            tuple(1e3 * turn for turn in turns),
            statistics.median(turns) / first,
        )
        for (how, place), turns in seconds.items()
    ]


def table(cells: Sequence[Cell], settings: argparse.Namespace) -> Listing:
    """Rows are ways, columns are places."""
    places = list(dict.fromkeys(cell.place for cell in cells))
    shape = (
        f"{settings.model}, batch {settings.batch} x {settings.tokens} tokens, cut {settings.cut}, {DEVICES} devices"
    )
    shown = Listing(title=f"Milliseconds of a local step, and over whole batches in one process\n{shape}")
    shown.add_column("")
    for place in places:
        shown.add_column(place, justify="right")
    for how in dict.fromkeys(cell.how for cell in cells):
        row = [cell for cell in cells if cell.how == how]
        shown.add_row(how, *(f"{cell.step_ms:.0f}  ({cell.over_in_process:.2f})" for cell in row))
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--cut", type=int, default=2, help="blocks on the devices")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--parts", type=int, default=2, help="micro-batches of a batch that is cut")
    parser.add_argument("--mbit", type=float, nargs="+", default=[100.0, 20.0], help="of slow links, each direction")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="local steps of a round")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/links.json"))
    settings = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"  # of every process that is started
    with tempfile.TemporaryDirectory() as folder:
        cells = measure(settings, Path(folder))
    named = {name: value for name, value in vars(settings).items() if name != "json"}
    publish([table(cells, settings)], settings.json, named, {"cells": [asdict(cell) for cell in cells]})


if __name__ == "__main__":
    main()
