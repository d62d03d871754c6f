"""`cutlayer generate`: a fine-tuned model says something. The cheapest proof that the form of a prompt fits."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cutlayer.cli.export import Hardware, Model, Round, Source
from cutlayer.cli.terminal import progress_console, starting
from cutlayer.errors import AdapterError, ConfigError

if TYPE_CHECKING:
    from cutlayer.data.asking import Turn


def generate(
    source: Source,
    *,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="TEXT", help="One question.", show_default=False)
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Question after question, until an empty line.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="The longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, metavar="X", help="0 takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of what is drawn at a temperature above 0.")] = 0,
    model: Model = None,
    round: Round = None,
    hardware: Hardware = "cpu",
) -> None:
    """Ask a fine-tuned language model, of a run, an adapter or a merged folder; the text streams as it is made."""
    from cutlayer.reading import check_hardware
    from cutlayer.run.whence import check_there, whence

    if (prompt is not None) == chat:
        raise ConfigError("generate: expected one of --prompt and --chat, got both or neither. Choose one.")
    check_hardware(hardware)
    _check_task(check_there(whence(source, round=round, merged=True), model=model), source)
    with starting(progress_console()):
        from transformers import TextStreamer

        from cutlayer.model.generate import end_ids
        from cutlayer.model.generate import generate as generated
        from cutlayer.run.trained import opened
        from cutlayer.settings import load_tokenizer

        trained = opened(source, model=model, where=hardware, round=round, merged=True)
    _check_task(trained.card.task, source)
    tokenizer = load_tokenizer(trained.base.files)
    ends = end_ids(trained.base, tokenizer)
    turns: list[Turn] = []
    for number, asked in enumerate([prompt] if prompt is not None else _questions()):
        turns.append({"role": "user", "content": asked})
        ids = generated(
            trained.base,
            trained.adapter,
            [trained.form.token_ids(tokenizer, turns)],
            ends=ends,
            new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed + number,
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        )
        turns.append({"role": "assistant", "content": tokenizer.decode(ids[0], skip_special_tokens=True).strip()})


def _check_task(task: str | None, source: Path) -> None:
    """Raises AdapterError for what writes no text; None is not known yet."""
    if task not in (None, "causal-lm"):
        raise AdapterError(
            f"adapter {source}: expected one of a causal LM, got {task}, which writes no text. Use cutlayer evaluate."
        )


def _questions() -> Iterator[str]:
    """Lines of standard input, until an empty one."""
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        asked = sys.stdin.readline().strip()
        if not asked:
            return
        yield asked
