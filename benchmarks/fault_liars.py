"""One liar: the real server, honest devices, and a member of the fleet that says something else in one field.

    python benchmarks/faults.py liars --method memsfl --method fedlora

Each run is one method and one lie (`testing/faults.py`), over the modelled network of `faulty_runs.py`. Whatever is
said, the run ends with an adapter; whoever sent what cannot be is refused, by name, and counted; no honest device is,
and each of them trains all of its samples in every round. Where what devices train is theirs alone, or the liar does
not get in, the adapter is, bit for bit, that of the fleet without the liar.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cutlayer.methods.table import build_method
from cutlayer.report.listing import Listing
from cutlayer.testing.faults import LIES
from cutlayer.wire.messages import HeldOut, Hello, Judged, Ready
from faulty_runs import ROUNDS, Plan, Result, World, liar_of, play, write_inputs
from tables import publish

SETTINGS: dict[str, dict[str, Any]] = {
    "memsfl": {},
    "memsfl optimal": {"method.name": "memsfl", "method.order": "optimal"},
    "labels at home": {"method.name": "memsfl", "method.labels": "device", "method.cut": 1},
    "fedlora": {},
    "flora": {},
    "hetlora": {},
    "sl": {},
    "splitfrozen": {},
    "sfl_v2": {},
    "mergesfl": {"method.select": "random"},
    "sfpl": {},
    "ho_sfl": {},
    "fedkseed": {},
    "all linear": {"method.name": "fedlora", "lora.targets": ["all-linear"]},
    "16 bits": {"method.name": "fedlora", "model.dtype": "fp16"},
    "16 bits, split": {"method.name": "memsfl", "model.dtype": "fp16"},
    "16 bits, folded": {"method.name": "flora", "model.dtype": "fp16"},
    "16 bits, relayed": {"method.name": "sl", "model.dtype": "fp16"},
    "16 bits, at sites": {"method.name": "hfl_prune", "model.dtype": "fp16", "lora.targets": ["all-linear"]},
    "16 bits, no barrier": {"method.name": "teasq_fed", "model.dtype": "fp16"},
    "16 bits, held out": {"method.name": "fedlora", "model.dtype": "fp16", "data.hold_out": 0.3},
    "held out": {"method.name": "memsfl", "data.hold_out": 0.3},
    "held out, alone": {"method.name": "fedlora", "data.hold_out": 0.3},
}
"""Keys of the config, by the setting's name, which is that of the method where the keys name none."""
NO_ROWS = {"16 bits, held out"}
"""Settings whose server has no validation rows, as that of a real fleet may not."""


@dataclass
class Counts:
    """Outcomes of many runs, counted.

    Attributes:
      runs: by setting, how many lies were told, and by what reason refused.
      failures: setting and lie -> what must not be.
    """

    runs: dict[str, Counter[str]] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=dict)


class Campaign:
    """Plays lies in this process.

    Args:
      folder: Where runs are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._inputs = folder, write_inputs(folder / "inputs")
        self._worlds: dict[str, World] = {}

    def play(self, setting: str, lies: Iterable[str]) -> Counts:
        """A run for each."""
        world, counts = self._world(setting), Counts({setting: Counter()})
        for number, lie in enumerate(lies):
            out = Path(tempfile.mkdtemp(dir=self._folder)) / "server"
            result = play(world, Plan(number, lie=lie), keep=out)
            said, problems = self._look(world, lie, result, out)
            counts.runs[setting][said] += 1
            if problems:
                counts.failures[f"{setting}: {lie}"] = problems
        return counts

    def _world(self, setting: str) -> World:
        if setting not in self._worlds:
            scratch = self._folder / setting.replace(" ", "-").replace(",", "")
            scratch.mkdir()
            self._worlds[setting] = World(
                {"method.name": setting, **SETTINGS[setting]}, self._inputs, scratch, judges=setting not in NO_ROWS
            )
        return self._worlds[setting]

    def _look(self, world: World, lie: str, result: Result, out: Path) -> tuple[str, list[str]]:
        """Finds the reasons for which the liar was refused, and the problems: what must not be."""
        problems = list(result.problems)
        if result.outcome != "done" or problems:
            return "failed", [f"ended with {result.outcome or 'nothing'}", *problems]
        if not result.lies:
            return "never said", []
        summary = json.loads((out / "summary.json").read_text())
        refused, liar = summary["refusals"], liar_of(lie)
        if others := set(refused) - {liar}:
            problems.append(f"refused {others}: {refused}")
        if LIES[lie].refused and liar not in refused:
            problems.append("the liar was not refused")
        exported = [*out.glob("adapter/*.safetensors"), *out.glob("model/*.safetensors")]  # of moved weights, a model
        tensors = [tensor for file in exported for tensor in load_file(file).values()]
        if not tensors or not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            problems.append("the adapter is not finite")
        if any(value is None for value in summary["metrics"].values()):
            problems.append(f"metrics: {summary['metrics']}")
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        patience = build_method(world.values["method.name"], {}, 0).patience
        if patience is not None and patience.late == "keep":  # a device may have no part in a round
            if len(rows) != ROUNDS:
                problems.append(f"{len(rows)} rounds")
            return ", ".join(refused.get(liar, {"not": 1})), problems
        expected = [[row["devices"][name]["samples"] for name in world.data] for row in rows]
        if len(rows) != ROUNDS or not all(all(samples) for samples in expected):
            problems.append(f"honest devices trained {expected} samples")
        left_out = liar in refused and LIES[lie].kind not in (HeldOut, Judged)  # who judges falsely may train well
        if left_out and any(row["devices"].get(liar, {"samples": 0})["samples"] for row in rows):
            problems.append("the liar's samples count")
        if left_out and self._whole(world, lie, rows) and result.facts["adapter"] != world.reference.facts["adapter"]:
            problems.append("the adapter is not that of the fleet without the liar")
        return ", ".join(refused.get(liar, {"not": 1})), problems

    def _whole(self, world: World, lie: str, rows: Sequence[dict[str, Any]]) -> bool:
        """Whether nothing of the liar's can be left in anything: not in what devices share, nor in their plans."""
        if LIES[lie].kind in (Hello, Ready):
            return True
        planned = {(row["round"], name): row["devices"][name]["ranks"] for row in rows for name in world.data}
        alone = {(one["round"], one["device"]): one["ranks"] for one in world.reference.facts["history"]}
        return planned == alone and build_method(world.values["method.name"], {}, 0).round.divisible


def main(arguments: Sequence[str] | None = None) -> None:
    """Plays, prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--method", action="append", choices=SETTINGS, help="one of several; default: all")
    parser.add_argument("--lie", action="append", choices=LIES, help="one of several; default: all")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/liars.json"))
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    settings, lies = chosen.method or list(SETTINGS), chosen.lie or list(LIES)
    begun, counts = time.perf_counter(), Counts()
    with tempfile.TemporaryDirectory(prefix="cutlayer-liars-") as folder:
        campaign = Campaign(Path(folder))
        for setting in settings:
            part = campaign.play(setting, lies)
            counts.runs |= part.runs
            counts.failures |= part.failures
            print(f"{setting}: {dict(part.runs[setting])}", flush=True)
            for told, problems in part.failures.items():
                print(told, *problems, sep="\n  ", flush=True)
    table = Listing("setting", "lies", "came to", title=f"{time.perf_counter() - begun:.0f} s")
    for setting, said in counts.runs.items():
        table.add_row(setting, str(said.total()), ", ".join(f"{what} {times}" for what, times in said.most_common()))
    publish([table], chosen.json, {"settings": settings, "lies": lies}, vars(counts))
    if counts.failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
