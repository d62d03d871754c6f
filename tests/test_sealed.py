"""A state that is sealed comes back as it was, or is refused."""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from cutlayer.errors import CheckpointError
from cutlayer.sealed import seal, unseal
from cutlayer.state import State, joined

OWNER = {"run": "one"}
FACTS: dict[str, Any] = {"number": 2**63 + 1, "third": 1 / 3, "ü": [1, {"a": None}]}
TENSORS = {
    "a/x/y": torch.arange(6.0).view(2, 3).T,
    "a/step": torch.tensor(3),
    "b/x/y": torch.ones(2).bfloat16(),
}
STATE = State(FACTS, TENSORS)


def opened(folder: Path, **owner: object) -> Any:
    return unseal(folder, owner, foreign=dict.fromkeys(owner, "Look elsewhere."), torn="Begin again.")


def test_facts_and_tensors_come_back(tmp_path: Path) -> None:
    seal(tmp_path / "one", OWNER, STATE)
    found = opened(tmp_path / "one", run="one")
    assert found.facts == FACTS, "and nothing of its owner"
    assert found.tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert found.tensors[name].dtype == value.dtype
        assert torch.equal(found.tensors[name], value)


def test_a_branch_of_nothing_comes_back_too(tmp_path: Path) -> None:
    seal(tmp_path / "one", OWNER, joined({"a": STATE, "empty": State(), "b": joined({"deep": State()})}))
    found = opened(tmp_path / "one", run="one").branches()
    assert {name: set(branch.tensors) for name, branch in found.items()} == {
        "a": set(TENSORS),
        "empty": set(),
        "b": set(),
    }
    assert found["empty"] == State()
    assert found["b"].branches() == {"deep": State()}


def test_a_state_may_say_what_its_owner_says(tmp_path: Path) -> None:
    """Facts of the state are apart from those by which the folder is known."""
    seal(tmp_path / "one", OWNER, State({"run": "another", "facts": 7}))
    assert opened(tmp_path / "one", run="one").facts == {"run": "another", "facts": 7}


def test_numbers_that_are_keys_are_text_afterwards(tmp_path: Path) -> None:
    """JSON has no others; more than nine of them have another order as text, which is no damage."""
    seal(tmp_path / "one", {}, State({"by round": {number: number for number in range(12)}}))
    assert opened(tmp_path / "one").facts == {"by round": {str(number): number for number in range(12)}}


def test_equal_contents_are_equal_bytes(tmp_path: Path) -> None:
    seal(tmp_path / "one", OWNER, STATE)
    seal(tmp_path / "other", OWNER, State(dict(reversed(FACTS.items())), TENSORS))
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "other" / file.name).read_bytes()


def test_its_digests_are_what_sha256sum_checks(tmp_path: Path) -> None:
    seal(tmp_path / "one", OWNER, STATE)
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    checked = subprocess.run(command, cwd=tmp_path / "one", capture_output=True, text=True, check=True)
    assert checked.stdout == "state.json: OK\ntensors.safetensors: OK\n"


def test_somebody_elses_is_refused(tmp_path: Path) -> None:
    seal(tmp_path / "one", OWNER, STATE)
    with pytest.raises(CheckpointError, match=r"one: expected run other, got one\. Look elsewhere\."):
        opened(tmp_path / "one", run="other")


def test_of_another_version_that_was_sealed_otherwise_the_version_is_said(tmp_path: Path) -> None:
    seal(tmp_path / "one", {"format": 1}, State())
    (tmp_path / "one" / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match=r"expected format 2, got 1\. Look elsewhere\."):
        opened(tmp_path / "one", format=2)


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors", "SHA256SUMS"])
@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
def test_any_changed_bit_is_seen(name: str, place: float, tmp_path: Path) -> None:
    seal(tmp_path / "one", OWNER, STATE)
    path = tmp_path / "one" / name
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"expected it as it was written, got .* It is torn\. Begin again\."):
        opened(tmp_path / "one")


@pytest.mark.parametrize("content", ["[]", "null", "{}", '{"run": "one"}', ""])
def test_facts_that_are_none(content: str, tmp_path: Path) -> None:
    seal(tmp_path / "one", OWNER, STATE)
    (tmp_path / "one" / "state.json").write_text(content)
    with pytest.raises(CheckpointError, match="It is torn"):
        opened(tmp_path / "one", run="one")


@pytest.mark.parametrize("what", ["facts", "tensors"])
def test_a_full_disk_leaves_the_old_one(what: str, tmp_path: Path) -> None:
    """No file may grow beyond 4 KiB here: what writes hears from the system that there is no room."""
    seal(tmp_path / "one", OWNER, STATE)
    facts = FACTS | {"long": "x" * 8000} if what == "facts" else FACTS
    tensors = TENSORS | {"long/x": torch.ones(2000)} if what == "tensors" else TENSORS
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            seal(tmp_path / "one", OWNER, State(facts, tensors))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert opened(tmp_path / "one", run="one").facts == FACTS
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_what_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    seal(tmp_path / "one", OWNER, STATE)
    with pytest.raises(TypeError):
        seal(tmp_path / "one", OWNER, State({"run": object()}))
    assert opened(tmp_path / "one", run="one").facts == FACTS
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
