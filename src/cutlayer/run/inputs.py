"""Turns a config into the things that a run is made of: data, model, costs, fleet. Everything a person got wrong shows
here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from cutlayer.config import MethodSection, MethodSource, RunConfig
from cutlayer.data.batches import Batches, evaluation_batches, stream_seed
from cutlayer.data.chat import PLAIN, SEPARATOR
from cutlayer.data.held_out import Held, parted
from cutlayer.data.rows import Rows
from cutlayer.data.shares import write_rows
from cutlayer.data.source import (
    NO_DATA,
    Splits,
    Tables,
    load_tables,
    load_validation,
    load_validation_if_any,
    require_columns,
    split_off_validation,
)
from cutlayer.data.spread import parse, spread
from cutlayer.data.tasks import Classification, Samples, Task, pad_token_id, task_from
from cutlayer.device.own_data import DataSpec
from cutlayer.device.shape import Shape
from cutlayer.errors import ConfigError, DataError, ModelError
from cutlayer.files import for_owner_alone, private_folder
from cutlayer.fleet.profile import Fleet, load_fleet
from cutlayer.methods.contradictions import check, check_held_out
from cutlayer.methods.method import Method
from cutlayer.methods.table import build_method, found
from cutlayer.model.base import Base
from cutlayer.model.card import AdapterCard
from cutlayer.model.classes import in_the_heads_order
from cutlayer.model.cost import ShapedCosts, cost_model
from cutlayer.model.families import FAMILIES, family_content, family_of, read_family
from cutlayer.model.fingerprint import fingerprint
from cutlayer.model.quantised import KINDS
from cutlayer.model.settings import ModelSettings
from cutlayer.model.source import ModelFiles
from cutlayer.model.trainable import TrainSettings
from cutlayer.model.vocabulary import check_ids
from cutlayer.packing import CompressedLink, Compression
from cutlayer.policies.learning_rate import schedule
from cutlayer.policies.robust import robust_by_name
from cutlayer.policies.stragglers import Stragglers, stragglers_by_name, wait_all
from cutlayer.report.stage import TellStage, untold
from cutlayer.settings import (
    columns_of,
    data_seed,
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

EVALUATION = 0x6576616C
"""Marks the draw of the rows that are judged by among those of one seed."""


@dataclass(frozen=True)
class ServerInputs:
    """The things that a run is made of on its server, wherever its devices and their data are.

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
        return model_settings(self.config, self.labels, self.pad_id)

    @cached_property
    def base(self) -> Base:
        """The one base model; weights are read when a part needs them."""
        return Base(self.model_settings, hardware(self.config.hardware))

    @property
    def notices(self) -> list[str]:
        """Lines that a person should read about these inputs before the run."""
        line = None if self.config.model.adapter is not None else self.base.unused_head
        return [] if line is None else [line]

    @cached_property
    def shape(self) -> Shape:
        """The shape of the run's rounds."""
        return method_of(self.config).round.shape

    @cached_property
    def costs(self) -> ShapedCosts:
        """The costs of the steps of the run's rounds."""
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
            eval_rows=None if len(self.judged) == len(self.validation) else len(self.judged),
            revision=self.config.model.revision,
            template=data.template,
            system=data.system,
            separator=SEPARATOR if data.template == PLAIN else None,
            quantised=self.model_settings.quantised,
        )

    @property
    def run_id(self) -> str:
        """Names the run by what decides its result: configs that differ only in where they write and report
        to are one run.

        How many rounds it has is no part of it: a run that is given more (`run/longer.py`) stays the one that it was.
        """
        without_effect = {"checkpoints", "report_to", "rounds"}
        deciding = self.config.model_dump(mode="json", exclude={"out": True, "train": without_effect})
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def began_with(self) -> dict[str, str]:
        """Digests of what the run's config only names: who goes on with the run must find the same."""
        return {
            "model": self._fingerprint,
            "classes": hashlib.sha256(json.dumps(self.labels).encode()).hexdigest()[:16],
            "validation rows": self.validation.digest,
        }

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(ModelFiles(self.config.model.name, self.config.model.revision)).text

    def data_spec(self, index: int) -> DataSpec:
        """The facts that the device at this place in the fleet must know to read its own data."""
        return data_spec(self.config, self.labels, self.pad_id, index)

    @cached_property
    def judged(self) -> Sequence[int]:
        """The validation rows by which adapters are judged: all, or `train.eval_rows` of them, drawn by the seed.

        The draw is the same in every round and in a run that goes on.
        """
        rows, wanted = range(len(self.validation)), self.config.train.eval_rows
        if wanted is None or wanted >= len(rows):
            return rows
        rng = np.random.default_rng(np.random.SeedSequence([self.config.train.seed, EVALUATION]))
        return sorted(rng.choice(len(rows), wanted, replace=False).tolist())

    def validation_batches(self) -> list[Batch]:
        """The judged rows, shortest first."""
        size = self.config.train.eval_batch_size
        return list(evaluation_batches(self.validation, size, self.pad_id, rows=self.judged))


