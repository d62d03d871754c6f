"""Settings of what both ends build, by a config: the model, the task's columns, training, packing, a device's data.

A device imports this and not `run/inputs.py`, which knows every method and the server.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import AutoTokenizer

from cutlayer.config import RunConfig
from cutlayer.data.batches import stream_seed
from cutlayer.data.source import Columns
from cutlayer.device.own_data import DataSpec
from cutlayer.device.shape import Shape
from cutlayer.errors import ConfigError, ModelError
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.cost import ShapedCosts
from cutlayer.model.families import read_family
from cutlayer.model.processor import has_bf16_units
from cutlayer.model.settings import ModelSettings
from cutlayer.model.source import ModelFiles
from cutlayer.model.trainable import OptimizerSettings, TrainSettings
from cutlayer.model.vocabulary import check_fit
from cutlayer.packing import CompressedLink, Compression, compression
from cutlayer.reading import check_hardware
from cutlayer.wire.link import Link


def model_settings(config: RunConfig, labels: tuple[str, ...], pad_id: int) -> ModelSettings:
    """The model's settings in the config, with what only the data and the tokenizer know."""
    model, lora = config.model, config.lora
    return ModelSettings(
        name=model.name,
        revision=model.revision,
        task=config.data.task,
        num_labels=len(labels),
        labels=labels,
        pad_id=pad_id,
        dtype=model.dtype,
        compute=model.compute,
        pooling=model.pooling,
        base_dropout=model.base_dropout,
        checkpoint_device=model.checkpoint_device,
        checkpoint_server=model.checkpoint_server,
        lora=LoraSettings(lora.rank, lora.alpha, lora.dropout, lora.targets),
        family=None if model.family is None else read_family(model.family),
    )


def columns_of(config: RunConfig) -> Columns:
    """The columns by their role, with the defaults of the task."""
    data = config.data
    columns = Columns(data.text, data.text_pair, data.label, data.prompt, data.answer, data.messages)
    if data.task == "classification":
        return replace(columns, text=data.text or "text", label=data.label or "label")
    return columns


def hardware(name: str) -> torch.device:
    """The device that computes: `cpu`, `cuda` or `cuda:N`.

    Raises:
      ConfigError: No such device here.
    """
    check_hardware(name)
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"hardware: expected cpu or one of {torch.cuda.device_count()} CUDA devices, got {name!r}. "
            "Use cpu, or install a CUDA build of torch."
        )
    return device


def slow_dtype(config: RunConfig) -> str | None:
    """A line for who chose bf16 for a processor that has no units for it; None where nothing need be said."""
    if config.model.dtype != "bf16" or torch.device(config.hardware).type != "cpu" or has_bf16_units() is not False:
        return None
    return (
        "model.dtype: this processor has no bf16 units, so that bf16 takes about 2.5 times as long as fp32; it halves "
        "the memory of the frozen weights all the same. Use --dtype fp32 where memory allows."
    )


def load_tokenizer(files: ModelFiles) -> Any:
    """The model's tokenizer.

    Raises:
      ModelError: The folder has none, or one that gives ids for which the model has no row.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(files.location, revision=files.revision, trust_remote_code=False)
    except Exception as error:  # transformers', each version's others, or of a library that knows but one class
        reason = str(error).strip().partition("\n")[0].rstrip(".: ") or type(error).__name__
        raise ModelError(
            f"model {files.name}: expected a tokenizer (tokenizer.json), got {reason}. Copy it from the original model."
        ) from error
    check_fit(tokenizer, files)
    return tokenizer


def train_settings(config: RunConfig) -> TrainSettings:
    """The settings by which both ends train."""
    train = config.train
    optimizer = OptimizerSettings(weight_decay=train.weight_decay, clip=train.clip)
    return TrainSettings(optimizer, keep_moments=train.keep_moments, seed=train.seed)


def packing(config: RunConfig) -> Compression:
    """The codecs of what crosses the network."""
    wire = config.wire
    return compression(
        activations=wire.activations,
        gradients=wire.gradients,
        adapters=wire.adapters,
        error_feedback=wire.error_feedback,
        seed=config.train.seed,
    )


def packed(link: Link, codecs: Compression, base: Base, costs: ShapedCosts, shape: Shape) -> CompressedLink:
    """An end of a link, of a device or the server, as the run packs what goes through it."""
    return CompressedLink(
        link, codecs, hidden_size=costs.hidden_size, dtype=costs.dtype, started_from=shape.started_from(base)
    )


def data_seed(config: RunConfig) -> int:
    """The seed of what is held out and of who gets what."""
    return config.train.seed if config.data.seed is None else config.data.seed


def data_spec(config: RunConfig, labels: tuple[str, ...], pad_id: int, index: int) -> DataSpec:
    """The facts that the device at this place in the fleet must know to read its own data."""
    data, train = config.data, config.train
    return DataSpec(
        task=data.task,
        columns=columns_of(config),
        labels=labels,
        max_length=data.max_length,
        pad_id=pad_id,
        batch_size=train.batch_size,
        seed=stream_seed(train.seed, index),
        hold_out=data.hold_out,
        hold_out_seed=data_seed(config),
        template=data.template,
        system=data.system,
    )
