"""The adapter that a run, or a folder, has to give: on its base, with all that is known of it.

Of a run that has ended that is RUN/adapter; of one that was stopped or is going on, its last commit point, of which
nothing is changed; of a round that it saved, RUN/adapters/round-N.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cutlayer.config import RunConfig, read_config
from cutlayer.data.asking import Form
from cutlayer.data.batches import evaluation_batches
from cutlayer.data.source import NO_DATA
from cutlayer.data.tasks import pad_token_id
from cutlayer.errors import AdapterError, UserError
from cutlayer.model.base import Base
from cutlayer.model.card import CARD, AdapterCard, read_card
from cutlayer.model.export import base_files
from cutlayer.model.folds import taken_back
from cutlayer.model.given import GivenAdapter, read_given
from cutlayer.model.model_card import Training
from cutlayer.model.settings import ModelSettings
from cutlayer.model.source import ModelFiles
from cutlayer.policies.scope import shared
from cutlayer.report.run_folder import RunFolder
from cutlayer.run.best import Result
from cutlayer.run.inputs import held_out, method_of
from cutlayer.run.whence import no_round_yet, whence
from cutlayer.server.adapters import Adapters
from cutlayer.server.aggregation import Aggregation
from cutlayer.server.checkpoint import read_checkpoint
from cutlayer.settings import hardware, load_tokenizer, model_settings, train_settings
from cutlayer.state import State
from cutlayer.types import Adapter, Batch

CHECKED_ROWS = 8
FIXED_TEXT = "The quick brown fox jumps over the lazy dog, and nobody knows why."
SAID = (
    "lora.rank",
    "train.rounds",
    "train.local_steps",
    "train.batch_size",
    "train.lr",
    "train.schedule",
    "train.seed",
)
"""Keys of the run file that a model card repeats."""


@dataclass(frozen=True)
class Trained:
    """An adapter on its base.

    Attributes:
      where: what it came from, for messages.
      base: in fp32, or in the form in which the adapter was trained on it.
      adapter: in the base's scale.
      card: what it was trained for.
      training: how.
      form: in which it is asked.
      config: of its run; None where that is not known.
    """

    where: str
    base: Base
    adapter: Adapter
    card: AdapterCard
    training: Training
    form: Form
    config: RunConfig | None

    def batches(self) -> tuple[list[Batch], str]:
        """Something to run the model on, and what it is: held-out rows of the run, else a fixed text."""
        if self.config is not None:
            try:
                samples = held_out(self.config, self.card.labels, CHECKED_ROWS)
                return list(
                    evaluation_batches(samples, CHECKED_ROWS, self.card.pad_id)
                ), f"{len(samples)} held-out rows"
            except (UserError, OSError):  # the data has gone
                pass
        ids_BT = torch.tensor([load_tokenizer(self.base.files)(FIXED_TEXT)["input_ids"]])
        labels = ids_BT if self.card.task == "causal-lm" else torch.zeros(1, dtype=torch.int64)
        return [Batch(ids_BT, torch.ones_like(ids_BT), labels, None, (0,), 1)], "a fixed text"


def opened(
    path: Path,
    *,
    model: str | None = None,
    where: str = "cpu",
    round: int | None = None,
    merged: bool = False,
    dtype: str | None = None,
) -> Trained:
    """Opens a run, or a folder with an adapter of ours or of PEFT's.

    Args:
      path: RUN, RUN/adapter, or any adapter's folder.
      model: The base model, where it has moved.
      where: It computes: cpu, cuda or cuda:N.
      round: Of a run, after which round; None for what the run ends with, or would end with now.
      merged: Whether a model that `cutlayer export --merged` wrote serves too.
      dtype: Of the frozen weights; None for the form in which the adapter was trained on them, or fp32.

    Raises:
      UserError: There is no adapter, nothing says where its base is, or the two do not fit.
    """
    found = whence(path, round=round, merged=merged)
    if found.kind == "merged":
        return _whole(found.folder, where, dtype)
    if found.kind == "adapter":
        return _adapter_in(found.folder, model, where, dtype)
    return _committed(path, model, where, dtype)


def _whole(folder: Path, where: str, dtype: str | None) -> Trained:
    """A model with its adapter merged in (`cutlayer export --merged`), with one that adds nothing."""
    card = read_card(folder)
    settings = ModelSettings(
        name=str(folder),
        task=card.task,  # type: ignore[arg-type]
        num_labels=len(card.labels),
        pad_id=card.pad_id,
        dtype=dtype or "fp32",
        family=card.own_family,
    )
    base = Base(settings, hardware(where))
    form = Form.of(json.loads((folder / CARD).read_text()))
    return Trained(f"model {folder}", base, base.initial_adapter(0), card, Training(), form, None)


def _adapter_in(folder: Path, model: str | None, where: str, dtype: str | None) -> Trained:
    given = read_given(folder)
    named = f"adapter {folder}"
    if (given.folder / CARD).is_file():
        card = read_card(given.folder)
        files = base_files(card, model, named)
        form = Form.of(json.loads((given.folder / CARD).read_text()))
    else:
        card, files = _card_of(given, model)
        form = Form()
    settings = ModelSettings(
        name=files.name,
        revision=files.revision,
        task=card.task,  # type: ignore[arg-type]
        num_labels=len(card.labels),
        pad_id=card.pad_id,
        dtype=dtype or card.quantised or "fp32",
        pooling=card.pooling,
        lora=given.settings,
        family=card.own_family,
    )
    base = Base(settings, hardware(where))
    run = next((up for up in given.folder.resolve().parents[:3] if (up / "config.yaml").is_file()), None)
    config = None if run is None else _config_of(run)
    training = Training() if run is None or config is None else _training(run, config, given.folder)
    return Trained(named, base, given.on(base), card, training, form, config)


def _card_of(given: GivenAdapter, model: str | None) -> tuple[AdapterCard, ModelFiles]:
    """The card of an adapter, from what plain PEFT and the base say that it was trained for, and the base's files."""
    name = model or given.config.base_model_name_or_path
    if not name:
        raise AdapterError(f"adapter {given.folder}: expected the name of its base, got none. Name it with --model.")
    files, labels = ModelFiles(str(name), None if model else given.config.revision), tuple[str, ...]()
    if given.task == "classification":
        heads = [value.shape[0] for key, value in given.tensors.items() if ".lora_" not in key]
        known = {int(number): str(label) for number, label in files.config.get("id2label", {}).items()}
        count = heads[-1] if heads else len(known)
        labels = tuple(known.get(number, str(number)) for number in range(count))
    pad_id = pad_token_id(load_tokenizer(files))
    return AdapterCard(str(name), given.task, labels, "auto", 0, pad_id, {}, revision=files.revision), files


