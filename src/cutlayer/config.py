"""What a run file may say. Every field has a default but none is silent: a run writes its whole config back.

model: {name: builtin:minilm}
data: {path: builtin:reviews, task: classification, text: text, label: label}
train: {rounds: 10, local_steps: 10}
method: {name: memsfl, order: optimal}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
)
from pydantic_core import PydanticCustomError

from cutlayer.errors import ConfigError
from cutlayer.fleet.profile import write_out
from cutlayer.model.families import family_content, read_family
from cutlayer.policies.learning_rate import Shape
from cutlayer.policies.stragglers import SPELLED as STRAGGLERS
from cutlayer.policies.stragglers import Late, stragglers_by_name
from cutlayer.types import TaskKind
from cutlayer.wire.codecs import SPELLED, SPELLED_ADAPTERS, codec_by_name


class Section(BaseModel):
    """A part of a run file: unknown keys are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSection(Section):
    """The base model: which, in what precision, with what head."""

    name: str = "builtin:minilm"
    """A folder with config.json and *.safetensors, a hub name, or builtin:minilm."""
    family: str | dict[str, Any] | None = None
    """Where the model's parts are, for a family that `cutlayer families` has not: a YAML file, or the content of one
    written out here (docs/adding-a-family.md)."""
    dtype: Literal["fp32", "bf16", "fp16", "int8", "nf4"] = "fp32"
    """Of the frozen weights: plain numbers, or 8 or 4 bits each with a scale for many (docs/decisions/0040). Trainable
    tensors are fp32."""
    compute: Literal["fp32", "bf16", "fp16"] | None = None
    """What is computed in, and what crosses the network: None is the weights' own dtype, fp32 for int8 and nf4."""
    pooling: Literal["auto", "pooler", "mean", "cls", "last"] = "auto"
    """How a classifier makes one vector of a sentence; auto is the family's own way."""
    base_dropout: bool = False
    """The base model's own dropout while training. Off, the cut is exact."""
    checkpoint_device: bool = False
    """Recompute the device side in its backward pass, to hold fewer activations."""
    checkpoint_server: bool = False
    """The same on the server."""


class LoraSection(Section):
    """The adapter: LoRA on the blocks' linear layers."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = ()
    """Last parts of module paths; empty is the family's attention projections, [all-linear] every linear layer."""


class DataSection(Section):
    """The data: what is learnt, from which columns, and how the devices share it."""

    path: str = "builtin:reviews"
    """A folder with train.* and validation.*, a file, a hub name, or builtin:reviews."""
    task: TaskKind = "classification"
    text: str | None = None
    """Classification: the column of the (first) sentence, by default `text`. Causal LM: a column of plain text."""
    text_pair: str | None = None
    label: str | None = None
    """Classification: the column of the class, by default `label`."""
    labels: tuple[str, ...] = ()
    """Classification: the class names in the order of their ids; by default those that the training rows have, or, on
    the server of a real fleet, which has no training rows, its validation rows."""
    prompt: str | None = None
    answer: str | None = None
    max_length: int = Field(128, ge=4)
    spread: str = "iid"
    """Over devices: iid, dirichlet:ALPHA, one-class or column:NAME."""
    sizes: Literal["equal", "weighted"] = "equal"
    """Equal numbers of samples, or by the fleet's data_weight."""
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of the training rows held out where the data has no validation file."""

    @field_validator("labels", mode="before")
    @classmethod
    def _names_with_commas_between(cls, given: object) -> object:
        return tuple(name.strip() for name in given.split(",")) if isinstance(given, str) else given


class TrainSection(Section):
    """The training: how long, how fast, and how often it is looked at."""

    rounds: int = Field(10, ge=1)
    local_steps: int = Field(5, ge=1)
    """Steps of each device between two aggregations."""
    batch_size: int = Field(16, ge=1)
    micro_batches: int = Field(1, ge=1)
    """Into how many parts the batch of a local step is cut, to save memory and time (docs/decisions/0023)."""
    overlap: bool = True
    """A device computes the next micro-batch while one is on its way: the same adapter, sooner."""
    lr: float = Field(2e-3, gt=0)
    schedule: Shape = "linear"
    warmup: float = Field(0.06, ge=0, lt=1)
    """Fraction of all local steps."""
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(0.0, ge=0)
    """Largest gradient norm per owner and side; 0 is none."""
    keep_moments: bool = True
    """AdamW's moments outlive the end of a round."""
    stragglers: str | None = None
    """How long a round waits for its devices: wait_all, deadline:SECONDS or quorum:FRACTION; None leaves it to the
    method, and most wait for all."""
    late: Late = "drop"
    """What becomes of the work of a device that is late: drop, use what it has done (docs/decisions/0021), or keep: it
    finishes, and counts when it has (docs/decisions/0031)."""
    eval_every: int = Field(1, ge=1)
    """Rounds between two evaluations; the last round is always evaluated."""
    eval_batch_size: int = Field(64, ge=1)
    seed: int = Field(0, ge=0)

    @field_validator("stragglers")
    @classmethod
    def _is_a_policy(cls, name: str | None) -> str | None:
        try:
            if name is not None:
                stragglers_by_name(name)
        except ConfigError:
            raise PydanticCustomError("stragglers", STRAGGLERS) from None
        return name

    @field_validator("late")
    @classmethod
    def _somebody_may_be_late(cls, late: Late, info: ValidationInfo) -> Late:
        if late != "drop" and info.data.get("stragglers") in (None, "wait_all"):
            raise PydanticCustomError("late", "drop where nobody is late (train.stragglers is wait_all)")
        return late


