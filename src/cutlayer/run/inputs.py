"""From a config to the things a run is made of: data, model, costs, fleet. Everything a person got wrong shows here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cutlayer.config import MethodSection, MethodSource, RunConfig
from cutlayer.data.batches import Batches, evaluation_batches, stream_seed
from cutlayer.data.rows import Rows
from cutlayer.data.shares import write_rows
from cutlayer.data.source import Tables, load_tables, load_validation, require_columns, split_off_validation
from cutlayer.data.spread import parse, spread
from cutlayer.data.tasks import Classification, Samples, Task, pad_token_id, task_from
from cutlayer.device.own_data import DataSpec
from cutlayer.device.shape import Shape
from cutlayer.errors import ConfigError
from cutlayer.fleet.profile import Fleet, load_fleet
from cutlayer.methods.contradictions import check
from cutlayer.methods.method import Method
from cutlayer.methods.table import build_method, found
from cutlayer.model.base import Base, ModelSettings
from cutlayer.model.cost import ShapedCosts, cost_model
from cutlayer.model.export import AdapterCard
from cutlayer.model.families import family_content, family_of, read_family
from cutlayer.model.quantised import KINDS
from cutlayer.model.source import ModelFiles
from cutlayer.model.trainable import TrainSettings
from cutlayer.packing import CompressedLink, Compression
from cutlayer.policies.learning_rate import schedule
from cutlayer.policies.stragglers import Stragglers, stragglers_by_name, wait_all
from cutlayer.settings import (
    columns_of,
    data_spec,
    hardware,
    load_tokenizer,
    model_settings,
    packed,
    packing,
    train_settings,
)
from cutlayer.types import Batch
from cutlayer.wire.link import Link


@dataclass(frozen=True)
class ServerInputs:
    """What a run is made of on its server, wherever its devices and their data are.

    Attributes:
      config: the whole config.
      validation: tokenised samples.
      labels: class names; empty for causal LM.
      pad_id: the token id that pads.
    """

    config: RunConfig
    validation: Samples
    labels: tuple[str, ...]
    pad_id: int

    @property
    def model_settings(self) -> ModelSettings:
        return model_settings(self.config, len(self.labels), self.pad_id)

    @cached_property
    def base(self) -> Base:
        """The one base model; weights are read when a part needs them."""
        return Base(self.model_settings, hardware(self.config.hardware))

    @cached_property
    def shape(self) -> Shape:
        """The shape of the run's rounds."""
        return method_of(self.config).round.shape

    @cached_property
    def costs(self) -> ShapedCosts:
        """What steps of the run's rounds cost."""
        return cost_model(self.model_settings).of(self.shape.flow)

    def load(self) -> None:
        """Reads the weights and counts what every connection asks for: now, and where models are built."""
        self.base.whole()
        _ = self.costs.hidden_size

    @property
    def train_settings(self) -> TrainSettings:
        return train_settings(self.config)

    @property
    def learning_rate(self) -> Callable[[int, int], float]:
        """The learning rate of a round's local step."""
        train = self.config.train
        return schedule(
            train.schedule, peak=train.lr, warmup=train.warmup, rounds=train.rounds, local_steps=train.local_steps
        )

    @cached_property
    def compression(self) -> Compression:
        """The codecs of what crosses the network."""
        return packing(self.config)

    def compressed(self, link: Link) -> CompressedLink:
        """An end of a link, of a device or the server, as the run packs what goes through it."""
        return packed(link, self.compression, self.base, self.costs, self.shape)

    @property
    def card(self) -> AdapterCard:
        data, family = self.config.data, self.config.model.family
        columns = {name: value for name, value in vars(columns_of(self.config)).items() if value is not None}
        return AdapterCard(
            base=self.config.model.name,
            task=data.task,
            labels=self.labels,
            pooling=self.base.pooling,
            max_length=data.max_length,
            pad_id=self.pad_id,
            columns=columns,
            family=None if family is None else family_content(read_family(family)),
            quantised=self.model_settings.quantised,
        )

    @property
    def run_id(self) -> str:
        """Names the run by what decides its result: two configs that differ only in where they write are one run."""
        deciding = self.config.model_dump(mode="json", exclude={"out"})
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]

    def data_spec(self, index: int) -> DataSpec:
        """What the device at this place in the fleet must know to read its own data."""
        return data_spec(self.config, self.labels, self.pad_id, index)

    def validation_batches(self) -> list[Batch]:
        return list(evaluation_batches(self.validation, self.config.train.eval_batch_size, self.pad_id))


