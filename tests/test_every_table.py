"""Every table that the program and the benchmarks print is a `Listing`, and is whole in any terminal and in a pipe."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import pytest

from commands import World, run
from cutlayer.cli.compare import listed
from cutlayer.cli.recommend import fits_table
from cutlayer.comparing.tables import budget_table, target_table
from cutlayer.gate.roster import Roster
from cutlayer.report.devices import DeviceRow, device_table
from cutlayer.report.listing import Listing
from cutlayer.run.recommended import Choice, Fits, OnDevice
from made_up_figures import results_of
from whole import PIPE, problems

PROJECT = Path(__file__).parents[1]
SOURCES = sorted([*(PROJECT / "src").rglob("*.py"), *(PROJECT / "benchmarks").glob("*.py")])
WIDTHS = (60, 80, 110, 180, PIPE)
NAMES = ("jetson-orin-of-the-clinic", "jetson-orin-of-the-ward", "snapdragon-8s-gen-3")


def recorded(*arguments: object) -> list[Listing]:
    """The tables that a command prints."""
    made: list[Listing] = []
    begin = Listing.__init__

    def record(self: Listing, *words: str, **how: object) -> None:
        begin(self, *words, **how)  # type: ignore[arg-type]
        made.append(self)

    with mock.patch.object(Listing, "__init__", record):
        ran = run(*arguments)
    assert ran.code == 0, ran.err
    return made


def of_devices(_world: World) -> list[Listing]:
    figures = (12, 96_000, 6_000, 13766.6, 1284.1, 9.0, 787_232_000, 12_345, 3)
    rows = [DeviceRow(name, f"{name}-profile", *figures) for name in NAMES]
    judged = [DeviceRow(row.device, "", 1, 1, 1, 1.0, 1.0, 1.0, 1, 1, 0, {"accuracy": 0.5}) for row in rows]
    server = DeviceRow("server", "gpu", None, 96_000, 6_000, 7682.0, 9371.2, 0.0, 4 * 2**30, 9)
    many = [DeviceRow(f"phone-{n}-of-somebody", "p", 1, 1, 1, 1.0, 1.0, 1.0, 1, 1) for n in range(60)]
    return [device_table([*some, server]) for some in (rows, judged, many)]


def of_comparisons(_world: World) -> list[Listing]:
    names = ("memsfl", "splitlora", "sfl_v1")
    results = results_of({f"{name}:cut=1,order=fifo": [[0.2, 0.5, 0.6], [0.2, 0.6, 0.8]] for name in names})
    target = target_table(results)
    assert target is not None
    return [listed(target), listed(budget_table(results))]


def of_recommendations(_world: World) -> list[Listing]:
    device = OnDevice(2, False, 2**28, 2**30, 0.5, 0.25)
    figures = (12.3, 2**24, 2**23, 800, {"pi": device}, 0.5, 2**30, True, None, True)
    fits = [Fits(Choice(f"method_{n}", {}, {"cut": "latency"}, own=n == 3), *figures, waits="round") for n in range(34)]
    return [fits_table(fits), fits_table(fits[:2])]


def of_fleets(world: World) -> list[Listing]:
    folder = world.folder / "a-fleet"
    Roster.create(folder)
    for name in NAMES:
        Roster(folder).add(name, when=datetime.now(UTC))
    return [*recorded("fleet", "list", "--fleet", folder), *recorded("fleets"), *recorded("families")]


def of_methods(_world: World) -> list[Listing]:
    return [*recorded("methods"), *recorded("methods", "fedspine")]


def of_plans(world: World) -> list[Listing]:
    return recorded("plan", *world.classification())


def of_evaluations(world: World) -> list[Listing]:
    adapter = run("train", *world.classification(), "--rounds", 1, "--quiet").out.strip()
    return recorded("evaluate", adapter, "--data", world.reviews)


@pytest.mark.parametrize(
    "tables", [of_devices, of_comparisons, of_recommendations, of_fleets, of_methods, of_plans, of_evaluations]
)
def test_every_table_is_whole(tables: Callable[[World], list[Listing]], world: World) -> None:
    shown = tables(world)
    assert shown
    for table in shown:
        for width in WIDTHS:
            assert problems(table, width) == [], f"{table.headings} in {width} columns"


def test_there_is_no_other_table() -> None:
    """But for grids, which are lines of a display."""
    for path in SOURCES:
        text = path.read_text()
        if path.name != "listing.py" and re.search(r"^from rich.table import", text, re.MULTILINE):
            made = re.findall(r"\bTable(\.\w+)?\(", text)
            assert set(made) <= {".grid"}, f"{path.name}: a table is a Listing (report/listing.py)"
