"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from cutlayer import __version__
from cutlayer.cli.check import check
from cutlayer.cli.compare import compare
from cutlayer.cli.evaluate import evaluate
from cutlayer.cli.export import export
from cutlayer.cli.families import families
from cutlayer.cli.flags import RunOption, takes_flags
from cutlayer.cli.fleet import fleet
from cutlayer.cli.fleets import fleets
from cutlayer.cli.generate import generate
from cutlayer.cli.join import join
from cutlayer.cli.log import FORMATS, LEVELS
from cutlayer.cli.methods import methods
from cutlayer.cli.plain import PlainCommand, PlainGroup, sentences
from cutlayer.cli.plan import plan
from cutlayer.cli.recommend import recommend
from cutlayer.cli.report import report
from cutlayer.cli.serve import serve
from cutlayer.cli.show_data import show_data
from cutlayer.cli.status import status
from cutlayer.cli.trace import trace
from cutlayer.cli.train import train
from cutlayer.cli.up import up

app = typer.Typer(
    cls=PlainGroup,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
comparing = takes_flags(compare, run_file=RunOption, without=("--method",))
PANELS = {
    "Before a run": (takes_flags(plan), takes_flags(recommend), takes_flags(show_data)),
    "A run on this machine": (takes_flags(train), comparing, takes_flags(up)),
    "A run on a real fleet": (takes_flags(serve), join),
    "A run, going on or ended": (status, report, trace, evaluate, generate, export),
    "What there is": (methods, fleets, families, check),
}
"""The commands, as the help has them."""
for panel, commands in PANELS.items():
    for command in commands:
        words = sentences(command.__doc__ or "")
        name = command.__name__.replace("_", "-")
        app.command(name=name, help=words, cls=PlainCommand, rich_help_panel=panel)(command)
app.add_typer(fleet, name="fleet", rich_help_panel="A run on a real fleet")


def _print_version(asked: bool) -> None:
    if asked:
        print(f"cutlayer {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    _debug: Annotated[  # `main` has taken it out: it may stand anywhere
        bool, typer.Option("--debug", help="Print the traceback of an error; may stand behind any command.")
    ] = False,
    _log_level: Annotated[  # `cli/log.py` has taken these out likewise
        str | None,
        typer.Option(
            "--log-level",
            metavar="|".join(LEVELS),
            help="How much the log says; or CUTLAYER_LOG_LEVEL.",
            show_default="warning",
        ),
    ] = None,
    _log_format: Annotated[
        str | None,
        typer.Option(
            "--log-format",
            metavar="|".join(FORMATS),
            help="How the log says it; or CUTLAYER_LOG_FORMAT.",
            show_default="text",
        ),
    ] = None,
) -> None:
    """Fine-tune one large language model with LoRA on private data that stays on many weak, unequal devices."""
