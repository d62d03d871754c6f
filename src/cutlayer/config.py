"""The fields of a run file. Every field has a default but none is silent: a run writes its whole config back.

model: {name: builtin:minilm}
data: {path: builtin:reviews, task: classification, text: text, label: label}
train: {rounds: 10, local_steps: 10}
method: {name: memsfl, order: optimal}
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from cutlayer.data.chat import PLAIN, is_template
from cutlayer.errors import ConfigError
from cutlayer.fleet.profile import write_out
from cutlayer.model.families import family_content, read_family
from cutlayer.policies.learning_rate import Shape
from cutlayer.policies.robust import SPELLED as ROBUST
from cutlayer.policies.robust import robust_by_name
from cutlayer.policies.stragglers import SPELLED as STRAGGLERS
from cutlayer.policies.stragglers import Late, stragglers_by_name
from cutlayer.reading import TaskKind, guess, local, read_yaml, reading, yaml_text, yaml_value
from cutlayer.wire.spelled import SPELLED, SPELLED_ADAPTERS, parse_codec

ALSO: dict[str, dict[str, str]] = {
    "": {"output_dir": "out"},
    "model": {"model_name_or_path": "name", "torch_dtype": "dtype", "model_revision": "revision"},
    "lora": {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "targets"},
    "data": {"completion": "answer", "max_seq_length": "max_length"},
    "train": {
        "learning_rate": "lr",
        "lr_scheduler_type": "schedule",
        "warmup_ratio": "warmup",
        "max_grad_norm": "clip",
        "per_device_train_batch_size": "batch_size",
    },
}
"""Names of PEFT, TRL and transformers for our keys, by section; only ours are written back."""

NOT_HERE = {
    "lora": {
        "use_rslora": "LoRA's scale here is alpha / rank: give the alpha that comes to the same",
        "use_dora": "there is plain LoRA only",
        "bias": "biases stay frozen",
        "modules_to_save": "beside LoRA a classifier's head is trained, and nothing else",
        "rank_pattern": "ranks that differ are a method's to give (`cutlayer methods`)",
        "alpha_pattern": "every module has one scale",
        "init_lora_weights": "factors start as PEFT's do by default",
    },
    "train": {
        "num_train_epochs": "say rounds and local_steps",
        "max_steps": "say rounds and local_steps",
        "warmup_steps": "say warmup, a fraction of all local steps",
        "gradient_accumulation_steps": "say a larger batch_size, and micro_batches to save memory",
        "gradient_checkpointing": "say model.checkpoint_device, model.checkpoint_server",
        "optim": "a method chooses how it trains, and most train by AdamW",
        "packing": "sequences are padded, not packed",
        "logging_steps": "every round is logged",
        "eval_steps": "say eval_every, in rounds",
    },
}
"""Names of the same that mean what is not here, by section, and what to do."""

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}

CAUSAL_LM = {("data", "max_length"): 1024, ("train", "lr"): 2e-4, ("lora", "targets"): ("all-linear",)}
"""Defaults of causal LM where those of classification are others, by section and key."""

METRICS: dict[TaskKind, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1", "loss"),
    "causal-lm": ("perplexity", "loss"),
}
"""Metrics to compare by that an evaluation of each task gives, beside train.metrics; `compare` takes the first by
default."""
LOWER_IS_BETTER = ("loss", "perplexity")
"""Metrics that should be low; every other one should be high."""

FOUND = tuple(f"data.{name}" for name in ("messages", "prompt", "answer", "text", "template"))
"""Keys that a run fills in from its data and its tokenizer where nobody did."""


def our_names(section: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """A section's content with our names for keys that have others.

    Raises:
      PydanticCustomError: One key is given under two names.

    Example:
      >>> our_names("lora", {"r": 4, "alpha": 8})
      {'rank': 4, 'alpha': 8}
    """
    also, named = ALSO.get(section, {}), dict[str, Any]()
    for key, value in content.items():
        ours = also.get(str(key), key)
        if ours in named:
            raise PydanticCustomError("twice", f"{ours} under one name, got two (also {key})")
        named[ours] = value
    return named


PlainDtype = Literal["fp32", "bf16", "fp16"]
Dtype = Literal[PlainDtype, "int8", "nf4"]
AnswerMetric = Literal["exact_match", "valid_json", "rouge_l", "bleu"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
PLAIN_DTYPES: tuple[PlainDtype, ...] = get_args(PlainDtype)
"""Numbers that are what they say; others have a scale beside them."""
LARGEST = 10**18
"""The bound that every number of a run file must be below: it fits 64 bits, sums of some of them too."""


def _kinds(annotation: Any) -> set[Any]:
    """The types among which a value may be.

    Example:
      >>> _kinds(int | None) == {int, type(None)}
      True
    """
    return set(get_args(annotation)) or {annotation}


class Section(BaseModel):
    """A part of a run file: unknown keys are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _expect_a_number_where_one_belongs(cls, value: Any, info: ValidationInfo) -> Any:
        """`batch_size: yes` would be 1, and no number of a run has twenty digits."""
        kinds = _kinds(cls.model_fields[info.field_name or ""].annotation)
        if isinstance(value, bool) and bool not in kinds and kinds & {int, float}:
            raise PydanticCustomError("truth", "Input should be a number")
        if isinstance(value, int) and abs(value) >= LARGEST and kinds & {int, float}:
            raise PydanticCustomError("large", f"Input should be below {LARGEST:,}")
        return value


