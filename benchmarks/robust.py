"""One device that is an enemy, and what `train.robust` makes of it: accuracy with and without.

    python benchmarks/robust.py                     a minute on two free cores
    python benchmarks/robust.py --rounds 20 --seeds 3 --method fedlora --method memsfl        the full table

A simulated fleet learns `builtin:reviews`; in every round the last device sends, in place of what it has trained,

    back x10    its own change times -10: back where it came from, ten times as far
    noise x10   noise of ten times its change's norm
    head x-10   the head that it has trained times -10, the rest as it is

The run is otherwise what `cutlayer train` plays. Changes are told from what all share: methods with scopes of their own
are no rows of this.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from cutlayer.api.simulate import simulate
from cutlayer.policies.aggregate import Contribution
from cutlayer.policies.robust import change, norm, places_of
from cutlayer.report.listing import Listing
from cutlayer.rounds.patience import Patience
from cutlayer.types import Adapter
from tables import publish

FACTOR = 10.0
POLICIES = ("none", "clip:2", "median", "trimmed:0.2")
Attack = Callable[[Contribution, Adapter], Contribution]
"""(what a device trained, from what it began) -> what it sends."""


def back(part: Contribution, began: Adapter) -> Contribution:
    """The change, turned round and ten times as far."""
    return _moved(part, began, {name: value * -FACTOR for name, value in change(began, part).items()})


def noise(part: Contribution, began: Adapter) -> Contribution:
    """Noise of ten times the change's norm."""
    changes = change(began, part)
    random = torch.Generator().manual_seed(part.round)
    drawn = {name: torch.randn(value.shape, generator=random) for name, value in changes.items()}
    share = FACTOR * norm(changes) / norm(drawn)
    return _moved(part, began, {name: value * share for name, value in drawn.items()})


def head(part: Contribution, began: Adapter) -> Contribution:  # noqa: ARG001
    """The head times -10."""
    adapter = {n: value if ".lora_" in n else value * -FACTOR for n, value in part.adapter.items()}
    return replace(part, adapter=adapter)


def _moved(part: Contribution, began: Adapter, changes: Adapter) -> Contribution:
    adapter = {
        name: began[name][places_of(part, name)] + changes[name] if name in changes else value
        for name, value in part.adapter.items()
    }
    return replace(part, adapter=adapter)


ATTACKS: dict[str, Attack | None] = {"nobody": None, "back x10": back, "noise x10": noise, "head x-10": head}


def accuracy(out: Path, attack: Attack | None, robust: str, **values: Any) -> float:
    """Accuracy of the adapter at the end of a run in which the last device attacks in every round."""
    hold = Patience.hold

    async def attacked(self: Patience, round: Any, server: Any, links: Any, plan: Any) -> list[Contribution]:
        parts = await hold(self, round, server, links, plan)
        last, began = max(part.device for part in parts), server.adapters.shared
        return [attack(part, began) if attack and part.device == last else part for part in parts]

    section = {"robust": robust, **values.pop("train")}
    with mock.patch.object(Patience, "hold", attacked):
        return simulate(train=section, out=out, **values).metrics["accuracy"]


def table_of(
    folder: Path, methods: Sequence[str], policies: Sequence[str], seeds: int, **values: Any
) -> dict[str, Any]:
    """The mean accuracy over seeds, by method, attack and policy."""
    rows: dict[str, Any] = {}
    train = values.pop("train")
    for method in methods:
        for name, attack in ATTACKS.items():
            for robust in policies:
                found = [
                    accuracy(
                        folder / f"{method}-{name}-{robust}-{seed}".replace(" ", "-").replace(":", "-"),
                        attack,
                        robust,
                        method=method,
                        train={**train, "seed": seed},
                        **values,
                    )
                    for seed in range(seeds)
                ]
                rows.setdefault(f"{method}, {name}", {})[robust] = statistics.fmean(found)
                print(f"{method}, {name}, {robust}: {statistics.fmean(found):.3f}", flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Plays, prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--local-steps", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--eval-rows", type=int, help="validation rows; default: all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--method", action="append", help="one of several; default: fedlora")
    parser.add_argument("--robust", action="append", help=f"one of several; default: {', '.join(POLICIES)}")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/robust.json"))
    chosen = parser.parse_args(arguments)
    methods, policies = chosen.method or ["fedlora"], chosen.robust or list(POLICIES)
    with tempfile.TemporaryDirectory(prefix="cutlayer-robust-") as folder:
        settings = {
            "rounds": chosen.rounds,
            "local_steps": chosen.local_steps,
            "batch_size": chosen.batch_size,
            "eval_every": chosen.rounds,
            "eval_rows": chosen.eval_rows,
        }
        rows = table_of(Path(folder), methods, policies, chosen.seeds, train=settings)
    table = Listing("method, attack", *policies, title=f"accuracy after {chosen.rounds} rounds, {chosen.seeds} seeds")
    for name, found in rows.items():
        table.add_row(name, *(f"{found[robust]:.3f}" for robust in policies))
    publish([table], chosen.json, {**settings, "seeds": chosen.seeds}, rows)


if __name__ == "__main__":
    main()
