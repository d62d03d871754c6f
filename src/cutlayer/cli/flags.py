"""The flags that describe a run: each is one key of the run file, and what is given lays itself over the file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cutlayer.config import RunConfig


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag.

    Attributes:
      name: with its dashes.
      key: the key of the run file, dotted.
      metavar: what stands for its value in the help; empty for a switch.
      help: one line.
    """

    name: str
    key: str
    metavar: str
    help: str

    @property
    def variable(self) -> str:
        return self.name.removeprefix("--").replace("-", "_")

    def parameter(self) -> inspect.Parameter:
        """The flag for typer. Values stay text: the config knows what they may be, and says so in one line."""
        section = self.key.rpartition(".")[0] or "run"
        names = self.name if self.metavar else f"{self.name}/--no-{self.name.removeprefix('--')}"
        option = typer.Option(
            names,
            metavar=self.metavar or None,
            help=self.help,
            rich_help_panel=section.capitalize(),
            show_default=False,
        )
        kind = str | None if self.metavar else bool | None
        return inspect.Parameter(
            self.variable, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option]
        )


FLAGS = (
    Flag(
        "--model",
        "model.name",
        "NAME",
        "A folder with safetensors, a GGUF file, a hub name, or builtin:minilm|smollm2.",
    ),
    Flag("--model-revision", "model.revision", "NAME", "Of a model on the hub: a branch, a tag or a commit."),
    Flag("--family", "model.family", "FILE", "Where its parts are, for a family that `cutlayer families` has not."),
    Flag("--dtype", "model.dtype", "fp32|bf16|fp16|int8|nf4", "Of the frozen weights."),
    Flag("--compute", "model.compute", "fp32|bf16|fp16", "What int8 and nf4 weights are computed with: fp32."),
    Flag("--pooling", "model.pooling", "auto|pooler|mean|cls|last", "How a classifier makes a vector of a sentence."),
    Flag("--base-dropout", "model.base_dropout", "", "The base model's own dropout while training."),
    Flag("--checkpoint-device", "model.checkpoint_device", "", "Recompute activations on devices to save memory."),
    Flag("--checkpoint-server", "model.checkpoint_server", "", "The same on the server."),
    Flag("--rank", "lora.rank", "N", "Rank of the LoRA factors."),
    Flag("--alpha", "lora.alpha", "X", "LoRA's scale is alpha / rank."),
    Flag("--lora-dropout", "lora.dropout", "X", "Dropout before LoRA's first factor."),
    Flag("--data", "data.path", "PATH", "A folder with train.* and validation.*, a file, or a hub name."),
    Flag("--data-revision", "data.revision", "NAME", "Of data on the hub: a branch, a tag or a commit."),
    Flag("--train-split", "data.split", "NAME", "To learn from, where it is not called train."),
    Flag("--validation-split", "data.validation_split", "NAME", "To judge by, where it is not called validation."),
    Flag("--task", "data.task", "classification|causal-lm", "What is learnt."),
    Flag("--text", "data.text", "COLUMN", "Column of the text."),
    Flag("--text-pair", "data.text_pair", "COLUMN", "Classification: column of a second text."),
    Flag("--label", "data.label", "COLUMN", "Classification: column of the label."),
    Flag("--labels", "data.labels", "NAME,NAME", "Class names, where the data does not have them all."),
    Flag("--prompt", "data.prompt", "COLUMN", "Causal LM: column of the prompt, which the loss leaves out."),
    Flag("--answer", "data.answer", "COLUMN", "Causal LM: column of the answer."),
    Flag("--messages", "data.messages", "COLUMN", "Causal LM: column of chats, OpenAI's or ShareGPT's."),
    Flag("--template", "data.template", "plain|FILE", "Causal LM: a chat template; by default the model's own."),
    Flag("--system", "data.system", "TEXT", "Causal LM: the system turn of chats that have none."),
    Flag("--max-length", "data.max_length", "N", "Tokens at which a text is cut off."),
    Flag("--spread", "data.spread", "iid|dirichlet:ALPHA|one-class|column:NAME", "How devices share the data."),
    Flag("--sizes", "data.sizes", "equal|weighted", "Equal shares, or by the fleet's data_weight."),
    Flag("--data-seed", "data.seed", "N", "Of who gets which rows; by default --seed."),
    Flag("--validation-fraction", "data.validation_fraction", "X", "Held out where there is no validation file."),
    Flag("--hold-out", "data.hold_out", "X", "Share of its rows that each device keeps to judge by."),
    Flag("--rounds", "train.rounds", "N", "Rounds: each ends with one aggregation."),
    Flag("--local-steps", "train.local_steps", "N", "Steps of each device in a round."),
    Flag("--batch-size", "train.batch_size", "N", "Samples per device and step."),
    Flag("--micro-batches", "train.micro_batches", "N", "Parts in which a step's batch crosses the network."),
    Flag("--overlap", "train.overlap", "", "Compute the next micro-batch while one is on its way."),
    Flag("--lr", "train.lr", "X", "Highest learning rate."),
    Flag("--schedule", "train.schedule", "constant|linear|cosine", "How the learning rate falls."),
    Flag("--warmup", "train.warmup", "X", "Fraction of the steps in which it rises."),
    Flag("--weight-decay", "train.weight_decay", "X", "AdamW's."),
    Flag("--clip", "train.clip", "X", "Largest gradient norm; 0 is none."),
    Flag("--stragglers", "train.stragglers", "wait_all|deadline:SECONDS|quorum:FRACTION", "How long a round waits."),
    Flag("--robust", "train.robust", "none|clip:X|median|trimmed:F", "How much one device may move the mean."),
    Flag("--late", "train.late", "drop|use|keep", "What becomes of the work of devices that are late."),
    Flag("--eval-every", "train.eval_every", "N", "Rounds between two evaluations."),
    Flag("--eval-rows", "train.eval_rows", "N", "Validation rows to evaluate on, drawn by the seed; by default all."),
    Flag("--seed", "train.seed", "N", "Same seed, same adapter."),
    Flag("--report-to", "train.report_to", "tensorboard|wandb|mlflow|trackio", "Trackers, with commas, or none."),
    Flag("--compress-activations", "wire.activations", "none|bf16|int8|topk:FRACTION", "How devices pack activations."),
    Flag("--compress-gradients", "wire.gradients", "none|bf16|int8|topk:FRACTION", "How the server packs gradients."),
    Flag(
        "--compress-adapters",
        "wire.adapters",
        "none|bf16|int8|topk:FRACTION|sparse:FRACTION:BITS",
        "How adapters are packed, both ways.",
    ),
    Flag("--error-feedback", "wire.error_feedback", "", "Add what packing an update lost to the next one."),
    Flag("--method", "method.name", "NAME", "See `cutlayer methods`."),
    Flag("--fleet", "fleet", "NAME|FILE", "See `cutlayer fleets`, or write a fleet file."),
    Flag("--hardware", "hardware", "cpu|cuda|cuda:N", "Where this process computes."),
    Flag("--out", "out", "FOLDER", "The run folder."),
)