@dataclass(frozen=True)
class RunInputs(ServerInputs):
    """The things that a run with a simulated fleet is made of: the machines and their data as well.

    Attributes:
      fleet: the machines.
      train: tokenised samples.
      parts: each device's rows of `train`, in the order of the fleet; with those that it holds out.
    """

    fleet: Fleet
    train: Samples
    parts: list[list[int]]

    @property
    def began_with(self) -> dict[str, str]:
        return {**super().began_with, "training rows": self.train.digest}

    @property
    def label_counts(self) -> dict[str, tuple[int, ...]]:
        """Number of samples of each class that each device has to train on, by its name; empty for causal LM."""
        if self.train.classes is None:
            return {}
        classes = np.array(self.train.classes)
        return {
            device.name: tuple(np.bincount(classes[rows], minlength=len(self.labels)).tolist())
            for device, (rows, _) in zip(self.fleet.devices, self._parted, strict=True)
        }

    @cached_property
    def _parted(self) -> list[tuple[list[int], list[int]]]:
        """The rows that each device trains on and those that it holds out, in the order of the fleet."""
        share, seed = self.config.data.hold_out, data_seed(self.config)
        return [parted(self.train, rows, share, seed) for rows in self.parts]

    def held_out(self, index: int) -> Held:
        """The rows that the device at this place in the fleet holds out."""
        return Held(self.train, self._parted[index][1], self.pad_id)

    def batches(self, index: int) -> Batches:
        """The batch stream of the device at this place in the fleet."""
        train = self.config.train
        return Batches(
            self.train,
            self._parted[index][0],
            batch_size=train.batch_size,
            seed=stream_seed(train.seed, index),
            pad_id=self.pad_id,
        )


def prepare(config: RunConfig, told: TellStage = untold) -> RunInputs:
    """Reads and checks all that a run needs except the model's weights. What is quick to check is checked first.

    Args:
      config: The run.
      told: Told what is being read.

    Raises:
      UserError: Whatever is wrong with the config, the data, the fleet or the model.
    """
    return gathered(completed(config), told)


def gathered(config: RunConfig, told: TellStage = untold) -> RunInputs:
    """Reads what `prepare` reads, for any method: the config's own is not looked at.

    Args:
      config: Readable from any working directory (`RunConfig.self_contained`).
      told: Told what is being read.

    Raises:
      UserError: Whatever is wrong with the data, the fleet or the model.
    """
    fleet = load_fleet(config.fleet)
    how = parse(config.data.spread)
    files = _checked_model(config)
    told("reading the data", 0, 0)
    tables = load_tables(config.data.path, _splits(config))
    tokenizer = load_tokenizer(files)
    # Before a split takes the last row of a class away.
    task = _task(config, tables.train, tokenizer, "training data", files)
    judged = "training data" if tables.validation is None else "validation data"
    tables = _judged_by(config, tables)
    config = _filled_in(config, task)
    texts = len(tables.train) + (0 if tables.validation is None else len(tables.validation))
    told(f"tokenising {texts} texts", 0, 0)
    train, validation = task.encode(tables.train, tokenizer), Samples.none()
    check_ids(train.input_ids.flat, train.type_ids, files, "training data")
    if tables.validation is not None:
        validation = task.encode(tables.validation, tokenizer, judged)
        check_ids(validation.input_ids.flat, validation.type_ids, files, judged)
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
        seed=data_seed(config),
        column=column,
    )
    return RunInputs(config, validation, _classes(task), pad_token_id(tokenizer), fleet, train, parts)


