"""`cutlayer show-data`: what a run learns, token by token, before it is started."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cutlayer.cli.flags import Given
from cutlayer.cli.resumed import check_words
from cutlayer.cli.terminal import console, progress_console, starting

if TYPE_CHECKING:
    from rich.text import Text

    from cutlayer.config import RunConfig
    from cutlayer.run.inputs import RunInputs

ROWS = 3
LEARNED = ("\N{LEFT-POINTING DOUBLE ANGLE QUOTATION MARK}", "\N{RIGHT-POINTING DOUBLE ANGLE QUOTATION MARK}")
"""Around what is learned, where there are no colours."""


def show_data(given: Given) -> None:
    """Show the first rows as tokens, those that are learned coloured; lengths, and what is cut off or dropped."""
    config, terminal, progress = given.config(), console(), progress_console()
    check_words(config)
    with starting(progress, quiet=not progress.is_interactive):
        from cutlayer.model.source import ModelFiles
        from cutlayer.run.inputs import prepare
        from cutlayer.settings import load_tokenizer

    with progress.status("reading the data"):
        inputs = prepare(config)
        tokenizer = load_tokenizer(ModelFiles(inputs.config.model.name, inputs.config.model.revision))
    for sample in range(min(ROWS, len(inputs.train))):
        terminal.print(
            _heading(inputs, sample), _tokens(inputs, sample, tokenizer, marks=not terminal.is_terminal), sep="\n"
        )
        terminal.print()
    for name, samples in (("training data", inputs.train), ("validation data", inputs.validation)):
        terminal.print(f"{name}: {samples.line}", soft_wrap=True)
    if (form := _form(config, inputs)) is not None:
        terminal.print(form, soft_wrap=True)


def _heading(inputs: RunInputs, sample: int) -> str:
    """The line above a sample: its row, its tokens, and its class or how many of them are learned."""
    samples = inputs.train
    row, classes = int(samples.rows[sample]), samples.classes
    if classes is not None:
        return f"row {row}: {samples.lengths[sample]} tokens, {inputs.labels[classes[sample]]}"
    return f"row {row}: {samples.lengths[sample]} tokens, {samples.weights[sample]} learned"


def _tokens(inputs: RunInputs, sample: int, tokenizer: Any, *, marks: bool) -> Text:
    """The tokens with a bar between two, and what is learned in another colour, or between marks."""
    from rich.text import Text

    ids, learned = inputs.train.input_ids[sample], inputs.train.learned(sample)
    shown, before = Text(), False
    for position, (token, now) in enumerate(zip(ids, learned, strict=True)):
        if position:
            shown.append((LEARNED[1] if before and not now else "") * marks + "|", style="dim")
        shown.append(LEARNED[0] * (marks and now and not before))
        shown.append(_visible(tokenizer.decode([token])), style="bold green" if now else "")
        before = now
    shown.append(LEARNED[1] * (marks and before))
    return shown


def _visible(text: str) -> str:
    """A token's text on one line."""
    return text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def _form(asked: RunConfig, inputs: RunInputs) -> str | None:
    """The line that says whose template is used; None where there is none."""
    from cutlayer.data.chat import PLAIN

    data = inputs.config.data
    if data.template is None:
        return None
    if data.template == PLAIN:
        return "template: plain (prompt, line break, answer, end token)"
    own = asked.data.template is None
    system = "" if data.system is None else f", system turn {data.system!r} where a chat has none"
    return f"template: {'the chat template of the model' if own else 'the one that data.template names'}{system}"