@dataclass(frozen=True, slots=True)
class Given:
    """The run as the command line gives it.

    Attributes:
      run: the run file.
      values: flags that were given, by key.
      overrides: `KEY=VALUE` of each -o.
    """

    run: Path | None
    values: Mapping[str, str | bool]
    overrides: Sequence[str]

    def config(self) -> RunConfig:
        """The run file with the flags laid over it.

        Raises:
          ConfigError: Something in it cannot be.
        """
        from cutlayer.config import read_config

        return read_config(self.run, self.overrides, self.values)

    def alone(self, key: str) -> str | bool | None:
        """The value of a key, where nothing else was given; else None."""
        said = [*self.values.items(), *(override.partition("=")[::2] for override in self.overrides)]
        return said[0][1] if self.run is None and [name for name, _ in said] == [key] else None

    def typed(self) -> list[str]:
        """The run file, flags and overrides that were given, as words of a command line."""
        words = ["--run", str(self.run)] if self.run else []
        for flag in FLAGS:
            value = self.values.get(flag.key)
            if isinstance(value, bool):
                words.append(flag.name if value else f"--no-{flag.name.removeprefix('--')}")
            elif value is not None:
                words += [flag.name, value]
        return [*words, *(word for override in self.overrides for word in ("-o", override))]

    def spelled(self) -> list[str]:
        """The run file, flags and overrides that were given, as they were typed but for the values of flags."""
        names = [flag.name for flag in FLAGS if flag.key in self.values]
        return [*([str(self.run)] if self.run else []), *names, *(f"-o {override}" for override in self.overrides)]


RunFile = Annotated[Path | None, typer.Argument(metavar="RUN.yaml", help="A run file.", show_default=False)]
RunOption = Annotated[Path | None, typer.Option("--run", metavar="RUN.yaml", help="A run file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--option", "-o", metavar="KEY=VALUE", help="Any key, dotted, such as method.order=fifo.", show_default=False
    ),
]


def takes_flags(
    command: Callable[..., None], *, run_file: Any = RunFile, without: Sequence[str] = ()
) -> Callable[..., None]:
    """Gives a command the run file, every flag of the table and -o; it gets them as its first argument, a `Given`.

    Args:
      command: what it is to do.
      run_file: how the run file is given: `RunFile` or `RunOption`.
      without: flags that it does not take.
    """
    taken = [flag for flag in FLAGS if flag.name not in without]

    def with_flags(run: Path | None, option: list[str] | None, **rest: Any) -> None:
        flags = {flag.key: rest.pop(flag.variable) for flag in taken}
        values = {key: value for key, value in flags.items() if value is not None}
        command(Given(run, values, option or ()), **rest)

    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    shared = [
        inspect.Parameter("run", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=run_file),
        inspect.Parameter("option", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Overrides),
    ]
    with_flags.__name__, with_flags.__doc__ = command.__name__, command.__doc__
    parameters = [*shared, *own, *(flag.parameter() for flag in taken)]
    parameters.sort(key=lambda one: (one.kind, one.default is not inspect.Parameter.empty))  # as Python wants them
    with_flags.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return with_flags