class WireSection(Section):
    """How tensors are packed before they cross the network: none, bf16, int8 or topk:FRACTION; adapters sparse:F:BITS
    too (docs/compression.md)."""

    activations: str = "none"
    gradients: str = "none"
    """Of the loss by the activations."""
    adapters: str = "none"
    """Both ways; upwards the difference to what was broadcast, by top-k only upwards."""
    error_feedback: bool = True
    """What packing a device's update lost is added to its next."""

    @field_validator("activations", "gradients", "adapters")
    @classmethod
    def _is_a_codec(cls, name: str, info: ValidationInfo) -> str:
        rows = info.field_name != "adapters"
        try:
            codec_by_name(name, rows=rows)
        except ConfigError:
            raise PydanticCustomError("codec", SPELLED if rows else SPELLED_ADAPTERS) from None
        return name


class MethodSource(Section):
    """Which text a method was that is not of the method table: a run goes on with no other."""

    at: str
    """Its file, or its module."""
    sha256: str = Field(pattern="[0-9a-f]{64}")
    """Of the text."""


class MethodSection(BaseModel):
    """The method's name, and its own options beside it; the method itself knows which there are."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = "memsfl"
    """Of the method table, FILE.py:FUNCTION, MODULE:FUNCTION, or a name that an installed package offers."""
    source: MethodSource | None = None
    """A run writes it down; a method of the table has none."""

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @property
    def sha256(self) -> str | None:
        """The digest that the method's text must have; None takes any."""
        return None if self.source is None else self.source.sha256

    @model_serializer(mode="wrap")
    def _without_a_source_that_is_none(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = dump(self)
        if self.source is None:
            content.pop("source", None)
        return content


class RunConfig(Section):
    """A whole run.

    Example:
      >>> from cutlayer import RunConfig
      >>> config = RunConfig.model_validate({"train": {"rounds": 3}, "method": {"name": "fedlora"}})
      >>> config.train.rounds, config.train.local_steps, config.method.name
      (3, 5, 'fedlora')
    """

    model: ModelSection = ModelSection()
    lora: LoraSection = LoraSection()
    data: DataSection = DataSection()
    train: TrainSection = TrainSection()
    wire: WireSection = WireSection()
    method: MethodSection = MethodSection()
    fleet: str | dict[str, Any] = "memsfl-six"
    """A built-in fleet, a fleet file, or the content of one written out here."""
    hardware: str = "cpu"
    """Where this process computes: cpu, cuda or cuda:N."""
    out: str = "runs/latest"
    """The run folder."""

    def to_yaml(self) -> str:
        """The whole config, defaults included; reading it back gives the same config."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def self_contained(self) -> RunConfig:
        """The same run, readable from any working directory: paths absolute, files of a fleet and a family written out.

        Raises:
          ConfigError: There is no such fleet.
          ModelError: There is no such family file, or it is none.
        """
        return self.model_copy(
            update={
                "model": self.model.model_copy(
                    update={"name": _absolute(self.model.name), "family": _written_out(self.model.family)}
                ),
                "data": self.data.model_copy(update={"path": _absolute(self.data.path)}),
                "method": self.method.model_copy(update={"name": _absolute_file(self.method.name)}),
                "fleet": write_out(self.fleet),
            }
        )


def _absolute(name: str) -> str:
    """A path that is there, from the root; other names (of the hub, built-in) as they are."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def _written_out(family: str | dict[str, Any] | None) -> dict[str, Any] | None:
    """The content of a family file, every field."""
    return None if family is None else family_content(read_family(family))


def _absolute_file(method: str) -> str:
    """FILE.py:FUNCTION with the file from the root; other methods as they are."""
    file, _, function = method.rpartition(":")
    return f"{Path(file).expanduser().resolve()}:{function}" if file.endswith(".py") else method


def read_config(
    path: Path | None,
    overrides: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
    *,
    where: str = "flags",
) -> RunConfig:
    """Reads a run file and lays flags over it.

    Args:
      path: The run file; None starts from the defaults.
      overrides: `KEY=VALUE` with dotted keys, such as `method.order=fifo`; values are read as YAML.
      values: More of the same, already read; these come first.
      where: By which messages name what is laid over the file.

    Raises:
      ConfigError: No such file, not YAML, an unknown key, or a value out of its range.
    """
    content = _read_yaml(path) if path else {}
    given = dict(values or {})
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"-o {override}: expected KEY=VALUE, got no '='. Write for example -o method.order=fifo.")
        try:
            given[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"-o {override}: expected a YAML value, got {text!r}. Quote it.") from error
    return _laid_over(content, given, where, where if path is None else str(path))


