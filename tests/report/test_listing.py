"""A table is whole at any width: every name, every number of what is shown, and a word of what is not."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from cutlayer.report.listing import FEW_ROWS, Listing
from whole import problems

WIDTHS = (20, 40, 60, 80, 110, 180, 10_000)


def listing(rows: int, *, name: str = "device") -> Listing:
    shown = Listing("who", numbers=[f"number {index}" for index in range(8)], most=("number 7", "number 3"))
    shown.add_column("what it is", prose=True)
    for row in range(rows):
        shown.add_row(f"{name}-{row}", *(f"{row}.{index} MiB" for index in range(8)), f"words of row {row} to be read")
    return shown


def drawn(shown: Listing, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(shown)
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [0, 1, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize("name", ["pi", "a-device-of-the-hospital-in-a-far-town"])
def test_nothing_is_cut(width: int, rows: int, name: str) -> None:
    assert problems(listing(rows, name=name), width) == []


def test_of_a_few_rows_the_rest_is_below_and_of_many_it_is_named() -> None:
    few, many = drawn(listing(2), 40), drawn(listing(FEW_ROWS + 1), 40)
    assert sum(line.startswith(" device-0") for line in few) > 1
    assert not any("not shown" in line for line in few)
    assert sum(line.startswith(" device-0 ") for line in many) == 1
    headings = next(line for line in many if line.startswith(" who"))
    assert headings.split("  ")[-2:] == ["number 3", "number 7"], "what matters most"
    said = " ".join(many).partition("not shown here: ")[2]
    assert said.startswith("number 0, number 1, number 2, number 4, number 5, number 6, what it is.")


def test_prose_is_broken_before_a_column_goes() -> None:
    shown = Listing("method", "what it does", numbers=["rounds"], prose=("what it does",))
    shown.add_row("splitlora", "Each device trains below the cut and the server above it, in turns.", "120")
    lines = drawn(shown, 60)
    assert any("splitlora" in line and line.endswith("120") for line in lines)
    assert not any("…" in line for line in lines)


def test_a_row_is_turned_where_nothing_fits_beside_the_name() -> None:
    shown = Listing("device", numbers=["cut"])
    shown.add_row("a-long-name-of-a-device", "3")
    assert drawn(shown, 26) == ["a-long-name-of-a-device", "  cut: 3"]


def test_a_display_that_is_drawn_again_keeps_its_height() -> None:
    shown = Listing("device", numbers=["cut", "step"], most=("step",), drawn_again=True)
    shown.add_row("pi-1", "3", "10/50")
    assert drawn(shown, 16)[0].split() == ["device", "step"]
    assert len(drawn(shown, 16)) == len(drawn(shown, 80)) == 3


def test_titles_sections_and_styles() -> None:
    shown = Listing("device", numbers=["cut"], title="a title [of] 1")
    shown.add_row(Text("pi-1", "red"), "[1]")
    shown.add_section()
    shown.add_row("server", style="bold")
    lines = drawn(shown, 80)
    assert lines[0] == "a title [of] 1"
    assert [line.split() for line in lines if line[1:7] in ("pi-1  ", "server")] == [["pi-1", "[1]"], ["server"]]
    assert shown.cells == [["pi-1", "[1]"], ["server", ""]]