def _config_of(run: Path) -> RunConfig | None:
    """The config of a run; None where another program wrote it."""
    try:
        return read_config(run / "config.yaml")
    except UserError:
        return None


def _training(run: Path, config: RunConfig, folder: Path) -> Training:
    """The training of one of a run's adapters, as the run's folder tells it."""
    rows = RunFolder.reopen(run).read_rows()
    if folder.name.startswith("round-"):
        rounds = int(folder.name.removeprefix("round-"))
        of_round: dict[str, float] = next((row["validation"] for row in rows if row["round"] == rounds - 1), {})
        return _told(config, rounds, of_round)
    summary: dict[str, Any] = {}
    if (run / "summary.json").is_file():
        summary = json.loads((run / "summary.json").read_text())
    rounds = summary.get("exported_round", len(rows) - 1) + 1
    kept = f"the best round by {config.train.metric}" if config.train.keep == "best" else ""
    return _told(config, rounds, summary.get("metrics", {}), kept)


def _told(config: RunConfig, rounds: int, metrics: Mapping[str, float], kept: str = "") -> Training:
    content, data = config.model_dump(mode="json"), config.data.path
    settings = {key: content[key.partition(".")[0]][key.partition(".")[2]] for key in SAID}
    # What is no path is a name of the hub or built in; a path says nothing to others, and something of the machine.
    public = data if data != NO_DATA and not Path(data).is_absolute() and not Path(data).exists() else ""
    options = {f"method.{name}": value for name, value in config.method.options.items() if value is not None}
    name = config.method.name.rpartition("/")[2]
    return Training(name, rounds, public, settings | options, dict(metrics), kept)


def _committed(path: Path, model: str | None, where: str, dtype: str | None) -> Trained:
    """The adapter that a run that has not ended would end with now."""
    checkpoint = read_checkpoint(path / "checkpoint")
    if checkpoint is None:
        raise no_round_yet(path)
    config, run = read_config(path / "config.yaml"), checkpoint.branch("run").facts
    said = run["card"]
    card = AdapterCard(**{**said, "labels": tuple(said["labels"])})
    settings = model_settings(config, card.labels, card.pad_id)
    if model is not None:
        settings = replace(settings, name=model, revision=None)
    settings = replace(settings, dtype=dtype or card.quantised or "fp32", compute=None)
    base = Base(settings, hardware(where))
    result, round = _result_in(checkpoint, config, base, path)
    metrics = checkpoint.branch("best").branch("facts").facts["row"]["metrics"] if round is not None else run["metrics"]
    kept = f"the best round by {config.train.metric}, of {run['rounds_done']} so far" if round is not None else ""
    training = _told(config, run["rounds_done"] if round is None else round + 1, metrics, kept)
    adapter = {name: value.to(base.device) for name, value in result.adapter.items()}
    return Trained(f"run {path}", base, adapter, card, training, Form.of(said), config)


def _result_in(checkpoint: State, config: RunConfig, base: Base, path: Path) -> tuple[Result, int | None]:
    """The result that the run would end with, and the number of its round where the run keeps the best."""
    method = method_of(config)
    aggregation = Aggregation(method.aggregate)
    aggregation.load(checkpoint.branch("method").branch("aggregate"))
    if method.moved is not None or method.structure() is not None:
        raise AdapterError(
            f"run {path}: expected a method that trains an adapter of the whole model, got {config.method.name}, "
            "which has a model to show at the end of its run. Go on with --resume."
        )
    best = checkpoint.branch("best")
    if "result" in best.facts:
        return Result.of(best.branch("result")), int(best.branch("facts").facts["row"]["round"])
    server = checkpoint.branch("server")
    adapters = Adapters(base, {}, train_settings(config), shared)
    adapters.load(server.branch("adapters"))
    views, losses = adapters.views(), checkpoint.branch("run").facts["losses"]
    if views:
        return Result(views[min(views, key=lambda name: losses.get(name, float("inf")))], views), None
    return Result(taken_back(adapters.shared, server.branch("folds").tensors)), None
