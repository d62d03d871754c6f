"""`cutlayer evaluate`: the metrics of an adapter on other data, or of the same."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cutlayer.cli.export import Hardware, Model, Round, Source
from cutlayer.cli.terminal import AsJson, console, print_json, progress_console, starting
from cutlayer.cli.threads import fit_threads
from cutlayer.errors import AdapterError, ConfigError, DataError

if TYPE_CHECKING:
    from cutlayer.data.rows import Rows
    from cutlayer.data.tasks import Task
    from cutlayer.model.card import AdapterCard
    from cutlayer.run.whence import Whence


def _column(what: str) -> Any:
    """An option that names a column of the data."""
    help = f"Column of the {what}, where this data calls it otherwise than the training data did."
    return typer.Option(metavar="COLUMN", help=help, rich_help_panel="Columns", show_default=False)


def evaluate(
    source: Source,
    *,
    data: Annotated[str, typer.Option(metavar="PATH", help="A folder, a file, a hub name, or builtin:reviews.")],
    split: Annotated[
        str | None,
        typer.Option(
            metavar="train|validation|test", help="Of a folder; a single file is used whole.", show_default="validation"
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Changes speed only.")] = 64,
    model: Model = None,
    round: Round = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="fp32|bf16|fp16|int8|nf4", help="Of the frozen weights.", show_default="fp32, or as they were"
        ),
    ] = None,
    hardware: Hardware = "cpu",
    text: Annotated[str | None, _column("text")] = None,
    text_pair: Annotated[str | None, _column("second text")] = None,
    label: Annotated[str | None, _column("label")] = None,
    messages: Annotated[str | None, _column("chats")] = None,
    prompt: Annotated[str | None, _column("prompt")] = None,
    answer: Annotated[str | None, _column("answer")] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate an adapter, or a merged folder; the base model, the task and the columns are those of its training."""
    from cutlayer.run.whence import whence

    _check(whence(source, round=round, merged=True), data, split, model, dtype, hardware)
    columns = {"text": text, "text_pair": text_pair, "label": label, "prompt": prompt, "answer": answer}
    columns |= {"messages": messages}
    named = {role: name for role, name in columns.items() if name is not None}
    progress = progress_console()
    with starting(progress, quiet=as_json):
        from cutlayer.data.batches import evaluation_batches
        from cutlayer.model.vocabulary import check_ids
        from cutlayer.report.listing import Listing
        from cutlayer.report.progress import NoProgress, Progress
        from cutlayer.run.trained import opened
        from cutlayer.server import evaluate as evaluation
        from cutlayer.settings import load_tokenizer

        trained = opened(source, model=model, where=hardware, round=round, merged=True, dtype=dtype)
    base, task = trained.base, _task(trained.card, named)
    dataset, where = _rows(data, split)
    samples = task.encode(dataset, load_tokenizer(base.files), where)
    check_ids(samples.input_ids.flat, samples.type_ids, base.files, where)
    batches = evaluation_batches(samples, batch_size, trained.card.pad_id)
    fit_threads()
    with NoProgress() if as_json else Progress(progress) as display:
        display.stage("evaluating", 0, len(samples))
        metrics = evaluation.evaluate(
            base,
            trained.adapter,
            batches,
            told=lambda done: display.stage("evaluating", done, len(samples)),
        )
    if as_json:
        print_json(metrics)
        return
    shown = Listing("metric", numbers=["value"])
    for name, value in metrics.items():
        shown.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.4f}")
    console().print(shown)


def _check(found: Whence, data: str, split: str | None, model: str | None, dtype: str | None, hardware: str) -> None:
    """Looks at all that was given, as far as can be told without torch.

    Raises:
      UserError: Something cannot be.
    """
    from cutlayer.config import DTYPES
    from cutlayer.data.source import check_place
    from cutlayer.reading import check_hardware
    from cutlayer.run.whence import check_there

    if dtype not in (None, *DTYPES):
        raise ConfigError(f"--dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}. Choose one of them.")
    if split not in (None, "train", "validation", "test"):
        raise ConfigError(f"--split: expected train, validation or test, got {split!r}. Choose one of them.")
    check_hardware(hardware)
    if check_there(found, model=model) is None and found.kind == "adapter":
        raise AdapterError(
            f"adapter {found.folder}: expected one of ours, whose cutlayer.json says how texts are read, got plain "
            "PEFT's. Go on from it (model.adapter) and evaluate what comes out."
        )
    check_place(data)


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