@dataclass(frozen=True)
class RunInputs(ServerInputs):
    """What a run with a simulated fleet is made of: the machines and their data as well.

    Attributes:
      fleet: the machines.
      train: tokenised samples.
      parts: each device's rows of `train`, in the order of the fleet.
    """

    fleet: Fleet
    train: Samples
    parts: list[list[int]]

    @property
    def label_counts(self) -> dict[str, tuple[int, ...]]:
        """By device, its samples of each class; empty for causal LM."""
        if self.train.classes is None:
            return {}
        classes = np.array(self.train.classes)
        return {
            device.name: tuple(np.bincount(classes[rows], minlength=len(self.labels)).tolist())
            for device, rows in zip(self.fleet.devices, self.parts, strict=True)
        }

    def batches(self, index: int) -> Batches:
        """The batch stream of the device at this place in the fleet."""
        train = self.config.train
        return Batches(
            self.train,
            self.parts[index],
            batch_size=train.batch_size,
            seed=stream_seed(train.seed, index),
            pad_id=self.pad_id,
        )


def prepare(config: RunConfig) -> RunInputs:
    """Reads and checks all that a run needs except the model's weights. What is quick to check is checked first.

    Raises:
      UserError: Whatever is wrong with the config, the data, the fleet or the model.
    """
    return gathered(completed(config))


def gathered(config: RunConfig) -> RunInputs:
    """What `prepare` reads, for any method: the config's own is not looked at.

    Args:
      config: Readable from any working directory (`RunConfig.self_contained`).

    Raises:
      UserError: Whatever is wrong with the data, the fleet or the model.
    """
    fleet = load_fleet(config.fleet)
    how = parse(config.data.spread)
    files = _checked_model(config)
    tables = _tables(config)
    assert tables.validation is not None, "split_off_validation gave one"
    task = _task(config, tables.train, "training data")
    tokenizer = load_tokenizer(files)
    train = task.encode(tables.train, tokenizer)
    validation = task.encode(tables.validation, tokenizer, "validation data")
    column = None
    if how.column is not None:
        require_columns(tables.train, [how.column], "data.spread")
        column = tables.train.select(train.rows).cells(how.column)
    parts = spread(
        train.classes,
        len(train),
        len(fleet.devices),
        how=config.data.spread,
        weights=[d.data_weight for d in fleet.devices] if config.data.sizes == "weighted" else None,
        seed=config.train.seed,
        column=column,
    )
    return RunInputs(config, validation, _classes(task), pad_token_id(tokenizer), fleet, train, parts)


def prepare_server(config: RunConfig) -> ServerInputs:
    """Reads and checks what the server of a real fleet needs: of the data only the validation rows.

    The classes are `data.labels`, else those of the validation rows.

    Raises:
      UserError: Whatever is wrong with the config, the data or the model.
    """
    config = completed(config)
    files = _checked_model(config)
    rows = load_validation(config.data.path)
    task = _task(config, rows, "validation data")
    tokenizer = load_tokenizer(files)
    validation = task.encode(rows, tokenizer, "validation data")
    return ServerInputs(config, validation, _classes(task), pad_token_id(tokenizer))


