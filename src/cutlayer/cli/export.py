"""`cutlayer export`: an adapter, or a whole model, that other programs load; of a run that goes on too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cutlayer.cli.log import say
from cutlayer.cli.terminal import console, progress_console, starting
from cutlayer.errors import ConfigError
from cutlayer.run.out import check_free, check_hub_name

Source = Annotated[
    Path, typer.Argument(metavar="RUN_OR_ADAPTER", help="A run folder, ended or not, or an adapter, PEFT's too.")
]
Model = Annotated[
    str | None, typer.Option(metavar="NAME", help="The base model, where it has moved.", show_default=False)
]
Hardware = Annotated[str, typer.Option(metavar="cpu|cuda|cuda:N", help="Where to compute.")]
Round = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Of a run, a round that train.save_every has saved.", show_default=False),
]


def export(
    source: Source,
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write; not there yet.")],
    merged: Annotated[bool, typer.Option("--merged", help="The whole model.")] = False,
    adapter: Annotated[bool, typer.Option("--adapter", help="An adapter of one rank and one alpha.")] = False,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="fp32|bf16|fp16", help="Of the whole model's weights.", show_default="bf16"),
    ] = None,
    model: Model = None,
    round: Round = None,
    hardware: Hardware = "cpu",
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload it to the hub, as private.", show_default=False)
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="A new repository there is for everybody.")] = False,
) -> None:
    """Write the whole fine-tuned model, or an adapter for PEFT, vLLM and llama.cpp."""
    from cutlayer.config import PLAIN_DTYPES
    from cutlayer.reading import check_hardware
    from cutlayer.run.whence import check_there, whence

    if merged == adapter:
        raise ConfigError("export: expected one of --merged and --adapter, got both or neither. Choose one.")
    if adapter and dtype is not None:
        raise ConfigError("--dtype: expected it with --merged, got --adapter, whose factors are fp32. Leave it out.")
    if (dtype or "bf16") not in PLAIN_DTYPES:
        raise ConfigError(f"--dtype: expected one of {', '.join(PLAIN_DTYPES)}, got {dtype!r}. Choose one of them.")
    if push is not None:
        check_hub_name(push)
    check_hardware(hardware)
    check_free(out)
    check_there(whence(source, round=round), model=model)
    terminal = console()
    with starting(progress_console()):
        from transformers.utils import logging

        from cutlayer.model.portable import refused_by_vllm
        from cutlayer.run import exported
        from cutlayer.run.trained import opened

    logging.disable_progress_bar()  # of transformers, as it loads the merged model again
    with progress_console().status("reading the adapter and its base"):
        trained = opened(source, model=model, where=hardware, round=round)
    title = push.partition("/")[2] if push else out.resolve().name
    if merged:
        with progress_console().status("merging"):
            found, what = exported.export_merged(trained, out, title, dtype=dtype or "bf16")
        terminal.print(f"checked against base + adapter on {what}: {found}", soft_wrap=True)
    else:
        exported.export_adapter(trained, out, title)
        refused = refused_by_vllm(trained.base)
        if refused:
            say(f"note: {refused}")
    terminal.print(f"{'model' if merged else 'adapter'}: {out}", soft_wrap=True)
    if push is not None:
        terminal.print(f"pushed: {exported.push(out, push, public=public)}", soft_wrap=True)
