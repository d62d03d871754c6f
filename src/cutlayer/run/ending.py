"""The end of a run: the adapter as PEFT reads it, the chart of the last round, the summary, and what a caller gets."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutlayer.errors import CheckpointError
from cutlayer.fleet.profile import DeviceProfile, Fleet, ServerProfile
from cutlayer.methods.method import Method
from cutlayer.model.export import save_adapter
from cutlayer.model.moved import save_moved
from cutlayer.model.pruned import save_pruned
from cutlayer.page.run_page import digest_of, finished_page
from cutlayer.report.devices import DeviceRow, device_ledger
from cutlayer.report.gantt import gantt_svg
from cutlayer.report.human import human_speed
from cutlayer.report.run_folder import RunFolder, keeping_last_round
from cutlayer.report.summary import peak_cuda_bytes, peak_memory_bytes, versions
from cutlayer.run.best import BestRound, Result
from cutlayer.run.inputs import ServerInputs
from cutlayer.run.loop import Logbook
from cutlayer.server.server import Server
from cutlayer.types import Event

STEPS_IN_CHART = 4
"""Steps of the last round that report.svg shows: enough to see who waits for whom."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The results that a run ended with.

    Attributes:
      folder: the run folder.
      adapter: the PEFT folder in it.
      before: metrics of the untrained adapter.
      metrics: metrics of the trained one.
      devices: what each machine did, the server last.
      summary: what summary.json holds.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from cutlayer import Outcome, simulate
      >>> from cutlayer.testing.tiny import save_inputs
      >>> here = save_inputs(Path(tempfile.mkdtemp()), rows=24)
      >>> data, train = {"path": here / "data", "max_length": 16}, {"rounds": 2, "local_steps": 1, "batch_size": 4}
      >>> outcome: Outcome = simulate(model=here / "model", data=data, train=train, out=here / "run")
      >>> sorted(outcome.metrics), [row["round"] for row in outcome.rows], len(outcome.devices)
      (['accuracy', 'loss', 'macro_f1'], [0, 1], 7)
    """

    folder: Path
    adapter: Path
    before: dict[str, float]
    metrics: dict[str, float]
    devices: list[DeviceRow]
    summary: dict[str, Any]

    @property
    def lost(self) -> dict[str, str]:
        """Devices that took part and were no more when the run ended, and why: `away`, or why they were refused."""
        return dict(self.summary.get("lost", {}))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one for each round."""
        return RunFolder(self.folder).read_rows()


@dataclass(frozen=True, slots=True)
class Real:
    """Measurements of real machines.

    Attributes:
      speeds: FLOP/s that they measured, by name; of others nothing is said.
      on_the_wire: bytes up and down since this process began, with all that is no message of a round.
    """

    speeds: Mapping[str, float]
    on_the_wire: tuple[int, int]


def result_of(server: Server, losses: Mapping[str, float], method: Method) -> Result:
    """The result that the run has to show now.

    Args:
      server: Which has the adapters.
      losses: By device, of its own view at its last evaluation; of one that was never asked there is none.
      method: Which may have pruned the model.
    """
    views = server.adapters.views()
    best = min(views, key=lambda name: losses.get(name, math.inf), default=None)
    return Result(server.exported() if best is None else views[best], views, method.structure())


def export(folder: Path, inputs: ServerInputs, result: Result, method: Method) -> Path:
    """Writes the adapter; where devices have views of their own, one for each, and the best of them as the adapter.

    Where the base's own weights have moved there is a whole model in place of an adapter.

    Args:
      folder: The run folder.
      inputs: What the run was made of.
      result: What it ended with.
      method: Which may have moved the model's weights.

    Returns:
      The adapter's folder; or the model's.
    """
    base, card = inputs.base, inputs.card
    if method.moved is not None:
        seed = inputs.config.train.seed
        save_moved(folder / "model", base, method.moved.stand(base, seed), method.moved.made_from(seed), card)
        return folder / "model"
    for name, own in result.views.items():
        save_adapter(folder / "adapters" / name, own, base, card)
    save_adapter(folder / "adapter", result.adapter, base, card)
    if result.kept is not None:
        save_pruned(folder / "pruned", result.adapter, base, card, result.kept)
    return folder / "adapter"


