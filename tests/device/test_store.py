"""Commit points come back exactly, from memory and from the disk, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cutlayer.device.store import FolderStore, MemoryStore, Store
from cutlayer.errors import CheckpointError
from cutlayer.state import State, joined
from cutlayer.types import Adapter

Maker = Callable[[], Store]


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else FolderStore(tmp_path / "states", "run", "pi-1")


def tensors(seed: int, *names: str) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3, 2, generator=generator) for name in names}


def state(seed: int) -> State:
    device = {
        "data": State({"epoch": seed, "position": 3}),
        "moments": State(tensors=tensors(seed, "a#exp_avg")),
        "talk": State({"sent": [1, 2]}, tensors(seed + 50, "kept")),
    }
    return joined({"device": joined(device), "packing": State(tensors=tensors(seed + 100, "a"))})


def same(one: Adapter, other: Adapter) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def assert_same(one: State, other: State) -> None:
    assert one.facts == other.facts
    assert same(one.tensors, other.tensors)


def test_states_come_back(store: Store) -> None:
    assert store.points() == set()
    for point in (None, 0, 7):
        store.save(point, state(point or 0))
    assert store.points() == {None, 0, 7}
    assert_same(store.load(None), state(0))
    assert_same(store.load(7), state(7))
    store.save(7, state(8))
    assert_same(store.load(7), state(8))
    store.keep({None, 7})
    assert store.points() == {None, 7}


def test_what_is_kept_does_not_train_on(store: Store) -> None:
    live = state(1)
    store.save(1, live)
    live.tensors["device/moments/a#exp_avg"].add_(1)
    live.facts["device"]["data"]["position"] = 99
    assert_same(store.load(1), state(1))
    loaded = store.load(1)
    loaded.tensors["device/moments/a#exp_avg"].add_(1)
    loaded.facts["device"]["data"]["position"] = 99
    assert_same(store.load(1), state(1))


def test_a_state_that_is_not_there_says_what_to_do(store: Store) -> None:
    store.save(None, state(0))
    store.save(4, state(4))
    with pytest.raises(CheckpointError, match=r"after round 5, which the server says .*, got start, after-000004\."):
        store.load(5)
    store.keep({4})
    with pytest.raises(CheckpointError, match=r"before its first round, .* got after-000004\. Bring its folder"):
        store.load(None)


def test_folds_are_kept_once_and_may_not_change(store: Store) -> None:
    store.fold({})
    store.fold({"0/a": torch.ones(2), "1/a": torch.zeros(2)})
    store.fold({"1/a": torch.zeros(2), "1/b": torch.ones(1), "2/a": torch.full((2,), 3.0)})
    expected = {"0/a": torch.ones(2), "1/a": torch.zeros(2), "1/b": torch.ones(1), "2/a": torch.full((2,), 3.0)}
    assert same(store.folds(), expected)
    with pytest.raises(CheckpointError, match="expected fold 1 as this device has had it, got another"):
        store.fold({"1/a": torch.ones(2)})


def test_a_folder_outlives_its_process(tmp_path: Path) -> None:
    first = FolderStore(tmp_path / "states", "run", "pi-1")
    first.save(3, state(3))
    first.fold({"0/a": torch.ones(2)})
    second = FolderStore(tmp_path / "states", "run", "pi-1")
    assert second.points() == {3}
    assert_same(second.load(3), state(3))
    assert same(second.folds(), {"0/a": torch.ones(2)})


def test_a_kill_while_a_state_is_replaced(tmp_path: Path) -> None:
    """Between the two renames the old one lies aside: it is put back."""
    FolderStore(tmp_path, "run", "pi-1").save(3, state(3))
    (tmp_path / "after-000003").rename(tmp_path / ".after-000003.old")
    (tmp_path / ".after-000004.tmp").mkdir()
    again = FolderStore(tmp_path, "run", "pi-1")
    assert again.points() == {3}
    assert_same(again.load(3), state(3))


def test_a_disk_without_room_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "states").write_text("a file where the folder would be")
    store = FolderStore(tmp_path / "states", "run", "pi-1")
    with pytest.raises(CheckpointError, match=r"expected room for the state of this device, got .* join again under"):
        store.save(3, state(3))


@pytest.mark.parametrize(("run", "device"), [("other", "pi-1"), ("run", "pi-2")])
def test_a_foreign_state_is_refused(run: str, device: str, tmp_path: Path) -> None:
    FolderStore(tmp_path, "run", "pi-1").save(3, state(3))
    FolderStore(tmp_path, "run", "pi-1").fold({"0/a": torch.ones(2)})
    stranger = FolderStore(tmp_path, run, device)
    for read in (lambda: stranger.load(3), stranger.folds):
        with pytest.raises(CheckpointError, match="Give each device a folder of its own, or delete this"):
            read()


@pytest.mark.parametrize("file", ["state.json", "tensors.safetensors", "SHA256SUMS"])
@pytest.mark.parametrize("how", ["gone", "cut", "changed"])
def test_a_torn_state_is_refused(file: str, how: str, tmp_path: Path) -> None:
    store = FolderStore(tmp_path, "run", "pi-1")
    store.save(3, state(3))
    path = tmp_path / "after-000003" / file
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[:-7])
    else:
        path.write_bytes(content.replace(b"3", b"4") if file == "state.json" else content[:-1] + b"\x7f")
    with pytest.raises(
        CheckpointError, match=r"expected it as it was written, got .* It is torn\. .* join under another name"
    ) as error:
        store.load(3)
    assert "\n" not in str(error.value)


def test_a_device_comes_again_with_what_it_came_with(tmp_path: Path) -> None:
    for _ in range(2):
        FolderStore(tmp_path / "state", "run", "pi").began_with("rows", "abc", "Put them back.")
    with pytest.raises(
        CheckpointError, match=r"expected the rows with which .* \(abc\), got other rows \(xyz\)\. Put "
    ):
        FolderStore(tmp_path / "state", "run", "pi").began_with("rows", "xyz", "Put them back.")
    FolderStore(tmp_path / "state", "run", "pi").began_with("rows", "abc", "Put them back.")