class ModelSection(Section):
    """The base model: which, in what precision, with what head."""

    name: str = "builtin:minilm"
    """A folder with config.json and *.safetensors, a GGUF file, a hub name, builtin:minilm or builtin:smollm2."""
    revision: str | None = None
    """Revision of a model on the hub: a branch, a tag or a commit; None for its newest."""
    family: str | dict[str, Any] | None = None
    """Places of the model's parts, for a family that `cutlayer families` has not: a YAML file, or the content of one
    written out here (docs/adding-a-family.md)."""
    dtype: Dtype = "fp32"
    """Dtype of the frozen weights: plain numbers, or 8 or 4 bits each with a scale for many (docs/decisions/0040).
    Trainable tensors are fp32."""
    compute: PlainDtype | None = None
    """Dtype of computing, and of what crosses the network: None is the weights' own dtype, fp32 for int8 and nf4."""
    adapter: str | None = None
    """A folder with an adapter to go on from, of a run or plain PEFT's; None begins anew."""
    pooling: Literal["auto", "pooler", "mean", "cls", "last"] = "auto"
    """The way in which a classifier makes one vector of a sentence; auto is the family's own."""
    base_dropout: bool = False
    """The base model's own dropout while training. Off, the cut is exact."""
    checkpoint_device: bool = False
    """Recompute the device side in its backward pass, to hold fewer activations."""
    checkpoint_server: bool = False
    """The same on the server."""

    @field_validator("dtype", mode="before")
    @classmethod
    def _by_another_name(cls, given: object) -> object:
        return PRECISIONS.get(given, given) if isinstance(given, str) else given


