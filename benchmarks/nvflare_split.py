"""The job of `peers.py` as a program of NVFlare's Collab API: two clients, one server, the same cut.

    PYTHON nvflare_split.py --steps 40 --folder FOLDER

PYTHON has nvflare, torch, transformers and peft; nothing of cutlayer is used. NVFlare's simulator starts a process for
each client. The server asks all clients for activations at once, trains its half on one after the other (one adapter,
which all share: less than what memsfl does), and sends all gradients at once. The last line is the measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from nvflare.collab import CollabRecipe, collab
from nvflare.recipe import SimEnv
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

CLIENTS, BATCH, TOKENS, VOCABULARY = 2, 8, 64, 2048
BLOCKS_BELOW, BLOCKS_ABOVE = 2, 4
WARM_STEPS = 5
STEPS, ANSWER = "CUTLAYER_NVFLARE_STEPS", "CUTLAYER_NVFLARE_ANSWER"


def _adapted(model: Any) -> tuple[Any, torch.optim.Optimizer]:
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn"], fan_in_fan_out=True)
    adapted = get_peft_model(model, lora)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    return adapted, torch.optim.AdamW(trained, lr=5e-4, weight_decay=0.0, fused=True)


def _config(blocks: int) -> GPT2Config:
    shape = {"n_embd": 128, "n_layer": blocks, "n_head": 4, "vocab_size": VOCABULARY}
    return GPT2Config(**shape, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, bos_token_id=0, eos_token_id=0)


def _peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(peak) / 1024


class Below:
    """A client: embeddings and the first blocks."""

    def __init__(self) -> None:
        self._model: Any = None

    def _load(self) -> None:
        torch.set_num_threads(1)
        model = GPT2Model(_config(BLOCKS_BELOW))
        model.ln_f = torch.nn.Identity()
        self._model, self._optimizer = _adapted(model)
        self._tokens = torch.Generator().manual_seed(0)

    @collab.publish  # type: ignore[untyped-decorator]
    def forward(self) -> dict[str, torch.Tensor]:
        """Activations of the next batch, and its labels."""
        if self._model is None:
            self._load()
        ids_BT = torch.randint(VOCABULARY, (BATCH, TOKENS), generator=self._tokens)
        self._h_BTD = self._model(input_ids=ids_BT, use_cache=False).last_hidden_state
        return {"h_BTD": self._h_BTD.detach().contiguous(), "labels_BT": ids_BT.int()}

    @collab.publish  # type: ignore[untyped-decorator]
    def backward(self, grads: dict[str, torch.Tensor]) -> None:
        """Takes the gradient of its activations, by its name."""
        self._h_BTD.backward(grads[collab.site_name])
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    @collab.publish  # type: ignore[untyped-decorator]
    def used(self) -> dict[str, float]:
        """Processor seconds of this process, and its peak memory."""
        return {"cpu_seconds": time.process_time(), "peak_mib": _peak_mib()}


class Above:
    """The server: the other blocks and the head."""

    @collab.main  # type: ignore[untyped-decorator]
    def run(self) -> None:
        """Trains, and writes what it took."""
        torch.set_num_threads(1)
        model = GPT2LMHeadModel(_config(BLOCKS_ABOVE))
        torch.nn.init.zeros_(model.transformer.wpe.weight)  # positions are in the activations
        self._model, self._optimizer = _adapted(model)
        steps = int(os.environ[STEPS])
        for _ in range(WARM_STEPS):
            self._step()
        before, wall = self._used(), time.perf_counter()
        for _ in range(steps):
            self._step()
        wall = time.perf_counter() - wall
        after = self._used()
        cpu = sum(value["cpu_seconds"] for value in after) - sum(value["cpu_seconds"] for value in before)
        answer = {
            "cpu_ms": 1e3 * cpu / (steps * CLIENTS),
            "wall_ms": 1e3 * wall / (steps * CLIENTS),
            "device_mib": max(value["peak_mib"] for value in after[1:]),
            "server_mib": after[0]["peak_mib"],
        }
        Path(os.environ[ANSWER]).write_text(json.dumps(answer))

    def _step(self) -> None:
        grads: dict[str, torch.Tensor] = {}
        for name, arrived in collab.clients.forward():
            h_BTD = arrived["h_BTD"].requires_grad_()
            self._model(inputs_embeds=h_BTD, labels=arrived["labels_BT"].long(), use_cache=False).loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            grads[name] = h_BTD.grad.contiguous()
        list(collab.clients.backward(grads))

    def _used(self) -> list[dict[str, float]]:
        own = {"cpu_seconds": time.process_time(), "peak_mib": _peak_mib()}
        return [own, *(value for _, value in collab.clients.used())]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    settings = parser.parse_args()
    answer = settings.folder / "answer.json"
    os.environ |= {STEPS: str(settings.steps), ANSWER: str(answer), "OMP_NUM_THREADS": "1"}
    recipe = CollabRecipe("split", server=Above(), client=Below(), min_clients=CLIENTS)
    recipe.execute(SimEnv(num_clients=CLIENTS, workspace_root=str(settings.folder / "workspace")))
    print(answer.read_text())


if __name__ == "__main__":
    main()
