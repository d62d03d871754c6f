"""A run that goes without training, and the page that is told of it."""

from __future__ import annotations

from pathlib import Path

from cutlayer.page.digest import Digest
from cutlayer.page.live import Live
from cutlayer.report.run_folder import RunFolder
from made_up_runs import STEPS, config, events, names, row, write_round, write_run


def begun(out: Path, *, rounds: int = 4, done: int = 0, devices: int = 3) -> tuple[Live, RunFolder, list[float]]:
    """A run whose next round is under way, its folder, and the clock of its page."""
    folder, time = write_run(out, devices=devices, rounds=done, of=rounds, ended=False), [0.0]
    live = Live(Digest(config(out, rounds).model_dump(mode="json"), {}, out, simulated=True), lambda: time[0])
    live.begun(rounds, names(devices), STEPS, done)
    live.drain()
    return live, folder, time


def play(live: Live, folder: RunFolder, round: int, *, devices: int = 3) -> None:
    """A round, to its end."""
    who = names(devices)
    for event in events(round, who):
        live.event(event)
    write_round(folder, round, who)
    live.finished(row(round, who))
