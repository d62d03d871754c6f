"""A checkpoint comes back exactly, or is refused."""

from __future__ import annotations

import json
import math
import os
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from cutlayer.errors import CheckpointError
from cutlayer.report.json_lines import Position
from cutlayer.server.checkpoint import FORMAT, Snapshot, load_checkpoint, save_checkpoint

RUN = "0123456789abcdef"


def snapshot(seed: int = 0) -> Snapshot:
    generator = torch.Generator().manual_seed(seed)

    def tensors(*names: str) -> dict[str, torch.Tensor]:
        return {name: torch.randn(4, 3, generator=generator) for name in names}

    moments = {**tensors("a.weight#exp_avg", "a.weight#exp_avg_sq"), "a.weight#step": torch.tensor(3.0)}
    return Snapshot(
        rounds_done=7 + seed,
        clock_seconds=0.1 + 1e-9,
        adapter={**tensors("a.weight", "b.weight"), "odd": torch.tensor([-0.0, math.nan, math.inf])},
        aggregate=tensors("a.weight"),
        folds=tensors("0/a.weight", "10/a.weight", "2/a.weight"),
        folds_held={"phone": 2, "phone-2": 0},
        counted={"phone": 6},
        server_moments={"*": moments, "phone": {}, "phone-2": tensors("a.weight#exp_avg")},
        device_moments={"phone": tensors("b.weight#exp_avg"), "phone-2": {}},
        lost={"phone": tensors("b.weight"), "phone-2": {}},
        personal={"phone": tensors("a.weight", "b.weight")},
        cursors={"phone": {"epoch": 2, "order": [3, 1, 2], "seed": 2**63 + 1}, "phone-2": {}},
        members=[{"name": "phone", "index": 0, "label_counts": [3, 1], "refused": None}],
        round_state={"num_picks": 5, "name": "ü"},
        totals={"before": {"accuracy": 1 / 3}, "cuts": {"phone": 2}},
        positions={"events.jsonl": Position(12345, 2**32 - 1)},
    )


def assert_same(one: Snapshot, other: Snapshot) -> None:
    """Every field, tensors bit for bit."""

    def bits(value: object) -> object:
        if isinstance(value, torch.Tensor):
            return value.dtype, tuple(value.shape), value.numpy().tobytes()
        if isinstance(value, dict):
            return {key: bits(inner) for key, inner in value.items()}
        return value

    for field in fields(Snapshot):
        assert bits(getattr(one, field.name)) == bits(getattr(other, field.name)), field.name


def message(error: pytest.ExceptionInfo[CheckpointError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert "expected" in text
    assert "got" in text
    return text


def test_it_comes_back_exactly(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", snapshot(), RUN)
    loaded = load_checkpoint(tmp_path / "checkpoint", RUN)
    assert loaded is not None
    assert_same(loaded, snapshot())


def test_the_next_one_replaces_it(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    save_checkpoint(folder, snapshot(0), RUN)
    save_checkpoint(folder, snapshot(1), RUN)
    loaded = load_checkpoint(folder, RUN)
    assert loaded is not None
    assert_same(loaded, snapshot(1))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_before_the_first_round_there_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "checkpoint", RUN) is None


def test_owners_and_sides_do_not_mix(tmp_path: Path) -> None:
    """A device may be called adapter, server or device."""
    odd = replace(
        snapshot(),
        server_moments={"adapter": {"w#step": torch.ones(1)}, "server": {}, "device": {"w#step": torch.zeros(1)}},
        device_moments={"adapter": {}, "server": {"w#step": torch.ones(1)}, "device": {"w#exp_avg": torch.ones(1)}},
    )
    save_checkpoint(tmp_path / "checkpoint", odd, RUN)
    loaded = load_checkpoint(tmp_path / "checkpoint", RUN)
    assert loaded is not None
    assert_same(loaded, odd)


# ------------------------------------------------------------------ torn, foreign, old


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors", "SHA256SUMS"])
@pytest.mark.parametrize("length", [0, 10, -1])
def test_a_file_cut_short(name: str, length: int, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", snapshot(), RUN)
    path = tmp_path / "checkpoint" / name
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "checkpoint", RUN)
    message(error)


@pytest.mark.parametrize("place", [0.03, 0.5, 0.999])
def test_a_flipped_bit_of_the_tensors(place: float, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", snapshot(), RUN)
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
    save_checkpoint(tmp_path / "checkpoint", snapshot(), RUN)
    path = tmp_path / "checkpoint" / "state.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "checkpoint", RUN)
    assert "torn" in message(error)


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors", "SHA256SUMS"])
def test_a_file_that_is_gone(name: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", snapshot(), RUN)
    (tmp_path / "checkpoint" / name).unlink()
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "checkpoint", RUN)
    assert name in message(error)


@pytest.mark.parametrize("content", ["[]", "{}", "null", f'{{"format": {FORMAT}}}'])
def test_a_state_that_is_none(content: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", snapshot(), RUN)
    (tmp_path / "checkpoint" / "state.json").write_text(content)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "checkpoint", RUN)
    assert "It is torn. Start the run again." in message(error)


def test_another_runs_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", snapshot(), "another")
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "checkpoint", RUN)
    assert f"expected run {RUN}, got another" in message(error)


def test_another_versions_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", snapshot(), RUN)
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
    save_checkpoint(folder, snapshot(0), RUN)
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
            save_checkpoint(folder, snapshot(1), RUN)
    assert folder.exists() == (rename == 0)
    loaded = load_checkpoint(folder, RUN)
    assert loaded is not None
    assert_same(loaded, snapshot(0))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_killed_while_writing_the_old_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoint"
    save_checkpoint(folder, snapshot(0), RUN)

    def die(_path: Path) -> str:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr("cutlayer.sealed.sha256", die)
        patched.setattr("cutlayer.files.recover_folder", lambda path: None)
        with pytest.raises(Crash):
            save_checkpoint(folder, snapshot(1), RUN)
    assert (tmp_path / ".checkpoint.tmp" / "tensors.safetensors").exists()
    loaded = load_checkpoint(folder, RUN)
    assert loaded is not None
    assert_same(loaded, snapshot(0))


def test_killed_before_the_first_was_whole_there_is_none(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.tmp").mkdir()
    (tmp_path / ".checkpoint.tmp" / "tensors.safetensors").write_bytes(b"half")
    assert load_checkpoint(tmp_path / "checkpoint", RUN) is None
    assert list(tmp_path.iterdir()) == []
