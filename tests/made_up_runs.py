"""A made-up run folder, and what a run would have told its display: devices and rounds without training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cutlayer.config import RunConfig
from cutlayer.report.run_folder import RunFolder
from cutlayer.types import Event

STEPS = 2
SECONDS = 10.0
"""That a round lasts."""


def names(devices: int) -> list[str]:
    """Names of so many devices."""
    return [f"pi-{number}" for number in range(devices)]


def config(out: Path, rounds: int) -> RunConfig:
    """The config of a made-up run."""
    values = {"train": {"rounds": rounds, "local_steps": STEPS}, "method": {"name": "memsfl"}, "out": str(out)}
    return RunConfig.model_validate(values)


def events(round: int, devices: list[str]) -> list[Event]:
    """Events of a round: each device takes its steps in turn, and the server one for each; the last is slowest."""
    begun, made = round * SECONDS, list[Event]()
    for place, name in enumerate(devices):
        pace = SECONDS * (0.5 + 0.5 * (place + 1) / len(devices)) / STEPS
        for step in range(STEPS):
            start = begun + step * pace
            made.append(Event(name, "forward", start, start + 0.5 * pace, round, step, flops=1e6))
            made.append(Event(name, "upload", start + 0.5 * pace, start + 0.75 * pace, round, step, num_bytes=40_000))
            made.append(Event("server", "step", start + 0.75 * pace, start + 0.8 * pace, round, step, name))
            made.append(Event(name, "download", start + 0.8 * pace, start + pace, round, step, num_bytes=20_000))
    return made


def row(round: int, devices: list[str]) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    own = {
        name: {
            "cut": 1 + place % 5,
            "memory_bytes": 2**20 * (1 + place % 5),
            "steps": STEPS,
            "samples": 8,
            "late": place == 0 and round % 4 == 3,
            "bytes_up": 80_000,
            "bytes_down": 40_000,
            "busy_seconds": 2.0,
            "network_seconds": 1.0,
            "waiting_seconds": 1.0 + place % 3,
            "loss": 1 / (1 + round + place % 7),
        }
        for place, name in enumerate(devices)
    }
    return {
        "round": round,
        "loss": 1 / (1 + round),
        "samples": 8 * len(devices),
        "late": sum(measured["late"] for measured in own.values()),
        "bytes_up": 80_000 * len(devices),
        "bytes_down": 40_000 * len(devices),
        "virtual_seconds": (round + 1) * SECONDS,
        "server_memory_bytes": 2**30,
        "validation": {"accuracy": round / (1 + round), "loss": 1.1 / (1 + round)},
        "held_out": {},
        "devices": own,
    }


def contributions(round: int, devices: list[str]) -> Iterator[dict[str, Any]]:
    """The lines of contributions.jsonl of a round."""
    for place, name in enumerate(devices):
        yield {"round": round, "device": name, "norm": 0.5 + place, "times": 1.0, "outlier": False}


def write_run(out: Path, *, devices: int = 3, rounds: int = 4, of: int | None = None, ended: bool = True) -> RunFolder:
    """A run folder: so many of its rounds are done."""
    folder, who = RunFolder.create(out), names(devices)
    folder.write_started({"command": "serve"})
    folder.write_config(config(out, of or rounds).to_yaml())
    folder.write_about({"blocks": 6, "method": {"summary": "one base", "paper": "none"}, "versions": {"cutlayer": "1"}})
    for round in range(rounds):
        write_round(folder, round, who)
    if ended:
        folder.write_summary({"metrics": {}, "peak_memory_bytes": 2**31, "refusals": {who[0]: {"wrong-token": 3}}})
    return folder


def write_round(folder: RunFolder, round: int, who: list[str]) -> None:
    """Writes what a run writes at the end of a round."""
    folder.append_metrics(row(round, who))
    folder.append_events(events(round, who))
    folder.append_contributions(contributions(round, who))


def rename(folder: RunFolder, old: str, new: str) -> None:
    """Gives a device another name in all that the folder holds."""
    for file in folder.path.glob("*.json*"):
        text = file.read_text()
        file.write_text(text.replace(json.dumps(old), json.dumps(new, ensure_ascii=False)))