def write_shares(inputs: RunInputs, folder: Path) -> tuple[dict[str, Path], RunConfig]:
    """Deals the data of a simulated run out to real devices: a file for each, and one to judge by for the server.

    Args:
      inputs: The run.
      folder: Where the files go; made if it is not there.

    Returns:
      By device its file, and the config with which `prepare_server` gives the same validation set and classes.
    """
    config, tables = inputs.config, _tables(inputs.config)
    assert tables.validation is not None, "split_off_validation gave one"
    columns = columns_of(config)
    (folder / "devices").mkdir(parents=True, exist_ok=True)
    write_rows(folder / "validation.jsonl", tables.validation, inputs.validation, columns, inputs.labels)
    files = {}
    for device, part in zip(inputs.fleet.devices, inputs.parts, strict=True):
        files[device.name] = folder / "devices" / f"{device.name}.jsonl"
        write_rows(files[device.name], tables.train, inputs.train, columns, inputs.labels, part)
    data = config.data.model_copy(update={"path": str(folder.resolve()), "labels": inputs.labels})
    return files, config.model_copy(update={"data": data})


def _checked_model(config: RunConfig) -> ModelFiles:
    """The model's files, which fit the task and its texts, on hardware that is here."""
    hardware(config.hardware)
    files = ModelFiles(config.model.name)
    own = None if config.model.family is None else read_family(config.model.family)
    family_of(str(files.config.get("model_type")), config.data.task, own)
    _check_positions(files, config.data.max_length)
    return files


def _classes(task: Task) -> tuple[str, ...]:
    return task.label_names if isinstance(task, Classification) else ()


def _tables(config: RunConfig) -> Tables:
    return split_off_validation(load_tables(config.data.path), config.data.validation_fraction, config.train.seed)


def _task(config: RunConfig, rows: Rows, where: str) -> Task:
    """The task with its classes: those that the config names, else those that `rows` have."""
    task, labels = task_from(config.data.task, columns_of(config), config.data.max_length), config.data.labels
    if isinstance(task, Classification):
        return task.named(labels) if labels else task.fitted(rows, where)
    if labels:
        raise ConfigError(f"data.labels: expected none for {task.kind}, got {list(labels)}. Leave it out.")
    return task


def method_of(config: RunConfig) -> Method:
    """The method that the config names, with its options."""
    method = config.method
    return build_method(method.name, method.options, config.train.seed, method.sha256)


def asked_stragglers(config: RunConfig) -> Stragglers | None:
    """How long the run file has rounds wait; None where it leaves that to the method."""
    train = config.train
    return None if train.stragglers is None else stragglers_by_name(train.stragglers, train.late)


def stragglers_of(config: RunConfig, method: Method) -> Stragglers:
    """How long the run's rounds wait: what the run file says, else the method, else for all."""
    return asked_stragglers(config) or method.patience or wait_all()


def completed(config: RunConfig) -> RunConfig:
    """The config as a run writes it down: readable from anywhere, with every option of its method.

    Raises:
      ConfigError: There is no such fleet, method or option, the method is another than the config says, or two choices
        contradict each other.
    """
    row, options = found(config.method.name, config.method.sha256), config.method.options
    method, train = row.built(options, config.train.seed), config.train
    check(
        method.chosen(
            asked_stragglers(config),
            micro_batches=train.micro_batches,
            base_dropout=config.model.base_dropout,
            quantised=config.model.dtype if config.model.dtype in KINDS else None,
        )
    )
    source = None if row.ours else MethodSource(at=row.source.at, sha256=row.source.sha256)
    section = MethodSection(name=row.name, source=source, **(row.options | options))
    return config.self_contained().model_copy(update={"method": section})


def _check_positions(files: ModelFiles, max_length: int) -> None:
    """Raises ConfigError if texts may be longer than the model has positions: it would fail in the middle of a run."""
    config = files.config
    positions = config.get("max_position_embeddings") or config.get("n_positions") or max_length
    if config.get("model_type") == "roberta":  # its positions begin after the padding's
        positions -= config.get("pad_token_id", 1) + 1
    if max_length > positions:
        raise ConfigError(
            f"data.max_length: expected at most {positions}, the positions of model {files.name}, got {max_length}. "
            "Lower --max-length."
        )
