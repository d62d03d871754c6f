"""Plain transformers and PEFT on the data of a run file: what the accuracy of a split run is held against.

    python benchmarks/plain_peft.py RUN.yaml --steps 300 --batch-size 16 [-o train.lr=2e-3 ...]

Same checkpoint, LoRA settings, head, starting values, learning-rate schedule and data pipeline as `cutlayer train
RUN.yaml`; one model, one optimizer, all samples in one place. Nothing of the split is in it.
RUN.yaml may be the config.yaml of a run, such as those that `claims.py` keeps, to have plain PEFT beside it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from cutlayer.config import read_config
from cutlayer.data.batches import Batches
from cutlayer.model.base import Base
from cutlayer.model.part import model_inputs
from cutlayer.model.pretrained import pretrained
from cutlayer.policies.learning_rate import schedule
from cutlayer.report.summary import peak_memory_bytes
from cutlayer.run.inputs import RunInputs, prepare
from cutlayer.server.evaluate import evaluate


def plain_model(base: Base) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """The unsplit PEFT model, no dropout, and its trainable tensors by global name."""
    settings = base.settings
    maker = AutoModelForCausalLM if settings.task == "causal-lm" else AutoModelForSequenceClassification
    extra = {} if settings.task == "causal-lm" else {"num_labels": settings.num_labels}
    model = pretrained(base.files, maker, **extra)
    if base.family.poolings[0] == "last":
        model.config.pad_token_id = settings.pad_id
    peft_model = get_peft_model(
        model,
        LoraConfig(
            r=settings.lora.rank,
            lora_alpha=settings.lora.alpha,
            target_modules=base.target_names,
            modules_to_save=[name.rpartition(".")[2] for name in base.trained_heads] or None,
            fan_in_fan_out=base.family.name == "gpt2",
        ),
    )
    trainable = {
        name.replace(".default.", ".").replace(".modules_to_save", ""): parameter
        for name, parameter in peft_model.named_parameters()
        if parameter.requires_grad
    }
    return peft_model.eval(), trainable


def train(inputs: RunInputs, steps: int, batch_size: int) -> tuple[dict[str, float], float]:
    """Trains and returns the validation metrics, and the steps per second."""
    config, base = inputs.config, inputs.base
    model, trainable = plain_model(base)
    with torch.no_grad():
        for name, value in base.initial_adapter(config.train.seed).items():
            trainable[name].copy_(value)
    optimizer = torch.optim.AdamW(trainable.values(), lr=0.0, weight_decay=config.train.weight_decay)
    how = config.train
    rate = schedule(how.schedule, peak=how.lr, warmup=how.warmup, rounds=1, local_steps=steps)
    batches = Batches(
        inputs.train,
        range(len(inputs.train)),
        batch_size=batch_size,
        seed=config.train.seed,
        pad_id=inputs.pad_id,
    )
    start = time.perf_counter()
    for step in range(steps):
        batch = batches.next()
        optimizer.param_groups[0]["lr"] = rate(0, step)
        optimizer.zero_grad(set_to_none=True)
        model(**model_inputs(batch), labels=batch.labels).loss.backward()
        optimizer.step()
    speed = steps / (time.perf_counter() - start)
    adapter = {name: parameter.detach() for name, parameter in trainable.items()}
    return evaluate(base, adapter, inputs.validation_batches()), speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("-o", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args()
    inputs = prepare(read_config(asked.run, asked.overrides))
    start = time.perf_counter()
    metrics, speed = train(inputs, asked.steps, asked.batch_size)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    print(
        f"plain PEFT, {asked.steps} steps of {asked.batch_size} ({asked.steps * asked.batch_size} samples), "
        f"lr {inputs.config.train.lr}: {shown} ({time.perf_counter() - start:.0f} s, {speed:.2f} steps/s, "
        f"{peak_memory_bytes() / 2**20:.0f} MiB)"
    )


if __name__ == "__main__":
    main()
