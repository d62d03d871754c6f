"""`cutlayer check`: a method, ours or a stranger's, held to the laws."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from typing import Annotated, Any

import typer

from cutlayer.cli.terminal import AsJson, console, print_json, progress_console, starting
from cutlayer.errors import ConfigError
from cutlayer.reading import yaml_value


def check(
    method: Annotated[
        str, typer.Argument(metavar="METHOD", help="A name, FILE.py:FUNCTION or MODULE:FUNCTION.", show_default=False)
    ],
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="KEY=VALUE", help="An option of the method.", show_default=False),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Hold a method to the laws: tiny models, a few rounds each. Exits with 1 if one is broken."""
    from cutlayer.methods.table import found

    options = dict(_read(word) for word in option or ())
    row = found(method)
    row.check_options(options)
    with starting(progress_console()):
        import torch
        from transformers.utils.logging import disable_progress_bar

        from cutlayer.testing.laws import LAWS, Subject, judge, sentence

    subject = Subject(row, options)
    subject.build()  # what is no method at all is told in one line
    torch.set_num_threads(1)  # equalities are to the last bit
    disable_progress_bar()  # of reading tiny models
    # of laws that are said as they are judged, progress is the result; a program wants all of it in one value
    terminal = progress_console() if as_json else console()
    began, words, verdicts = time.perf_counter(), Counter[str](), list[dict[str, str]]()
    terminal.print(f"{subject.row.name}: {subject.row.summary or 'says nothing of itself'}", soft_wrap=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for verdict in judge(subject):
            words[verdict.word] += 1
            verdicts.append({"law": sentence(LAWS[verdict.law]), "verdict": verdict.word, "why": verdict.why})
            terminal.print(f"{verdict.word:<16}{sentence(LAWS[verdict.law])}", soft_wrap=True)
            if verdict.why:
                terminal.print(f"{'':<16}{verdict.why}", soft_wrap=True)
    said = f"{words['holds']} hold, {words['broken']} are broken, {words['does not apply']} do not apply"
    terminal.print(f"{said} ({time.perf_counter() - began:.0f} s)", soft_wrap=True)
    if as_json:
        print_json({"method": subject.row.name, "summary": subject.row.summary, "laws": verdicts})
    if words["broken"]:
        raise typer.Exit(1)


def _read(word: str) -> tuple[str, Any]:
    """An option; the section's name may stand in front, as elsewhere."""
    key, equals, text = word.removeprefix("method.").partition("=")
    if not equals or not key:
        raise ConfigError(f"-o {word}: expected KEY=VALUE, got no '='. Write for example -o order=fifo.")
    return key, yaml_value(text, f"-o {word}")
