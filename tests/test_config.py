"""Keys of a run file, how flags lie over it, and that it stands alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.config import DataSection, RunConfig, TrainSection, read_config
from cutlayer.errors import ConfigError
from cutlayer.fleet.profile import load_fleet

FLEET: dict[str, Any] = {
    "server": {"tflops": 1, "efficiency": 0.3, "memory_gib": 4},
    "devices": [
        {
            "name": "phone",
            "count": 2,
            "tflops": 0.1,
            "efficiency": 0.3,
            "memory_gib": 0.1,
            "up_mbit": 10,
            "down_mbit": 1e-3,
            "latency_ms": 5,
        }
    ],
}


def write(path: Path, content: object) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def test_nothing_said_is_the_defaults() -> None:
    assert read_config(None) == RunConfig()


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("# nothing yet\n")
    assert read_config(tmp_path / "run.yaml") == RunConfig()


def test_overrides_beat_flags_and_flags_beat_the_file(tmp_path: Path) -> None:
    run = write(tmp_path / "run.yaml", {"train": {"rounds": 1, "seed": 1, "lr": 1}, "method": {"order": "fifo"}})
    config = read_config(run, ["train.lr=3e-3", "method.cut=2"], {"train.seed": "2", "train.lr": "2"})
    assert (config.train.rounds, config.train.seed, config.train.lr) == (1, 2, 3e-3)
    assert config.method.options == {"order": "fifo", "cut": 2}


def test_overrides_are_read_as_yaml() -> None:
    config = read_config(None, ["lora.targets=[query, value]", "data.text_pair=null", "model.base_dropout=yes"])
    assert config.lora.targets == ("query", "value")
    assert config.data.text_pair is None
    assert config.model.base_dropout is True


@given(
    rank=st.integers(1, 1000),
    lr=st.floats(1e-12, 1e12),
    text=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])),
    options=st.dictionaries(
        st.sampled_from(["order", "cut", "x"]), st.none() | st.booleans() | st.integers() | st.text("ab: #é")
    ),
)
def test_what_is_written_is_read_back(rank: int, lr: float, text: str, options: dict[str, Any]) -> None:
    values = {"lora.rank": rank, "train.lr": lr, "data.text": text}
    config = read_config(None, values=values | {f"method.{key}": value for key, value in options.items()})
    assert RunConfig.model_validate(yaml.safe_load(config.to_yaml())) == config


def test_every_default_is_written_out() -> None:
    written = yaml.safe_load(RunConfig().to_yaml())
    assert written.keys() == RunConfig.model_fields.keys()
    assert written["train"]["keep_moments"] is True


# ------------------------------------------------------------------ a config that stands alone


def test_paths_that_are_there_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "rows.jsonl").touch()
    config = read_config(None, values={"model.name": "model", "data.path": "./rows.jsonl", "out": "runs/one"})
    alone = config.self_contained()
    assert (alone.model.name, alone.data.path) == (str(tmp_path / "model"), str(tmp_path / "rows.jsonl"))
    assert alone.out == "runs/one"
    assert alone.self_contained() == alone


def test_names_that_are_no_paths_stay() -> None:
    config = RunConfig()
    assert config.self_contained() == config
    hub = read_config(None, values={"model.name": "org/model", "data.path": "org/data:en"})
    assert hub.self_contained() == hub


@pytest.mark.parametrize("name", ["memsfl", "package.module:mine", "offered", "mine.py", "/mine.pyc:mine"])
def test_a_method_that_is_no_file_keeps_its_name(name: str) -> None:
    assert read_config(None, values={"method.name": name}).self_contained().method.name == name


def test_the_file_of_a_method_becomes_absolute_whether_it_is_there_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    alone = read_config(None, values={"method.name": "./a/../mine.py:mine"}).self_contained()
    assert alone.method.name == f"{tmp_path}/mine.py:mine"
    assert alone.self_contained() == alone


def test_a_method_of_the_table_has_no_source_and_others_have_one() -> None:
    plain = RunConfig().model_dump(mode="json")["method"]
    assert plain == {"name": "memsfl"}
    source = {"at": "package.module", "sha256": "0" * 64}
    config = read_config(None, values={"method.source": source, "method.cut": None})
    assert config.model_dump(mode="json")["method"] == {"name": "memsfl", "source": source, "cut": None}
    assert config.method.options == {"cut": None}
    assert config.method.sha256 == "0" * 64
    assert RunConfig.model_validate(yaml.safe_load(config.to_yaml())) == config


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("package.module", "flags: method.source"),
        ({"at": "x"}, "flags: method.source.sha256"),
        ({"at": "x", "sha256": "0"}, "flags: method.source.sha256"),
        ({"at": "x", "sha256": "0" * 64, "by": "me"}, "got the key 'method.source.by'"),
    ],
)
def test_a_source_that_is_none(source: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        read_config(None, values={"method.source": source})
    assert "\n" not in str(error.value)


def test_a_fleet_file_is_written_out(tmp_path: Path) -> None:
    file = write(tmp_path / "lab.yaml", FLEET)
    alone = read_config(None, values={"fleet": str(file)}).self_contained()
    assert alone.fleet == FLEET
    again = RunConfig.model_validate(yaml.safe_load(alone.to_yaml()))
    assert again == alone
    by_file, written_out = load_fleet(file), load_fleet(again.fleet)
    assert (written_out.devices, written_out.server) == (by_file.devices, by_file.server)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"servers": 1}, "'servers'"), ({"server": 3}, "fleet, server"), ({"devices": [{"name": "x"}]}, "device 'x'")],
)
def test_a_fleet_in_the_run_file_is_checked(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_fleet(FLEET | change)


def test_a_fleet_file_is_named_in_its_errors(tmp_path: Path) -> None:
    file = write(tmp_path / "lab.yaml", FLEET | {"server": 3})
    with pytest.raises(ConfigError, match=r"fleet file .*lab\.yaml, server"):
        read_config(None, values={"fleet": str(file)}).self_contained()


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {batch_size: yes}", "train.batch_size: expected a number, got True"),
        ("train: {rounds: true}", "train.rounds: expected a number, got True"),
        ("train: {lr: on}", "train.lr: expected a number, got True"),
        ("train: {eval_rows: no}", "train.eval_rows: expected a number, got False"),
        ("train: {batch_size: 1:30}", "train.batch_size: expected a valid integer"),
        ("train: {rounds: 1" + "0" * 400 + "}", "train.rounds: expected below 1,000,000,000,000,000,000, got 100"),
    ],
)
def test_a_number_is_what_it_says(text: str, said: str, tmp_path: Path) -> None:
    """YAML 1.1 and Python would have 1 for yes, and 90 for 1:30; no plan reckons with numbers of 400 digits."""
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_config(tmp_path / "run.yaml")
    assert said in str(refused.value)
    assert read_config(None, ["train.overlap=yes"]).train.overlap is True


def test_an_error_says_whether_the_file_or_a_flag_is_wrong(tmp_path: Path) -> None:
    run = write(tmp_path / "run.yaml", {"lora": {"rank": 0}})
    with pytest.raises(ConfigError, match=r"run\.yaml: lora\.rank: expected greater than or equal to 1, got 0"):
        read_config(run, ["train.rounds=1"])
    with pytest.raises(ConfigError, match=r"^flags: lora\.rank: .*got -1"):
        read_config(run, ["lora.rank=-1"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.lrr=1", r"expected one of rounds, .*got the key 'train.lrr'. Did you mean 'lr'\?"),
        ("zzz=1", r"expected one of model, .*got the key 'zzz'. Remove it\."),
        ("train.lr=.inf", r"train\.lr: expected a finite number, got inf"),
        ("train.lr=.nan", r"train\.lr: expected .*, got nan"),
        ("train=3", r"train: expected .*got 3"),
        ("train.lr.peak=3", r"train\.lr\.peak: expected .*section"),
        ("=3", r"expected KEY=VALUE"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(override: str, said: str) -> None:
    values = {"train.lr": 1} if override.startswith("train.lr.") else {}
    with pytest.raises(ConfigError, match=said) as refused:
        read_config(None, [override], values)
    assert "\n" not in str(refused.value)


# ------------------------------------------------------------------ names of others, defaults of a task, templates


NAMED = {
    "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": "all-linear"},
    "train": {
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_ratio": 0.1,
        "max_grad_norm": 1.0,
        "per_device_train_batch_size": 2,
    },
    "data": {"completion": "a", "prompt": "q", "max_seq_length": 64},
    "model": {"torch_dtype": "bfloat16", "model_name_or_path": "m", "model_revision": "v1"},
    "output_dir": "runs/x",
}


def test_keys_have_the_names_of_peft_and_trl_too_and_ours_are_written() -> None:
    config = RunConfig.model_validate(NAMED)
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout, config.lora.targets) == (
        4,
        8,
        0.1,
        ("all-linear",),
    )
    train = config.train
    assert (train.lr, train.schedule, train.warmup, train.clip, train.batch_size) == (1e-4, "constant", 0.1, 1.0, 2)
    assert (config.data.answer, config.data.max_length, config.out) == ("a", 64, "runs/x")
    assert (config.model.dtype, config.model.name, config.model.revision) == ("bf16", "m", "v1")
    assert [read_config(None, values={"model.dtype": name}).model.dtype for name in ("float32", "float16")] == [
        "fp32",
        "fp16",
    ]
    written = yaml.safe_load(config.to_yaml())
    assert RunConfig.model_validate(written) == config
    assert "r" not in written["lora"]


def test_a_flag_lies_over_a_key_by_another_name(tmp_path: Path) -> None:
    run = write(tmp_path / "run.yaml", NAMED)
    config = read_config(run, ["lora.r=6"], {"train.lr": "3e-3", "out": "here"})
    assert (config.lora.rank, config.train.lr, config.out) == (6, 3e-3, "here")


def test_a_key_under_two_names_is_an_error(tmp_path: Path) -> None:
    run = write(tmp_path / "run.yaml", {"lora": {"r": 4, "rank": 8}})
    with pytest.raises(
        ConfigError, match=r"run\.yaml: expected rank under one name, got two \(also rank\)\. Leave one"
    ):
        read_config(run)
    with pytest.raises(ConfigError, match=r"flags: expected lora\.rank under one name, got two \(also lora\.r\)"):
        read_config(None, ["lora.rank=4", "lora.r=4"])
    with pytest.raises(ValueError, match="rank under one name, got two"):
        RunConfig.model_validate({"lora": {"r": 4, "rank": 8}})
    with pytest.raises(ConfigError, match="expected out under one name, got two"):
        read_config(write(run, {"out": "a", "output_dir": "b"}))


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (
            "train.num_train_epochs",
            "expected a key that has a meaning here, got one that has none: say rounds and local",
        ),
        ("train.gradient_accumulation_steps", "say a larger batch_size"),
        ("lora.use_rslora", "LoRA's scale here is alpha / rank"),
        ("lora.lora_alhpa", "expected one of rank, alpha"),
    ],
)
def test_a_name_without_a_function_here_is_refused_in_a_line(key: str, says: str) -> None:
    with pytest.raises(ConfigError, match=rf"flags: .*{key}.*{says}|flags: .*{says}.*{key}"):
        read_config(None, [f"{key}=3"])


def test_causal_lm_has_defaults_of_its_own() -> None:
    usual, writer = RunConfig(), read_config(None, ["data.task=causal-lm"])
    assert (usual.train.lr, usual.data.max_length, usual.lora.targets) == (2e-3, 128, ())
    assert (writer.train.lr, writer.data.max_length, writer.lora.targets) == (2e-4, 1024, ("all-linear",))
    said = read_config(
        None, ["data.task=causal-lm", "train.learning_rate=1e-3", "data.max_length=64", "lora.targets=[]"]
    )
    assert (said.train.lr, said.data.max_length, said.lora.targets) == (1e-3, 64, ())
    built = RunConfig(data=DataSection(task="causal-lm"), train=TrainSection(lr=1))
    assert (built.train.lr, built.data.max_length, built.lora.targets) == (1, 1024, ("all-linear",))
    assert RunConfig.model_validate(writer.model_dump(mode="json")) == writer


def test_a_template_stands_in_the_config_that_stands_alone(tmp_path: Path) -> None:
    text = "{{ messages[0].content }}"
    (tmp_path / "a.jinja").write_text(text)
    config = read_config(None, values={"data.template": str(tmp_path / "a.jinja")}).self_contained()
    assert config.data.template == text
    assert config.self_contained() == config
    assert read_config(None, values={"data.template": "plain"}).self_contained().data.template == "plain"
    (tmp_path / "none.jinja").write_text("no template")
    for name, says in (("none.jinja", "expected a Jinja template in "), ("absent.jinja", "Check the path")):
        with pytest.raises(ConfigError, match=says):
            read_config(None, values={"data.template": str(tmp_path / name)}).self_contained()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, ("tensorboard",)),
        ("none", ()),
        ([], ()),
        ("wandb", ("wandb",)),
        ("tensorboard, mlflow", ("tensorboard", "mlflow")),
        (["trackio", "wandb"], ("trackio", "wandb")),
    ],
)
def test_trackers_are_a_list_or_names_with_commas(given: object, told: tuple[str, ...]) -> None:
    train = {} if given is None else {"report_to": given}
    assert RunConfig.model_validate({"train": train}).train.report_to == told


def test_a_tracker_that_there_is_not_is_refused_by_its_key() -> None:
    with pytest.raises(
        ConfigError, match=r"train\.report_to\.1: expected 'tensorboard', 'wandb', 'mlflow' or 'trackio'"
    ):
        read_config(None, values={"train.report_to": "wandb,tensorbord"})


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (["train.metric=nonsense"], "one of accuracy, macro_f1, loss for classification, got 'nonsense'. Change it."),
        (["train.metric=rouge_l", "data.task=causal-lm"], "perplexity, loss for causal-lm, got 'rouge_l'. Add it to"),
        (["train.metric=tokens", "data.task=causal-lm", "train.metrics=bleu"], "perplexity, loss, bleu for causal-lm"),
    ],
)
@pytest.mark.parametrize("by", ["train.keep=best", "train.patience=2"])
def test_rounds_are_compared_by_a_metric_that_there_will_be(by: str, said: list[str], found: str) -> None:
    """Told before anything is read, and not after the first evaluation."""
    with pytest.raises(ConfigError, match=f"^flags: train.metric: expected .*{found}"):
        read_config(None, [*said, by])
    read_config(None, said)  # nobody looks at it
    good = ["data.task=causal-lm", "train.metrics=rouge_l", "train.metric=rouge_l", by]
    assert read_config(None, good).train.metric == "rouge_l"