def changed_config(config: RunConfig, values: Mapping[str, Any], where: str) -> RunConfig:
    """The config with other values.

    Args:
      config: Which stays as it is.
      values: By dotted key.
      where: By which messages name what is laid over it.

    Raises:
      ConfigError: An unknown key, or a value out of its range.
    """
    return _laid_over(config.model_dump(mode="json"), values, where, where)


def _laid_over(content: dict[str, Any], values: Mapping[str, Any], where: str, origin: str) -> RunConfig:
    for key, value in values.items():
        _set(content, key, value, where)
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        at = ".".join(map(str, error.errors()[0]["loc"])) + "."
        laid = any(at.startswith(f"{key}.") or f"{key}.".startswith(at) for key in values)
        raise ConfigError(_one_line(where if laid else origin, error)) from error


def differences(one: Any, other: Any, at: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The dotted keys at which two contents differ, with both values.

    Example:
      >>> list(differences({"train": {"lr": 1, "seed": 0}}, {"train": {"lr": 2, "seed": 0}}))
      [('train.lr', 1, 2)]
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in dict.fromkeys([*one, *other]):
            yield from differences(one.get(key), other.get(key), f"{at}.{key}" if at else str(key))
    elif one != other:
        yield at, one, other


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path}: expected a run file, got no such file. Check the path.")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        place = f"{path}:{line + 1}" if line is not None else str(path)
        problem = getattr(error, "problem", None) or "bytes that are not text"
        raise ConfigError(f"{place}: expected YAML, got {problem}. Correct that line.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: expected sections such as model: and data:, got {type(content).__name__}. See the README."
        )
    return content


def _set(content: dict[str, Any], dotted: str, value: Any, where: str) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise ConfigError(f"{where}: {dotted}: expected {section} to be a section, got {content!r}. Check the key.")
    content[key] = value


def _one_line(where: str, error: ValidationError) -> str:
    """The first problem of a validation, in our form."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _known_keys(first["loc"][:-1])
        guess = get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"Did you mean {guess[0]!r}?" if guess else "Remove it."
        return f"{where}: expected one of {', '.join(known)}, got the key {key!r}. {hint}"
    expected = first["msg"].removeprefix("Input should be ")
    return f"{where}: {key}: expected {expected}, got {first['input']!r}. Change it."


def _known_keys(sections: Sequence[Any]) -> list[str]:
    fields = RunConfig.model_fields
    for section in sections:
        inner = fields[str(section)].annotation if str(section) in fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        fields = inner.model_fields
    return list(fields)