def prepare_server(config: RunConfig, told: TellStage = untold) -> ServerInputs:
    """Reads and checks what the server of a real fleet needs: of the data only the validation rows, if it has some.

    The classes are `data.labels`, else those of the validation rows. A server without these needs devices that hold
    rows out.

    Args:
      config: The run.
      told: Told what is being read.

    Raises:
      UserError: Whatever is wrong with the config, the data or the model.
    """
    config = completed(config)
    files = _checked_model(config)
    told("reading the data", 0, 0)
    rows = (load_validation_if_any if config.data.hold_out else load_validation)(config.data.path, _splits(config))
    tokenizer = load_tokenizer(files)
    if rows is None:
        task, validation = _task_unseen(config, tokenizer), Samples.none()
    else:
        task = _task(config, rows, tokenizer, "validation data", files)
        told(f"tokenising {len(rows)} texts", 0, 0)
        validation = task.encode(rows, tokenizer, "validation data")
        check_ids(validation.input_ids.flat, validation.type_ids, files, "validation data")
    return ServerInputs(_filled_in(config, task), validation, _classes(task), pad_token_id(tokenizer))


def held_out(config: RunConfig, labels: tuple[str, ...], rows: int) -> Samples:
    """The first held-out rows of a run, tokenised again.

    Args:
      config: The run's, as its folder has it.
      labels: Its classes.
      rows: At most so many.

    Raises:
      UserError: The data or the tokenizer is not there any more.
    """
    try:
        found = None if config.data.path == NO_DATA else _tables(config).validation
    except DataError:  # the server of a real fleet has no training rows
        found = load_validation_if_any(config.data.path, _splits(config))
    if found is None:
        raise DataError(f"data {config.data.path}: expected rows to judge by, got none. Devices hold them out.")
    named = config.model_copy(update={"data": config.data.model_copy(update={"labels": labels})})
    some = found.select(np.arange(min(rows, len(found))))
    tokenizer = load_tokenizer(ModelFiles(config.model.name, config.model.revision))
    return _task(named, some, tokenizer, "validation data").encode(some, tokenizer, "validation data")


def write_shares(inputs: RunInputs, folder: Path) -> tuple[dict[str, Path], RunConfig]:
    """Deals the data of a simulated run out to real devices: a file for each, and one to judge by for the server, if
    it has rows for that.

    Args:
      inputs: The run.
      folder: Where the files go; made if it is not there.

    Returns:
      By device its file, and the config with which `prepare_server` gives the same validation set and classes.
    """
    config, tables = inputs.config, _tables(inputs.config)
    columns = columns_of(config)
    files = {device.name: folder / "devices" / f"{device.name}.jsonl" for device in inputs.fleet.devices}
    with for_owner_alone():
        private_folder(folder)
        private_folder(folder / "devices")
        if tables.validation is not None:
            write_rows(folder / "validation.jsonl", tables.validation, inputs.validation, columns, inputs.labels)
        for file, part in zip(files.values(), inputs.parts, strict=True):
            write_rows(file, tables.train, inputs.train, columns, inputs.labels, part)
    local = {"revision": None, "split": "train", "validation_split": None}
    data = config.data.model_copy(update={"path": str(folder.resolve()), "labels": inputs.labels, **local})
    return files, config.model_copy(update={"data": data})


def _checked_model(config: RunConfig) -> ModelFiles:
    """The model's files, which fit the task and its texts, on hardware that is here."""
    hardware(config.hardware)
    files = ModelFiles(config.model.name, config.model.revision)
    own = None if config.model.family is None else read_family(config.model.family)
    known = own is not None or files.model_type in FAMILIES
    if known or not _buildable(files.model_type):  # one that is to be recognised is when it is built
        family_of(files.model_type, config.data.task, own)
    _check_positions(files, config.data.max_length)
    return files


def _buildable(model_type: str) -> bool:
    """Whether transformers has such a model."""
    return model_type in CONFIG_MAPPING_NAMES


def _classes(task: Task) -> tuple[str, ...]:
    return task.label_names if isinstance(task, Classification) else ()


def _tables(config: RunConfig) -> Tables:
    """The rows to train on and those that the server judges by."""
    return _judged_by(config, load_tables(config.data.path, _splits(config)))


def _judged_by(config: RunConfig, tables: Tables) -> Tables:
    """The tables with rows that the server judges by: none where devices judge, unless the data has a file of them."""
    if config.data.hold_out:
        return tables
    return split_off_validation(tables, config.data.validation_fraction, data_seed(config))


