"""A checkpoint comes back exactly, or is refused."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch

from cutlayer import sealed
from cutlayer.errors import CheckpointError, TornError
from cutlayer.server.checkpoint import FORMAT, load_checkpoint, read_checkpoint, save_checkpoint
from cutlayer.state import State, joined

RUN = "0123456789abcdef"


def tree(seed: int = 0) -> State:
    """A checkpoint as a run might write it, with names, numbers and tensors of every kind."""
    generator = torch.Generator().manual_seed(seed)

    def tensors(*names: str) -> dict[str, torch.Tensor]:
        return {name: torch.randn(4, 3, generator=generator) for name in names}

    moments = {**tensors("a.weight#exp_avg", "a.weight#exp_avg_sq"), "a.weight#step": torch.tensor(3.0)}
    odd = {"odd": torch.tensor([-0.0, math.nan, math.inf])}
    adapters = {
        "shared": State(tensors={**tensors("a.weight", "b.weight"), **odd}),
        "own": joined({"phone": State(tensors=tensors("a.weight", "b.weight"))}),
        "scopes": State({"phone": ["phone"]}),
        "moments": joined(
            {"*": State(tensors=moments), "phone": State(), "phone-2": State(tensors=tensors("a.weight#exp_avg"))}
        ),
    }
    server = {
        "adapters": joined(adapters),
        "folds": State({"held": {"phone": 2, "phone-2": 0}}, tensors("0/a.weight", "10/a.weight", "2/a.weight")),
        "ledger": State({"counted": {"phone": 6}}),
    }
    method = {
        "round": State({"num_picks": 5, "name": "ü"}),
        "aggregate": joined({"*": State(tensors=tensors("a.weight"))}),
    }
    phone = {
        "device": State({"data": {"epoch": 2, "order": [3, 1, 2], "seed": 2**63 + 1}}, tensors("moments/b.weight")),
        "packing": State(tensors=tensors("b.weight")),
    }
    other = {"device": State({"data": {}}), "packing": State()}
    run = {
        "rounds_done": 7 + seed,
        "clock_seconds": 0.1 + 1e-9,
        "before": {"accuracy": 1 / 3},
        "cuts": {"phone": 2},
        "members": [{"name": "phone", "index": 0, "label_counts": [3, 1], "refused": None}],
        "positions": {"events.jsonl": [12345, 2**32 - 1]},
    }
    return joined(
        {
            "server": joined(server),
            "method": joined(method),
            "devices": joined({"phone": joined(phone), "phone-2": joined(other)}),
            "run": State(run),
        }
    )


def assert_same(one: State, other: State) -> None:
    """Every fact, and tensors bit for bit."""
    assert one.facts == other.facts
    assert one.tensors.keys() == other.tensors.keys()
    for name, value in one.tensors.items():
        assert bits(value) == bits(other.tensors[name]), name


def bits(tensor: torch.Tensor) -> object:
    return tensor.dtype, tuple(tensor.shape), tensor.numpy().tobytes()


def message(error: pytest.ExceptionInfo[CheckpointError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert "expected" in text
    assert "got" in text
    return text


def test_it_comes_back_exactly(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", tree(), RUN)
    loaded = load_checkpoint(tmp_path / "checkpoint", RUN)
    assert loaded is not None
    assert_same(loaded, tree())


def test_the_next_one_replaces_it(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    save_checkpoint(folder, tree(0), RUN)
    save_checkpoint(folder, tree(1), RUN)
    loaded = load_checkpoint(folder, RUN)
    assert loaded is not None
    assert_same(loaded, tree(1))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def flip(folder: Path) -> None:
    """A bit of its tensors."""
    content = bytearray((folder / "tensors.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "tensors.safetensors").write_bytes(content)


@pytest.mark.parametrize("keep", [1, 2, 3, 5])
def test_as_many_are_kept_as_are_asked_for(keep: int, tmp_path: Path) -> None:
    folder, lines = tmp_path / "checkpoint", list[str]()
    for number in range(5):
        save_checkpoint(folder, tree(number), RUN, keep=keep)
    names = ["checkpoint", *(f"checkpoint.{number}" for number in range(1, keep))]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for back, name in enumerate(names):
        loaded = load_checkpoint(folder, RUN, told=lines.append)
        read = read_checkpoint(folder)
        assert loaded is not None
        assert read is not None
        assert_same(loaded, tree(4 - back))
        assert_same(read, tree(4 - back))
        flip(tmp_path / name)
    with pytest.raises(TornError) as error:
        load_checkpoint(folder, RUN, told=lines.append)
    assert str(folder) in message(error), "the newest is what a person should know of"
    with pytest.raises(TornError):
        read_checkpoint(folder)
    said = [line.partition(":")[0].partition(" from ")[0] for line in lines]
    expected = [word for back in range(1, keep) for word in [*["left out"] * back, "going on"]]
    assert said == [*expected, *["left out"] * keep]


def test_one_that_is_gone_is_passed_over_in_words(tmp_path: Path) -> None:
    folder, lines = tmp_path / "checkpoint", list[str]()
    for number in range(3):
        save_checkpoint(folder, tree(number), RUN, keep=3)
    shutil.rmtree(folder)
    loaded = load_checkpoint(folder, RUN, told=lines.append)
    assert loaded is not None
    assert_same(loaded, tree(1))
    assert lines == [f"going on from {folder}.1, an earlier checkpoint: the newest that is whole"]


def test_another_runs_is_refused_whatever_was_before_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", tree(0), RUN, keep=3)
    save_checkpoint(tmp_path / "checkpoint", tree(1), "another", keep=3)
    with pytest.raises(CheckpointError, match=f"expected run {RUN}, got another"):
        load_checkpoint(tmp_path / "checkpoint", RUN)


def test_keeping_more_writes_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those before are renamed: no byte of them is read or written, and one folder is removed, as where one is kept."""
    removed, written, remove_tree, save = list[Path](), list[Path](), shutil.rmtree, sealed.save_file
    monkeypatch.setattr(shutil, "rmtree", lambda path, **how: removed.append(path) or remove_tree(path, **how))
    monkeypatch.setattr(sealed, "save_file", lambda tensors, path: written.append(path) or save(tensors, path))
    for keep in (1, 3):
        folder = tmp_path / str(keep) / "checkpoint"
        for number in range(4):
            removed.clear(), written.clear()
            save_checkpoint(folder, tree(number), RUN, keep=keep)
        assert len(written) == 1
        assert [path for path in removed if not path.name.endswith(".tmp")] == [
            folder.with_name(".checkpoint.old" if keep == 1 else "checkpoint.2")
        ]


