"""Shapes by name: one's own, or an installed package's; a server names no code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from cutlayer.device import shape as shapes
from cutlayer.device.shape import ENTRY_POINTS, Shape, shape_by_name
from cutlayer.device.talks import split
from cutlayer.errors import JoinError
from cutlayer.methods.table import TABLE, build_method
from cutlayer.types import DevicePlan, Flow


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Forgets what was looked up with other entry points."""
    shape_by_name.cache_clear()
    yield
    shape_by_name.cache_clear()


@pytest.mark.parametrize("name", TABLE)
def test_a_device_has_the_shape_of_every_method(name: str) -> None:
    shape = build_method(name, {}, 0).round.shape
    here = shape_by_name(shape.name)
    assert here == replace(shape, at_sites=False)  # whom it talks with is all the same to a device


def test_every_talk_is_a_shape_of_its_name() -> None:
    files = {path.stem for path in Path(split.__file__).parent.glob("*.py")} - {"__init__"}
    assert {name.replace("-", "_") for name in shapes._own()} == files
    assert {shape_by_name(name).name for name in shapes._own()} == set(shapes._own())


@pytest.mark.parametrize(
    "name",
    [
        "hive",
        "",
        "..",
        "os",
        "cutlayer.run",
        "cutlayer.device.talks.split",
        "split.SHAPE",
        "../split",
        "split.py",
        "/split",
        "__init__",
        "Split",
        "split ",
        "split\n",
        "x" * 10_000,
    ],
)
def test_a_name_that_is_none_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name imports nothing, whatever it is."""
    monkeypatch.setattr(shapes, "_defined_in", lambda module: pytest.fail(f"imported {module}"))
    with pytest.raises(JoinError, match=r"^join: expected one of the shapes .*split.*Install the server's version"):
        shape_by_name(name)


@dataclass
class Installed:
    """An entry point of an installed package."""

    name: str
    offers: object
    loaded: int = 0

    def load(self) -> object:
        self.loaded += 1
        return self.offers


MINE = Shape("mine", split.Split, flow=lambda _plan: Flow(forwards=2))


def install(monkeypatch: pytest.MonkeyPatch, *points: Installed) -> None:
    def entry_points(*, group: str) -> tuple[Installed, ...]:
        assert group == ENTRY_POINTS == "cutlayer.shapes"
        return points

    monkeypatch.setattr(shapes, "entry_points", entry_points)


def test_an_installed_package_may_bring_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    point, other = Installed("mine", MINE), Installed("other", MINE)
    install(monkeypatch, point, other)
    assert shape_by_name("mine") is MINE
    assert (point.loaded, other.loaded) == (1, 0), "only what was asked for is imported"
    with pytest.raises(JoinError, match=r"expected one of the shapes .*, mine, other, .*, got 'hive'"):
        shape_by_name("hive")


def test_a_real_entry_point_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("mine", f"{__name__}:MINE", ENTRY_POINTS)
    monkeypatch.setattr(EntryPoint, "load", lambda self: globals()[self.attr])
    install(monkeypatch, point)  # type: ignore[arg-type]
    assert shape_by_name("mine") is MINE


def test_an_installed_package_replaces_no_shape_of_the_house(monkeypatch: pytest.MonkeyPatch) -> None:
    point = Installed("split", Shape("split", split.Split))
    install(monkeypatch, point)
    assert shape_by_name("split") is split.SHAPE
    assert point.loaded == 0


@pytest.mark.parametrize("offers", [object(), split.SHAPE, None, "mine"])
def test_what_is_no_shape_of_that_name_is_refused(offers: object, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Installed("mine", offers))
    with pytest.raises(JoinError, match="got 'mine'"):
        shape_by_name("mine")


def test_a_shape_says_little_by_itself() -> None:
    """One forward and one backward pass, an update of all that was sent, nothing to build, no copies."""
    shape = Shape("plain", split.Split)
    assert shape.flow(DevicePlan("device-0")) == Flow(forwards=1, at_once=1, backward=True, removed=0.0)
    assert not shape.copies_weights
