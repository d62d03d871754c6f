from __future__ import annotations

from pathlib import Path

import pytest
import torch

import robust
from cutlayer.policies.aggregate import Contribution
from cutlayer.policies.robust import change, norm
from cutlayer.testing.tiny import save_inputs
from cutlayer.types import Adapter

BEGAN: Adapter = {"q.lora_A.weight": torch.ones(2, 3), "score.weight": torch.zeros(3)}
PART = Contribution(
    {"q.lora_A.weight": torch.full((2, 3), 1.5), "score.weight": torch.tensor([1.0, 2.0, 3.0])},
    dict.fromkeys(BEGAN, 4.0),
    "device-1",
)


def test_a_step_back_is_ten_times_as_far() -> None:
    sent = robust.back(PART, BEGAN).adapter
    assert torch.equal(sent["q.lora_A.weight"], torch.full((2, 3), -4.0))
    assert sent["score.weight"].tolist() == [-10.0, -20.0, -30.0]


def test_noise_is_ten_times_the_norm() -> None:
    sent = robust.noise(PART, BEGAN)
    assert norm(change(BEGAN, sent)) == pytest.approx(10 * norm(change(BEGAN, PART)))


def test_a_head_is_turned_round_and_the_rest_is_left() -> None:
    sent = robust.head(PART, BEGAN).adapter
    assert sent["q.lora_A.weight"] is PART.adapter["q.lora_A.weight"]
    assert sent["score.weight"].tolist() == [-10.0, -20.0, -30.0]


def test_an_attack_is_in_the_run_and_its_table(tmp_path: Path) -> None:
    """A tiny run, in which the attacker is an outlier of contributions.jsonl whatever the policy."""
    here = save_inputs(tmp_path, rows=24)
    values = {
        "model": here / "model",
        "data": {"path": here / "data", "max_length": 16},
        "train": {"rounds": 1, "local_steps": 1, "batch_size": 4},
        "method": "fedlora",
    }
    found = robust.accuracy(tmp_path / "run", robust.back, "median", **values)
    assert 0 <= found <= 1
    lines = (tmp_path / "run" / "contributions.jsonl").read_text().splitlines()
    assert ['"outlier": true' in line for line in lines] == [False] * 5 + [True]