class LoraSection(Section):
    """The adapter: LoRA on the blocks' linear layers."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = ()
    """Last parts of module paths; empty is the family's attention projections, [all-linear] every linear layer: the
    default of causal LM."""

    @field_validator("targets", mode="before")
    @classmethod
    def _one_is_a_list(cls, given: object) -> object:
        return (given,) if isinstance(given, str) else given


class DataSection(Section):
    """The data: what is learnt, from which columns, and how the devices share it."""

    path: str = "builtin:reviews"
    """A folder with train.* and validation.*, a file, a hub name, or builtin:reviews."""
    revision: str | None = None
    """Revision of data on the hub: a branch, a tag or a commit; None for its newest."""
    split: str = "train"
    """The split to learn from: of hub data, and of a folder the file of that name."""
    validation_split: str | None = None
    """The split to judge rounds by: by default `validation` where there is one. `test` is taken only where it stands
    here."""
    seed: int | None = Field(None, ge=0)
    """Seed of what is held out and who gets which rows; None for train.seed."""
    task: TaskKind = "classification"
    text: str | None = None
    """Classification: the column of the (first) sentence, by default `text`. Causal LM: a column of plain text."""
    text_pair: str | None = None
    label: str | None = None
    """Classification: the column of the class, by default `label`."""
    labels: tuple[str, ...] = ()
    """Classification: the class names in the order of their ids; by default those that the training rows have, or, on
    the server of a real fleet, which has no training rows, its validation rows."""
    messages: str | None = None
    """Causal LM: the column of chats, OpenAI's messages or ShareGPT's conversations. Where none of messages, prompt and
    answer, and text is named, they are found by name."""
    prompt: str | None = None
    answer: str | None = None
    template: str | None = None
    """Causal LM: how chats, prompts and answers are written: a file of a chat template or its text, plain for prompt,
    line break, answer; None for the model's own."""
    system: str | None = None
    """Causal LM: the system turn of chats that have none."""
    max_length: int = Field(128, ge=4)
    """Tokens; causal LM has a default of 1024."""
    spread: str = "iid"
    """Over devices: iid, dirichlet:ALPHA, one-class or column:NAME."""
    sizes: Literal["equal", "weighted"] = "equal"
    """Equal numbers of samples, or by the fleet's data_weight."""
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of the training rows held out where the data has no validation file; with `hold_out` none is."""
    hold_out: float = Field(0.0, ge=0, lt=1)
    """Share of its own rows that each device holds out: never trained on, and judged there whenever a round is
    evaluated (docs/decisions/0041). The server then needs no validation data, and may have some all the same."""

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
    """The highest learning rate; causal LM has a default of 2e-4."""
    schedule: Shape = "linear"
    warmup: float = Field(0.06, ge=0, lt=1)
    """Fraction of all local steps."""
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(0.0, ge=0)
    """Largest gradient norm per owner and side; 0 is none."""
    keep_moments: bool = True
    """AdamW's moments outlive the end of a round."""
    stragglers: str | None = None
    """The rule by which a round waits for its devices: wait_all, deadline:SECONDS or quorum:FRACTION; None leaves it to
    the method, and most wait for all."""
    late: Late = "drop"
    """The rule for the work of a device that is late: drop, use what it has done (docs/decisions/0021), or keep: it
    finishes, and counts when it has (docs/decisions/0031)."""
    robust: str = "none"
    """The limit on how much one device may move the mean of what devices train: none, clip:FACTOR, median or trimmed:F
    (docs/decisions/0044)."""
    eval_every: int = Field(1, ge=1)
    """Rounds between two evaluations; the last round is always evaluated."""
    eval_batch_size: int = Field(64, ge=1)
    """Rows at most; of a causal LM fewer where their logits would take too much (docs/decisions/0038)."""
    eval_rows: int | None = Field(None, ge=1)
    """Validation rows by which adapters are judged, drawn by `seed`; None for all."""
    keep: Literal["best", "last"] = "last"
    """The round whose adapter the run ends with: the last one, or that of the best evaluation by train.metric."""
    metric: str = "loss"
    """The metric by which rounds are compared: the loss and perplexity should be low, every other metric high."""
    patience: int = Field(0, ge=0)
    """The run ends after so many evaluations without a better one; 0 plays all rounds."""
    save_every: int = Field(0, ge=0)
    """Rounds between two adapters in adapters/round-N of the run folder; 0 writes none."""
    checkpoints: int = Field(3, ge=1)
    """Number of last checkpoints that are kept: a run goes on from the newest that is whole. They cost disk alone."""
    samples: tuple[str, ...] = ()
    """Causal LM: prompts that the model answers, greedily, at every evaluation: on the screen and in samples.jsonl."""
    metrics: tuple[AnswerMetric, ...] = ()
    """Causal LM: what answers to held-out prompts are judged by, at every evaluation."""
    metric_rows: int = Field(64, ge=1)
    """Number of held-out rows, a seeded sample of them, that are answered for train.metrics."""
    answer_pattern: str = ""
    """Pattern for exact_match: a regular expression whose first group, or all of it, is the answer, such as
    '#### *(.+)'; the last place counts. Empty compares the whole text."""
    new_tokens: int = Field(128, ge=1)
    """The longest answer for train.samples and train.metrics."""
    seed: int = Field(0, ge=0)
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ("tensorboard",)
    """Trackers that are told of every round (docs/watching.md); none of them ends a run. [] tells nobody."""

    @field_validator("report_to", mode="before")
    @classmethod
    def _trackers_with_commas_between(cls, given: object) -> object:
        if not isinstance(given, str):
            return given
        return () if given == "none" else tuple(name.strip() for name in given.split(",") if name.strip())

    @field_validator("schedule", mode="before")
    @classmethod
    def _constant_warms_up(cls, given: object) -> object:
        return "constant" if given == "constant_with_warmup" else given

    @field_validator("stragglers")
    @classmethod
    def _is_a_policy(cls, name: str | None) -> str | None:
        try:
            if name is not None:
                stragglers_by_name(name)
        except ConfigError:
            raise PydanticCustomError("stragglers", STRAGGLERS) from None
        return name

    @field_validator("robust")
    @classmethod
    def _is_robust(cls, name: str) -> str:
        try:
            robust_by_name(name)
        except ConfigError:
            raise PydanticCustomError("robust", ROBUST) from None
        return name

    @field_validator("samples", "metrics", mode="before")
    @classmethod
    def _one_or_several(cls, given: object) -> object:
        return (given,) if isinstance(given, str) else given

    @field_validator("answer_pattern")
    @classmethod
    def _is_a_pattern(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error:
            raise PydanticCustomError("pattern", "a regular expression") from None
        return pattern

    @field_validator("late")
    @classmethod
    def _somebody_may_be_late(cls, late: Late, info: ValidationInfo) -> Late:
        if late != "drop" and info.data.get("stragglers") in (None, "wait_all"):
            raise PydanticCustomError("late", "drop where nobody is late (train.stragglers is wait_all)")
        return late


class WireSection(Section):
    """The codecs that pack tensors before they cross the network: none, bf16, int8 or topk:FRACTION; for adapters
    sparse:F:BITS too (docs/compression.md)."""

    activations: str = "none"
    gradients: str = "none"
    """Gradients of the loss by the activations."""
    adapters: str = "none"
    """Both ways; upwards the difference to what was broadcast, by top-k only upwards."""
    error_feedback: bool = True
    """Whether what packing a device's update lost is added to its next."""

    @field_validator("activations", "gradients", "adapters")
    @classmethod
    def _is_a_codec(cls, name: str, info: ValidationInfo) -> str:
        rows = info.field_name != "adapters"
        try:
            parse_codec(name, rows=rows)
        except ConfigError:
            raise PydanticCustomError("codec", SPELLED if rows else SPELLED_ADAPTERS) from None
        return name


class MethodSource(Section):
    """The place and digest of the text of a method that is not of the method table: a run goes on with no other."""

    at: str
    """Its file, or its module."""
    sha256: str = Field(pattern="[0-9a-f]{64}")
    """SHA-256 of the text."""


class MethodSection(BaseModel):
    """The method's name, and its own options beside it; the method itself knows which there are."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = "memsfl"
    """A name of the method table, FILE.py:FUNCTION, MODULE:FUNCTION, or a name that an installed package offers."""
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
    """A built-in fleet, a fleet file, or the content of one written out here; on a real fleet also `measured`, the
    default of `cutlayer serve`: every machine measures itself."""
    hardware: str = "cpu"
    """The processor on which this process computes: cpu, cuda or cuda:N."""
    out: str = "runs/latest"
    """The run folder."""

    @model_validator(mode="before")
    @classmethod
    def _named_and_completed(cls, content: Any) -> Any:
        """Our names for all keys, and the defaults of the task."""
        if not isinstance(content, Mapping):
            return content
        content = our_names("", content)
        for section, given in content.items():
            if section in ALSO and isinstance(given, Mapping):
                content[section] = our_names(section, given)
        if _value(content.get("data"), "task") != "causal-lm":
            return content
        for (section, key), value in CAUSAL_LM.items():
            given = content.get(section) or {}
            if isinstance(given, Section) and key not in given.model_fields_set:
                content[section] = given.model_copy(update={key: value})
            elif isinstance(given, Mapping):
                content[section] = {key: value, **given}
        return content

    @model_validator(mode="after")
    def _is_a_metric(self) -> RunConfig:
        """Rounds are compared by what there will be: told now, and not after the first evaluation."""
        train, known = self.train, (*METRICS[self.data.task], *self.train.metrics)
        if (train.keep == "best" or train.patience) and train.metric not in known:
            hint = "Add it to train.metrics" if train.metric in get_args(AnswerMetric) else "Change it"
            says = (
                f"train.metric: expected one of {', '.join(known)} for {self.data.task}, got {train.metric!r}. {hint}."
            )
            raise PydanticCustomError("metric", "{says}", {"says": says})
        return self

    def to_yaml(self) -> str:
        """The whole config, defaults included; reading it back gives the same config."""
        return yaml_text(self.model_dump(mode="json"))

    def self_contained(self) -> RunConfig:
        """The same run, readable from any working directory: paths absolute, files of a fleet and a family written out.

        Raises:
          ConfigError: There is no such fleet, or no such template.
          ModelError: There is no such family file, or it is none.
        """
        return self.model_copy(
            update={
                "model": self.model.model_copy(
                    update={
                        "name": _absolute(self.model.name, "model.name"),
                        "family": _written_out(self.model.family),
                        "adapter": None
                        if self.model.adapter is None
                        else _absolute(self.model.adapter, "model.adapter"),
                    }
                ),
                "data": self.data.model_copy(
                    update={"path": _absolute(self.data.path, "data.path"), "template": _template(self.data.template)}
                ),
                "method": self.method.model_copy(update={"name": _absolute_file(self.method.name)}),
                "fleet": write_out(self.fleet),
            }
        )


def _absolute(name: str, key: str) -> str:
    """A path that is there, from the root; other names (of the hub, built-in) as they are."""
    path = local(name)
    with reading(key, "a name or a path that can be read"):
        return str(path.resolve()) if path.exists() else name


def _written_out(family: str | dict[str, Any] | None) -> dict[str, Any] | None:
    """The content of a family file, every field."""
    return None if family is None else family_content(read_family(family))


def _template(template: str | None) -> str | None:
    """The text of a chat template's file; `plain`, a text and None as they are."""
    if template is None or template == PLAIN or is_template(template):
        return template
    try:
        text = local(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"data.template: expected {PLAIN}, a Jinja template or a file of one, got {template!r}. Check the path."
        ) from error
    if not is_template(text):
        raise ConfigError(f"data.template: expected a Jinja template in {template}, got none. Name another file.")
    return text


def _value(section: Any, key: str) -> Any:
    """The value of a key in a section, which may be read already or not."""
    return section.get(key) if isinstance(section, Mapping) else getattr(section, key, None)


def _absolute_file(method: str) -> str:
    """FILE.py:FUNCTION with the file from the root; other methods as they are."""
    file, _, function = method.rpartition(":")
    return f"{local(file).resolve()}:{function}" if file.endswith(".py") else method


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
        given[key] = yaml_value(text, f"-o {override}")
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
    content = _with_our_names(content, origin)
    values = _with_our_keys(values, where)
    for key, value in values.items():
        _set(content, key, value, where)
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        at = ".".join(map(str, error.errors()[0]["loc"])) + "."
        laid = any(at.startswith(f"{key}.") or f"{key}.".startswith(at) for key in values)
        raise ConfigError(_one_line(where if laid else origin, error)) from error


def _with_our_names(content: dict[str, Any], origin: str) -> dict[str, Any]:
    """The content by our names alone: what is laid over it must meet them."""
    try:
        named = our_names("", content)
        for section, given in named.items():
            if section in ALSO and isinstance(given, Mapping):
                named[section] = our_names(section, given)
    except PydanticCustomError as error:
        raise ConfigError(f"{origin}: expected {error.message_template}. Leave one out.") from error
    return named


def _with_our_keys(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values by our dotted keys."""
    named: dict[str, Any] = {}
    for dotted, value in values.items():
        section, _, key = dotted.rpartition(".")
        ours = ALSO.get(section, {}).get(key, key)
        ours = f"{section}.{ours}" if section else ours
        if ours in named:
            raise ConfigError(f"{where}: expected {ours} under one name, got two (also {dotted}). Leave one out.")
        named[ours] = value
    return named


def changes(stored: RunConfig, asked: RunConfig) -> Iterator[tuple[str, Any, Any]]:
    """The dotted keys at which a run that is there differs from one that is asked for, with both values.

    What the run that is there has filled in itself is no difference where the other says nothing.
    """
    for key, old, new in differences(stored.model_dump(mode="json"), asked.model_dump(mode="json")):
        if key not in FOUND or new is not None:
            yield key, old, new


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
    with reading(str(path), "a run file"):
        if not path.is_file():
            raise ConfigError(f"{path}: expected a run file, got no such file. Check the path.")
    content = read_yaml(path, str(path))
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
        hint = guess(first["loc"][-1], known) or "Remove it."
        other = NOT_HERE.get(".".join(map(str, first["loc"][:-1])), {}).get(str(first["loc"][-1]))
        if other is not None:
            return f"{where}: {key}: expected a key that has a meaning here, got one that has none: {other}. Remove it."
        return f"{where}: expected one of {', '.join(known)}, got the key {key!r}. {hint}"
    if first["type"] == "metric":
        return f"{where}: {first['msg']}"
    if first["type"] == "twice":
        return f"{where}: expected {first['msg']}. Leave one out."
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