def test_before_the_first_round_there_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "checkpoint", RUN) is None


def test_owners_and_sides_do_not_mix(tmp_path: Path) -> None:
    """A device may be called adapter, server or device."""

    def filled(value: float) -> State:
        return State(tensors={"w#step": torch.full((1,), value)})

    none = State()
    odd = joined(
        {
            "server": joined({"adapter": filled(1.0), "server": none, "device": filled(0.0)}),
            "devices": joined({"adapter": none, "server": filled(1.0), "device": filled(0.5), "devices": none}),
        }
    )
    save_checkpoint(tmp_path / "checkpoint", odd, RUN)
    loaded = load_checkpoint(tmp_path / "checkpoint", RUN)
    assert loaded is not None
    assert_same(loaded, odd)
    found = {name: side.branches() for name, side in loaded.branches().items()}
    assert [len(found["server"][name].tensors) for name in ("adapter", "server", "device")] == [1, 0, 1]
    assert [len(found["devices"][name].tensors) for name in ("adapter", "server", "device", "devices")] == [0, 1, 1, 0]


# ------------------------------------------------------------------ torn, foreign, old


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors", "SHA256SUMS"])
@pytest.mark.parametrize("length", [0, 10, -1])
def test_a_file_cut_short(name: str, length: int, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", tree(), RUN)
    path = tmp_path / "checkpoint" / name
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "checkpoint", RUN)
    message(error)


@pytest.mark.parametrize("place", [0.03, 0.5, 0.999])
def test_a_flipped_bit_of_the_tensors(place: float, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", tree(), RUN)
    path = tmp_path / "checkpoint" / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "checkpoint", RUN)
    assert "torn" in message(error)


@pytest.mark.parametrize(
    ("old", "new"), [('"rounds_done": 7', '"rounds_done": 6'), ("12345", "12346"), ("phone-2", "phone-3")]
)
def test_a_changed_byte_of_the_state(old: str, new: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", tree(), RUN)
    path = tmp_path / "checkpoint" / "state.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "checkpoint", RUN)
    assert "torn" in message(error)


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors", "SHA256SUMS"])
def test_a_file_that_is_gone(name: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", tree(), RUN)
    (tmp_path / "checkpoint" / name).unlink()
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "checkpoint", RUN)
    assert name in message(error)


@pytest.mark.parametrize("content", ["[]", "{}", "null", f'{{"format": {FORMAT}}}'])
def test_a_state_that_is_none(content: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", tree(), RUN)
    (tmp_path / "checkpoint" / "state.json").write_text(content)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "checkpoint", RUN)
    assert "It is torn. Start the run again." in message(error)


def test_another_runs_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", tree(), "another")
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "checkpoint", RUN)
    assert f"expected run {RUN}, got another" in message(error)


def test_another_versions_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", tree(), RUN)
    path = tmp_path / "checkpoint" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": FORMAT + 1}))
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "checkpoint", RUN)
    assert f"expected format {FORMAT}, got {FORMAT + 1}" in message(error)


# ------------------------------------------------------------------ killed while writing


class Crash(BaseException):
    """The process is killed here."""


@pytest.mark.parametrize("rename", [0, 1])
def test_killed_at_a_rename_the_old_one_stays(rename: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoint"
    save_checkpoint(folder, tree(0), RUN)
    replace, calls = os.replace, list[Path]()

    def replace_or_die(old: Path, new: Path) -> None:
        if len(calls) == rename:
            raise Crash
        calls.append(new)
        replace(old, new)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace_or_die)
        patched.setattr("cutlayer.files.recover_folder", lambda path: None)  # who is killed repairs nothing
        with pytest.raises(Crash):
            save_checkpoint(folder, tree(1), RUN)
    assert folder.exists() == (rename == 0)
    loaded = load_checkpoint(folder, RUN)
    assert loaded is not None
    assert_same(loaded, tree(0))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_killed_while_writing_the_old_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoint"
    save_checkpoint(folder, tree(0), RUN)

    def die(_path: Path) -> str:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr("cutlayer.sealed.sha256", die)
        patched.setattr("cutlayer.files.recover_folder", lambda path: None)
        with pytest.raises(Crash):
            save_checkpoint(folder, tree(1), RUN)
    assert (tmp_path / ".checkpoint.tmp" / "tensors.safetensors").exists()
    loaded = load_checkpoint(folder, RUN)
    assert loaded is not None
    assert_same(loaded, tree(0))


def test_killed_before_the_first_was_whole_there_is_none(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.tmp").mkdir()
    (tmp_path / ".checkpoint.tmp" / "tensors.safetensors").write_bytes(b"half")
    assert load_checkpoint(tmp_path / "checkpoint", RUN) is None
    assert list(tmp_path.iterdir()) == []
