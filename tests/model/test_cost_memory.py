"""The memory that the cost model predicts is the memory that a process really takes, within a stated band.

Each case runs in a process of its own: this file is its program as well. What Python and torch take is not the model's,
so a process first does the same steps with a tiny model and counts from there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BAND = (0.8, 1.25)
"""Predicted over measured. Allocators round up and keep what was freed, kernels have buffers of their own."""

SAMPLES, TOKENS, BLOCKS, STEPS = 8, 128, 6, 2
SHAPE = {"n_embd": 256, "n_layer": BLOCKS, "n_head": 4, "n_positions": TOKENS, "vocab_size": 4096}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 whose activations are hundreds of MiB. In bf16: what a process converts, it owns."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("wide")
    GPT2LMHeadModel(GPT2Config(**SHAPE, bos_token_id=1, eos_token_id=2)).bfloat16().save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("side", "cut", "checkpoint"),
    [
        ("device", 1, False),
        ("device", BLOCKS // 2, False),
        ("device", BLOCKS, False),
        ("device", BLOCKS, True),
        ("server", 1, False),
        ("server", BLOCKS // 2, False),
        ("server", 1, True),
    ],
)
def test_predicted_is_measured(side: str, cut: int, checkpoint: bool, folder: Path, tiny_model) -> None:  # type: ignore[no-untyped-def]
    arguments = json.dumps([side, cut, checkpoint, str(tiny_model("gpt2", "causal-lm")), str(folder)])
    child = subprocess.run([sys.executable, __file__, arguments], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    measured, predicted = json.loads(child.stdout.splitlines()[-1])
    ratio = predicted / measured
    assert BAND[0] < ratio < BAND[1], f"{predicted / 2**20:.0f} MiB predicted, {measured / 2**20:.0f} measured"


def _measure(side: str, cut: int, checkpoint: bool, tiny: str, folder: str) -> tuple[int, int]:
    """Peak bytes beyond what the same steps took with a tiny model, and the prediction."""
    import torch

    from cutlayer.model.base import Base, ModelSettings
    from cutlayer.model.cost import CostModel
    from cutlayer.model.trainable import OptimizerSettings, Trainable
    from cutlayer.report.summary import peak_memory_bytes

    torch.set_num_threads(1)

    def settings(name: str) -> ModelSettings:
        return ModelSettings(name, "causal-lm", checkpoint_device=checkpoint, checkpoint_server=checkpoint)

    def train(base: Base, cut: int, samples: int, tokens: int) -> None:
        """Real steps of one side."""
        names = base.device_names(cut) if side == "device" else base.server_names(cut)
        adapter = base.initial_adapter(seed=0)
        trainable = Trainable({name: adapter[name] for name in names}, OptimizerSettings())
        shape = (samples, tokens)
        ids_BT, mask_BT = torch.ones(shape, dtype=torch.long), torch.ones(shape, dtype=torch.long)
        for _ in range(STEPS):
            if side == "device":
                part = base.device_part(cut)
                part.use(trainable.parameters)
                h_BTD = part.forward({"input_ids": ids_BT, "attention_mask": mask_BT})
                h_BTD.backward(torch.rand_like(h_BTD))
            else:
                server = base.server_part(cut)
                server.use(trainable.parameters)
                fed_BTD = torch.rand(*shape, base.config.hidden_size, requires_grad=True)
                server.loss(fed_BTD, mask_BT.bool(), ids_BT).backward()
            trainable.step(1e-3)

    def predicted(name: str, cut: int, samples: int, tokens: int) -> int:
        costs = CostModel(settings(name))
        cost = costs.device(cut, samples, tokens) if side == "device" else costs.server(cut, samples, tokens)
        return cost.memory_bytes

    train(Base(settings(tiny)), 1, 1, 4)
    prediction = predicted(folder, cut, SAMPLES, TOKENS)
    before = peak_memory_bytes()
    train(Base(settings(folder)), cut, SAMPLES, TOKENS)
    return peak_memory_bytes() - before, prediction


if __name__ == "__main__":
    print(json.dumps(_measure(*json.loads(sys.argv[1]))))