def _splits(config: RunConfig) -> Splits:
    return Splits(config.data.split, config.data.validation_split, config.data.revision)


def _filled_in(config: RunConfig, task: Task) -> RunConfig:
    """The config with the columns and the template that were found: both ends, and who goes on, must use the same."""
    if isinstance(task, Classification):
        return config
    found = {"messages": task.messages, "prompt": task.prompt, "answer": task.answer, "text": task.text}
    return config.model_copy(update={"data": config.data.model_copy(update={**found, "template": task.template})})


def _task(config: RunConfig, rows: Rows, tokenizer: Any, where: str, files: ModelFiles | None = None) -> Task:
    """The task with its classes, those that the config names, else those that `rows` have, in the order in which the
    model's own head has them, if it has them; or with what is found of its columns and its template."""
    data, labels = config.data, config.data.labels
    task = task_from(data.task, columns_of(config), data.max_length, data.template, data.system)
    if isinstance(task, Classification):
        found = labels or task.fit_labels(rows, where)
        ordered = None if labels or files is None else in_the_heads_order(found, files)
        return task.named(ordered or found)
    if labels:
        raise ConfigError(f"data.labels: expected none for {task.kind}, got {list(labels)}. Leave it out.")
    return task.settled(rows, tokenizer, where)


def _task_unseen(config: RunConfig, tokenizer: Any) -> Task:
    """The task of a server that has no row to see classes or columns in."""
    data = config.data
    if data.task == "classification" and not data.labels:
        raise ConfigError(
            "data.labels: expected the class names, in the order of their ids, where the server has no rows to see "
            "them in, got none. List them in data.labels."
        )
    if data.task == "causal-lm" and (data.messages or data.prompt or data.text) is None:
        raise ConfigError(
            "data.messages: expected the columns by name where the server has no rows to find them in, got none. Name "
            "them: --messages, --prompt and --answer, or --text."
        )
    return _task(config, Rows.of([]), tokenizer, "validation data")


def method_of(config: RunConfig) -> Method:
    """The method that the config names, with its options."""
    method = config.method
    return build_method(method.name, method.options, config.train.seed, method.sha256)


def asked_stragglers(config: RunConfig) -> Stragglers | None:
    """The rule by which the run file has rounds wait; None where the file leaves that to the method."""
    train = config.train
    return None if train.stragglers is None else stragglers_by_name(train.stragglers, train.late)


def stragglers_of(config: RunConfig, method: Method) -> Stragglers:
    """The rule by which the run's rounds wait: the run file's, else the method's, else to wait for all."""
    return asked_stragglers(config) or method.patience or wait_all()


def completed(config: RunConfig) -> RunConfig:
    """The config as a run writes it down: readable from anywhere, with every option of its method.

    Raises:
      ConfigError: There is no such fleet, method or option, the method is another than the config says, or two choices
        contradict each other.
    """
    row, options = found(config.method.name, config.method.sha256), config.method.options
    method, train = row.built(options, config.train.seed), config.train
    chosen = method.chosen(
        asked_stragglers(config),
        micro_batches=train.micro_batches,
        base_dropout=config.model.base_dropout,
        quantised=config.model.dtype if config.model.dtype in KINDS else None,
        robust=robust_by_name(train.robust),
    )
    check(chosen)
    if config.data.hold_out:
        check_held_out(chosen)
    source = None if row.ours else MethodSource(at=row.source.at, sha256=row.source.sha256)
    section = MethodSection(name=row.name, source=source, **(row.options | options))
    return config.self_contained().model_copy(update={"method": section})


def _check_positions(files: ModelFiles, max_length: int) -> None:
    """Raises ConfigError if texts may be longer than the model has positions: it would fail in the middle of a run."""
    config = files.text_config
    positions = config.get("max_position_embeddings") or config.get("n_positions") or max_length
    if config.get("model_type") in ("roberta", "xlm-roberta"):  # its positions begin after the padding's
        padding = config.get("pad_token_id", 1)
        if not isinstance(padding, int):
            raise ModelError(
                f"model {files.name}: expected a pad_token_id in config.json, from which this architecture counts its "
                f"positions, got {padding!r}. Say there the one that it was trained with."
            )
        positions -= padding + 1
    if max_length > positions:
        raise ConfigError(
            f"data.max_length: expected at most {positions}, the positions of model {files.name}, got {max_length}. "
            "Lower --max-length."
        )