def write_reports(
    folder: RunFolder,
    inputs: ServerInputs,
    logbook: Logbook,
    fleet: Fleet,
    adapter: Path,
    seconds: Mapping[str, float],
    refusals: Mapping[str, Mapping[str, int]],
    lost: Mapping[str, str],
    best: BestRound,
    real: Real | None = None,
) -> Outcome:
    """Writes the chart, the summary and the page.

    Args:
      folder: The run folder.
      inputs: What the run was made of.
      logbook: What it measured.
      fleet: The machines that took part.
      adapter: The exported folder.
      seconds: `wall_seconds` of the whole run, and `virtual_seconds` of a simulated one.
      refusals: By device and reason, how often something of it was refused.
      lost: By device that was no more at the end, why: of those that had taken part the summary says so.
      best: Which round is exported.
      real: What is known of real machines; None of a simulated fleet.
    """
    held_out, devices = folder.read_judged()
    machines: list[DeviceProfile | ServerProfile] = [*fleet.devices, fleet.server]
    names, shown = [device.name for device in fleet.devices], list[Event]()
    digest = digest_of(folder, inputs.config)
    rows = device_ledger(
        keeping_last_round(digest.reading(folder), shown),
        logbook.history.records,
        profiles={machine.name: _profile(machine, real) for machine in machines},
        cuts=logbook.cuts,
        judged=devices,
    )
    summary = _summary(inputs, logbook, rows, seconds, best) | {"refusals": refusals}
    if moved := contributed(folder.read_contributions()):
        summary["contributions"] = moved
    if real is not None:
        summary["on_the_wire"] = dict(zip(("bytes_up", "bytes_down"), real.on_the_wire, strict=True))
    took_part = {record.device for record in logbook.history.records}
    if gone := {device: why for device, why in lost.items() if device in took_part}:
        summary["lost"] = gone
    if held_out:
        summary["held_out"] = {"metrics": held_out, "devices": devices}
    with in_need_of_room(folder.path, "at its end", "its report"):
        last = shown[-1].round if shown else logbook.rounds_done - 1
        if any(event.round == last for event in shown):  # none where events.jsonl was lost, which nothing else reads
            folder.write_report(gantt_svg(shown, round=last, first_steps=STEPS_IN_CHART, order=names))
        folder.write_summary(summary)
        folder.write_page(finished_page(digest, summary))
    return Outcome(folder.path, adapter, logbook.before, summary["metrics"], rows, summary)


def contributed(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Facts of each device, by its name, over the rounds in which it moved the adapter: the number of them, medians of
    what `server/contributions.py` says, and the number of them in which it was an outlier."""
    by_device: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_device.setdefault(row["device"], []).append(row)
    return {
        device: {
            "rounds": len(own),
            **{key: statistics.median(row[key] for row in own) for key in ("norm", "times", "cosine", "share")},
            "outlier": sum(row["outlier"] for row in own),
        }
        for device, own in sorted(by_device.items())
    }


@contextmanager
def in_need_of_room(folder: Path, where: str, what: str) -> Iterator[None]:
    """A disk that is full ends the run with a word of it: the last checkpoint is whole."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{folder}, {where}: expected room for {what}, got {error.strerror or error}. "
            "The last checkpoint is whole: make room, then go on with --resume."
        ) from error


def _summary(
    inputs: ServerInputs,
    logbook: Logbook,
    rows: list[DeviceRow],
    seconds: Mapping[str, float],
    best: BestRound,
) -> dict[str, Any]:
    totals = Counter[str]()
    for row in rows[:-1]:  # the server's row repeats what the devices' hold
        totals.update(
            samples=row.samples,
            steps=row.steps,
            bytes_up=row.bytes_up,
            bytes_down=row.bytes_down,
            late=row.late,
        )
    records = logbook.history.records
    saved = {name: sum(record.facts.get(name, 0) for record in records) for name in ("saved_flops", "saved_bytes")}
    virtual = {key: value for key, value in seconds.items() if key == "virtual_seconds"}
    exported = best.best_row if best.best_result is not None else None
    return {
        "metrics": logbook.metrics if exported is None else exported["metrics"],
        "exported_round": logbook.rounds_done - 1 if exported is None else exported["round"],
        "ended_early": best.exhausted,
        "metrics_before": logbook.before,
        "totals": {**totals, **saved, "rounds": logbook.rounds_done, **virtual},
        "wall_seconds": seconds["wall_seconds"],
        "peak_memory_bytes": peak_memory_bytes(),
        "peak_cuda_bytes": peak_cuda_bytes(),
        "versions": versions(),
        "method": inputs.config.method.model_dump(include={"name", "source"}),
        "seed": inputs.config.train.seed,
        "blocks": inputs.base.num_blocks,
        "run": inputs.run_id,
    }


def _profile(machine: DeviceProfile | ServerProfile, real: Real | None) -> str:
    """The speed that a machine reaches, as text: as declared of a simulated one, as measured of a real one."""
    if real is None:
        return human_speed(machine.flops_per_second)
    return human_speed(real.speeds[machine.name]) if machine.name in real.speeds else "not measured"
