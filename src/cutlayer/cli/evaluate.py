"""`cutlayer evaluate`: the metrics of an adapter on other data, or of the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cutlayer.cli.terminal import console, progress_console, starting
from cutlayer.cli.threads import fit_threads
from cutlayer.errors import AdapterError, ConfigError, DataError

if TYPE_CHECKING:
    from cutlayer.data.rows import Rows
    from cutlayer.data.tasks import Task
    from cutlayer.model.adapter import LoraSettings
    from cutlayer.model.card import AdapterCard


def _column(what: str) -> Any:
    """An option that names a column of the data."""
    help = f"Column of the {what}, where this data calls it otherwise than the training data did."
    return typer.Option(metavar="COLUMN", help=help, rich_help_panel="Columns", show_default=False)


def evaluate(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="The adapter/ folder of a run.")],
    *,
    data: Annotated[str, typer.Option(metavar="PATH", help="A folder, a file, a hub name, or builtin:reviews.")],
    split: Annotated[
        str | None,
        typer.Option(
            metavar="train|validation|test", help="Of a folder; a single file is used whole.", show_default="validation"
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Changes speed only.")] = 64,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The base model, where it has moved.", show_default=False)
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="fp32|bf16|fp16|int8|nf4", help="Of the frozen weights.", show_default="fp32, or as they were"
        ),
    ] = None,
    hardware: Annotated[str, typer.Option(metavar="cpu|cuda|cuda:N", help="Where to compute.")] = "cpu",
    text: Annotated[str | None, _column("text")] = None,
    text_pair: Annotated[str | None, _column("second text")] = None,
    label: Annotated[str | None, _column("label")] = None,
    messages: Annotated[str | None, _column("chats")] = None,
    prompt: Annotated[str | None, _column("prompt")] = None,
    answer: Annotated[str | None, _column("answer")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Evaluate an adapter; the base model, the task and the columns are those of its training."""
    card = _checked(adapter, data, split, model, dtype, hardware)
    columns = {"text": text, "text_pair": text_pair, "label": label, "prompt": prompt, "answer": answer}
    columns |= {"messages": messages}
    named = {role: name for role, name in columns.items() if name is not None}
    progress = progress_console()
    with starting(progress, quiet=as_json):
        from cutlayer.data.batches import evaluation_batches
        from cutlayer.model.base import Base, ModelSettings
        from cutlayer.model.export import base_files, read_adapter
        from cutlayer.model.vocabulary import check_ids
        from cutlayer.report.json_lines import to_json
        from cutlayer.report.listing import Listing
        from cutlayer.report.progress import NoProgress, Progress
        from cutlayer.server import evaluate as evaluation
        from cutlayer.settings import hardware as hardware_named
        from cutlayer.settings import load_tokenizer

    device, task = hardware_named(hardware), _task(card, named)
    files = base_files(card, model, f"adapter {adapter}")
    dataset, where = _rows(data, split)
    samples = task.encode(dataset, load_tokenizer(files), where)
    check_ids(samples.input_ids.flat, samples.type_ids, files, where)
    settings = ModelSettings(
        name=files.name,
        revision=files.revision,
        task=task.kind,
        num_labels=len(card.labels),
        pad_id=card.pad_id,
        dtype=dtype or card.quantised or "fp32",
        pooling=card.pooling,
        lora=_lora(adapter),
        family=card.own_family,
    )
    base = Base(settings, device)
    batches = evaluation_batches(samples, batch_size, card.pad_id)
    fit_threads()
    with NoProgress() if as_json else Progress(progress) as display:
        display.stage("evaluating", 0, len(samples))
        metrics = evaluation.evaluate(
            base,
            read_adapter(adapter, base),
            batches,
            told=lambda done: display.stage("evaluating", done, len(samples)),
        )
    if as_json:
        print(to_json(metrics))
        return
    shown = Listing("metric", numbers=["value"])
    for name, value in metrics.items():
        shown.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.4f}")
    console().print(shown)


def _checked(
    adapter: Path, data: str, split: str | None, model: str | None, dtype: str | None, hardware: str
) -> AdapterCard:
    """The adapter's card, when all else that was given can be too, as far as can be told without torch.

    Raises:
      UserError: Something cannot be.
    """
    from cutlayer.config import DTYPES
    from cutlayer.data.source import check_place
    from cutlayer.model.card import read_card
    from cutlayer.reading import check_hardware
    from cutlayer.run.whence import Whence, check_there

    if dtype not in (None, *DTYPES):
        raise ConfigError(f"--dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}. Choose one of them.")
    if split not in (None, "train", "validation", "test"):
        raise ConfigError(f"--split: expected train, validation or test, got {split!r}. Choose one of them.")
    check_hardware(hardware)
    card = read_card(adapter)
    check_there(Whence("adapter", adapter), model=model)
    check_place(data)
    return card


def _task(card: AdapterCard, columns: dict[str, str]) -> Task:
    """The adapter's task, on its own columns or on these."""
    from cutlayer.data.source import Columns
    from cutlayer.data.tasks import Classification, task_from

    named = Columns(**card.columns | columns)
    task = task_from(card.task, named, card.max_length, card.template, card.system)  # type: ignore[arg-type]
    return replace(task, label_names=card.labels) if isinstance(task, Classification) else task


def _rows(data: str, split: str | None) -> tuple[Rows, str]:
    """The rows to judge by, and what they are called in errors."""
    from cutlayer.data.source import Splits, load_tables, load_validation

    if split == "test":
        return load_validation(data, Splits(validation="test")), "test data"
    tables = load_tables(data)
    if split == "train" or (split is None and tables.validation is None):
        return tables.train, "training data" if split else f"data {data}"
    if tables.validation is None:
        raise DataError(f"data {data}: expected a validation file, got none. Leave --split out to use all rows.")
    return tables.validation, "validation data"


def _lora(adapter: Path) -> LoraSettings:
    """The LoRA settings of an exported adapter."""
    from cutlayer.model.adapter import LoraSettings

    path = adapter / "adapter_config.json"
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        return LoraSettings(values["r"], values["lora_alpha"], targets=tuple(values["target_modules"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(
            f"{path}: expected PEFT's settings of the adapter, got {error}. Export the run again."
        ) from error
