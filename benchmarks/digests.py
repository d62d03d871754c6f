"""Digests of everything that seeded runs leave: what a change that changes no number must leave as it was.

    python benchmarks/digests.py write digests.json [--only memsfl ...] [--no-grpc] [--no-simulated]
    python benchmarks/digests.py compare digests.json

`write` plays every method of the table on two tiny models with two seeds, options that meet at seams, and every family
of models, each on a simulated fleet of three unequal devices: three rounds of two local steps. Each run is played to
its end, and its last two rounds once more from a copy of its folder that was taken at the end of the second, as a kill
would have left it; both must leave the same. Then `cutlayer up` plays over gRPC those that promise the simulated
adapter there, and it must be that one. `compare` plays again what a table holds, prints each line that differs, and
exits with 1 if any does.

A line is METHOD/FAMILY/SEED or METHOD:VARIANT/FAMILY/SEED, `/grpc` behind it for a real fleet. SHA-256 digests:

    adapter    of adapter/adapter_model.safetensors, as `sha256sum` prints it
    adapters   of the files of adapters/, an adapter per device, where there are some
    pruned     of the files of pruned/, a pruned model, where there is one
    model      of the files of model/, where a run moves all weights and has no adapter
    metrics    of metrics.jsonl without the keys that start with `wall_`: losses, bytes, FLOPs, virtual times, plans
    events     of events.jsonl, what each machine did when; of simulated runs
    bytes      of the bytes of each round up and down, of real runs, which have other times

Runs are started by `cutlayer.cli.main` and seen by their files, so that modules may move. Digests hold for one kind
of processor and one version of torch: write and compare on the same.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes of devices too
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import yaml

from cutlayer.cli import main as cutlayer
from cutlayer.errors import ConfigError
from cutlayer.methods.table import TABLE
from cutlayer.testing import tiny


class RunFailed(Exception):
    """A run that was to end well did not."""


Line = dict[str, str]
"""Digests of one run, by what they are of."""
LEFT = {"adapter", "adapters", "pruned", "model"}
"""Digests of what a run ends with: two runs of which only one has left it are not alike."""

ROUNDS = 3
ENCODERS = ("bert", "roberta", "distilbert")
"""Families that are played as classifiers; the others write."""
FLEET: dict[str, Any] = {
    "server": {"tflops": 0.001, "efficiency": 0.5, "memory_gib": 4},
    "defaults": {"efficiency": 0.3, "up_mbit": 10, "down_mbit": 20, "latency_ms": 5, "memory_gib": 1},
    "devices": [
        {"name": "slow", "tflops": 0.00001, "max_blocks": 1},
        {"name": "middle", "tflops": 0.000015, "max_blocks": 2, "up_mbit": 4, "memory_gib": 0.5},
        {"name": "quick", "tflops": 0.00004, "max_blocks": 2, "data_weight": 2, "latency_ms": 1},
    ],
}
CHANGING = FLEET | {
    "devices": [
        {**device, "modes": [1.0, 0.3, 0.1], "mode_rounds": 1} if device["name"] != "middle" else device
        for device in FLEET["devices"]
    ]
}
"""The same fleet, whose speeds change from round to round."""
RUN = (
    *("--rounds", str(ROUNDS), "--local-steps", "2", "--batch-size", "4", "--max-length", "16", "--lr", "0.01"),
    *("--rank", "4", "--sizes", "weighted", "-o", "lora.targets=[all-linear]"),
)

MEASURED = {
    "fedspine": "its bandit is rewarded by measured times",
    "legend": "its depths follow measured speed",
    "mergesfl": "its batch sizes follow measured speed",
    "reindsplit": "its cuts follow measured times",
    "sfl_v2": "its order is that of arrival",
    "splitlora": "its order is that of arrival",
    "ho_sfl": "its order is that of arrival",
    "salf": "its deadlines are real seconds",
    "adel": "its deadlines are real seconds",
    "teasq_fed": "a round is over when so many have come",
    "hsplitlora": "its cuts fill the memory that devices find free",
    "petals": "its spans are processes with addresses",
}
"""Methods that promise no simulated adapter over gRPC, and why."""


@dataclass(frozen=True, slots=True)
class Case:
    """A method and its options.

    Attributes:
      method: a row of the table.
      variant: what the options make of it; empty for none.
      flags: of `cutlayer train`.
      families: of the models that it is played on.
      seeds: with which it is played.
      grpc: whether it is played over gRPC too, on the first of these.
    """

    method: str
    variant: str = ""
    flags: tuple[str, ...] = ()
    families: tuple[str, ...] = ("bert",)
    seeds: tuple[int, ...] = (0,)
    grpc: bool = False

    @property
    def name(self) -> str:
        return f"{self.method}:{self.variant}" if self.variant else self.method


@dataclass(frozen=True, slots=True)
class Play:
    """One run: a case on one model with one seed, simulated or real."""

    case: Case
    family: str
    seed: int
    grpc: bool = False

    @property
    def name(self) -> str:
        return f"{self.case.name}/{self.family}/{self.seed}" + ("/grpc" if self.grpc else "")


def option(*settings: str) -> tuple[str, ...]:
    """The words of a command line that set these."""
    return tuple(word for setting in settings for word in ("-o", setting))


BOTH = ("bert", "llama")
PACKED = ("--compress-activations", "int8", "--compress-gradients", "bf16", "--compress-adapters", "topk:0.1")
DROPOUT = ("--base-dropout", "--lora-dropout", "0.1")


def deadline(seconds: float, late: str) -> tuple[str, ...]:
    """The words for a round of so many virtual seconds: some rounds last longer here, others do not."""
    return ("--stragglers", f"deadline:{seconds:g}", "--late", late)


CASES = (
    *(Case(name, families=BOTH, seeds=(0, 1), grpc=name not in MEASURED) for name in TABLE),
    Case("memsfl", "families", families=tuple(name for name in tiny.CONFIGS if name not in BOTH)),
    Case("memsfl", "micro", ("--micro-batches", "2"), BOTH, grpc=True),
    Case("memsfl", "micro-in-turn", ("--micro-batches", "2", "--no-overlap")),
    Case("memsfl", "micro-packed", ("--micro-batches", "2", *PACKED)),
    Case("memsfl", "packed", (*PACKED, *option("method.cut=1")), BOTH, grpc=True),
    Case("memsfl", "packed-by-topk", ("--compress-activations", "topk:0.3", "--compress-adapters", "int8")),
    Case("memsfl", "no-feedback", ("--compress-adapters", "topk:0.1", "--no-error-feedback")),
    Case("memsfl", "optimal", option("method.order=optimal", "method.momentum=0.5")),
    Case("memsfl", "random", option("method.order=random", "method.weighted=false")),
    Case("memsfl", "ratio", option("method.order=ratio")),
    Case("memsfl", "part", option("method.fraction=0.5"), grpc=True),
    Case("memsfl", "cut", option("method.cut=1")),
    Case("memsfl", "dropout", DROPOUT, BOTH),
    Case("memsfl", "checkpoints", ("--checkpoint-device", "--checkpoint-server", *DROPOUT)),
    Case("memsfl", "bf16", ("--dtype", "bf16"), BOTH),
    Case("memsfl", "fresh-moments", option("train.keep_moments=false")),
    Case("memsfl", "schedule", ("--schedule", "cosine", "--weight-decay", "0.1", "--eval-every", "2")),
    Case("memsfl", "clip", ("--clip", "0.1")),
    Case("memsfl", "deadline-drop", deadline(0.8, "drop")),
    Case("memsfl", "deadline-drop-soon", deadline(0.5, "drop"), families=("llama",)),
    Case("memsfl", "deadline-use", deadline(0.5, "use")),
    Case("memsfl", "deadline-use-soon", deadline(0.3, "use"), families=("llama",)),
    Case("memsfl", "deadline-packed", (*deadline(0.5, "use"), "--micro-batches", "2", *PACKED)),
    Case("memsfl", "quorum", ("--stragglers", "quorum:0.6")),
    Case("sl", "micro", ("--micro-batches", "2"), BOTH),
    Case("vanilla", "micro-packed", ("--micro-batches", "2", *PACKED)),
    Case("sfl_v1", "micro", ("--micro-batches", "2")),
    Case("sfl_v1", "part", option("method.fraction=0.5")),
    Case("sfl_v2", "part", option("method.fraction=0.5")),
    Case("splitlora", "packed", PACKED),
    Case("splitlora", "dropout", DROPOUT),
    Case("splitfrozen", "no-cache", option("method.cache=false"), BOTH, grpc=True),
    Case("splitfrozen", "no-cache-dropout", (*option("method.cache=false"), *DROPOUT)),
    Case("splitfrozen", "stages", option("method.stages=2", "method.micro_batches=2"), BOTH),
    Case("splitfrozen", "decomposed", option("method.stages=2", "method.decomposed=true")),
    Case("splitfrozen", "int8", option("method.cache_dtype=int8", "method.window=7", "method.server_batch=6")),
    Case("splitfrozen", "packed", ("--compress-activations", "int8")),
    Case("centralized", "window", option("method.window=20")),
    Case("fedlora", "momentum", option("method.momentum=0.5", "method.fraction=0.5")),
    Case("fedlora", "deadline-use", deadline(1.3, "use")),
    Case("fedlora", "packed", ("--compress-adapters", "topk:0.1")),
    Case("hetlora", "pruning", ("--rank", "16", *option("method.gamma=0.5", "method.lam=20")), BOTH, grpc=True),
    Case("hetlora", "owners", option("method.owners_only=true", "method.by_norm=false", "method.by=uplink")),
    Case("flexlora", "part", option("method.fraction=0.5", "method.by=memory")),
    Case("flora", "part", (*option("method.fraction=0.5"), "--compress-adapters", "int8")),
    Case("fedspine", "whole", option("method.prune=0")),
    Case("fedspine", "fixed", option("method.prune=0.3", "method.rank=2", "method.weighted=false")),
    Case("fedspine", "packed", (*option("method.prune=0.7"), "--compress-adapters", "topk:0.1")),
    Case("legend", "changing", ("--fleet", "CHANGING"), BOTH),
    Case("legend", "all-blocks", option("method.least=3"), grpc=True),
    Case("mergesfl", "changing", ("--fleet", "CHANGING", *option("method.d_max=8")), BOTH),
    Case("mergesfl", "fixed", option("method.batch=fixed"), grpc=True),
    Case("mergesfl", "chosen", option("method.fraction=0.7", "method.max_kl=0.01", "method.ingress_mbit=1")),
    Case("reindsplit", "changing", ("--fleet", "CHANGING"), BOTH),
    Case("reindsplit", "fresh-moments", option("train.keep_moments=false"), grpc=True),
    Case("local_only", "packed", PACKED),
)


# ------------------------------------------------------------------ what is played


class Stage:
    """Tiny models, data and fleets in one folder, and the runs that are played there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for task, rows in (("classification", tiny.reviews), ("causal-lm", tiny.sums)):
            tiny.write_jsonl(folder / task / "train.jsonl", rows(40, seed=1))
            tiny.write_jsonl(folder / task / "validation.jsonl", rows(10, seed=2))
        for name, fleet in (("FLEET", FLEET), ("CHANGING", CHANGING)):
            (folder / name).with_suffix(".yaml").write_text(yaml.safe_dump(fleet))

    def simulate(self, play: Play) -> tuple[Line, Line]:
        """Plays a run in simulation; returns its digests, and those of the same run, stopped and resumed.

        Raises:
          RunFailed: It came to no end, or left no checkpoint.
        """
        out, stopped = self._empty("whole"), self._empty("stopped")
        with _copied_before_the_second_checkpoint(out, stopped):
            _run("train", *self._flags(play), "--out", str(out))
        if not stopped.exists():
            raise RunFailed(
                f"{play.name}: expected a checkpoint of every round in {out / 'checkpoint'}, got none replaced. "
                "Change `_copied_before_the_second_checkpoint` to what marks the end of a round now."
            )
        _run("train", "--resume", str(stopped))
        return self.digests(out), self.digests(stopped)

    def bring_up(self, play: Play) -> Line:
        """Plays a run over gRPC; returns its digests.

        Raises:
          RunFailed: It came to no end.
        """
        out = self._empty("real")
        _run("up", *self._flags(play), "--out", str(out))
        line = self.digests(out)
        rows = _lines(out / "metrics.jsonl")
        sent = [[row["bytes_up"], row["bytes_down"]] for row in rows]
        return {key: value for key, value in line.items() if key not in ("metrics", "events")} | {"bytes": _of(sent)}

    def digests(self, out: Path) -> Line:
        """Digests of the files that a run left."""
        line, adapter = Line(), out / "adapter" / "adapter_model.safetensors"
        if adapter.exists():
            line["adapter"] = hashlib.sha256(adapter.read_bytes()).hexdigest()
        for name in ("adapters", "pruned", "model"):
            if (out / name).is_dir():
                line[name] = self._of_folder(out / name)
        line["metrics"] = _of([_without_wall(row) for row in _lines(out / "metrics.jsonl")])
        line["events"] = hashlib.sha256((out / "events.jsonl").read_bytes()).hexdigest()
        return line

    def _of_folder(self, folder: Path) -> str:
        """One digest of all tensors and configurations in a folder, wherever this stage stands."""
        files = sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json"))
        here = str(self._folder).encode()
        return _of(
            {
                str(path.relative_to(folder)): hashlib.sha256(path.read_bytes().replace(here, b"STAGE")).hexdigest()
                for path in files
            }
        )

    def _flags(self, play: Play) -> list[str]:
        words = {name: str(self._folder / f"{name}.yaml") for name in ("FLEET", "CHANGING")}
        task = "classification" if play.family in ENCODERS else "causal-lm"
        columns = {
            "classification": ["--spread", "dirichlet:0.5"],
            "causal-lm": ["--prompt", "question", "--answer", "reply", "--template", "plain"],
        }[task]
        given = ["--model", str(self._model(play.family, task)), "--data", str(self._folder / task), "--task", task]
        given += [*columns, *RUN, "--method", play.case.method, "--seed", str(play.seed)]
        given += [] if "--fleet" in play.case.flags else ["--fleet", words["FLEET"]]
        return given + [words.get(word, word) for word in play.case.flags]

    def _model(self, family: str, task: str) -> Path:
        folder = self._folder / family
        if not folder.exists():
            with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
                tiny.save_tiny_tokenizer(tiny.save_tiny_model(family, task, folder))
        return folder

    def _empty(self, name: str) -> Path:
        shutil.rmtree(self._folder / name, ignore_errors=True)
        return self._folder / name


def _run(*words: str) -> None:
    """Runs `cutlayer` in this process.

    Raises:
      RunFailed: It ended otherwise than with exit code 0.
    """
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            cutlayer([*words, "--quiet"])
    except SystemExit as exit:
        problem = f"{exit.code}: {out.getvalue().strip()}" if exit.code else ""
    except Exception as error:  # a mistake in what is tried: the other runs are played all the same
        problem = f"{type(error).__name__}: {error}"
    else:
        problem = ""
    if problem:
        raise RunFailed(f"cutlayer {' '.join(words)}: expected exit code 0, got {problem} See what it says by itself.")


_watched: tuple[Path, Path] | None = None
_watching = False


@contextlib.contextmanager
def _copied_before_the_second_checkpoint(out: Path, copy: Path) -> Iterator[None]:
    """Copies a run folder at the moment in which the first checkpoint is replaced: what a kill would leave there.

    An audit hook of Python sees the rename, whichever module asks for it.
    """
    global _watched, _watching
    if not _watching:
        sys.addaudithook(_copy_at_a_rename)  # never to be removed
        _watching = True
    _watched = (out, copy)
    try:
        yield
    finally:
        _watched = None


def _copy_at_a_rename(event: str, arguments: tuple[Any, ...]) -> None:
    global _watched
    if event != "os.rename" or _watched is None:
        return
    out, copy = _watched
    checkpoint = out / "checkpoint"
    paths = [Path(os.fsdecode(path)) for path in arguments[:2]]
    if checkpoint.exists() and any(path.is_relative_to(checkpoint) for path in paths):
        _watched = None
        shutil.copytree(out, copy)


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _without_wall(value: Any) -> Any:
    """JSON without what differs between equal runs."""
    if isinstance(value, dict):
        return {key: _without_wall(inner) for key, inner in value.items() if not key.startswith("wall_")}
    return [_without_wall(inner) for inner in value] if isinstance(value, list) else value


def _of(value: Any) -> str:
    """The digest of something in JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# ------------------------------------------------------------------ the table


def plays_of(only: Sequence[str], *, simulated: bool = True, grpc: bool = True) -> list[Play]:
    """The runs to be played, simulated and real; a method's name stands for its variants too.

    Raises:
      ConfigError: There is no such case.
    """
    known = {case.name for case in CASES} | set(TABLE)
    for name in only:
        if name not in known:
            raise ConfigError(f"--only: expected some of {', '.join(sorted(known))}, got {name}. Correct it.")
    chosen = [case for case in CASES if not only or case.name in only or case.method in only]
    plays = [Play(case, family, seed) for case in chosen for family in case.families for seed in case.seeds]
    real = [Play(case, case.families[0], case.seeds[0], grpc=True) for case in chosen if case.grpc]
    return (plays if simulated else []) + (real if grpc else [])


def play_all(plays: Sequence[Play]) -> tuple[dict[str, Line], list[str]]:
    """Plays these; returns their digests, and a sentence for each that broke a promise."""
    lines, broken = dict[str, Line](), list[str]()
    with tempfile.TemporaryDirectory(prefix="cutlayer-digests-") as folder:
        stage = Stage(Path(folder).resolve())
        for number, play in enumerate(plays, 1):
            start = time.perf_counter()
            try:
                if play.grpc:
                    lines[play.name] = stage.bring_up(play)
                    twin = replace(play, grpc=False)
                    expected = lines.get(twin.name) or stage.simulate(twin)[0]
                    broken += unlike(play.name, "what the simulated run left", expected, lines[play.name])
                else:
                    lines[play.name], resumed = stage.simulate(play)
                    broken += unlike(play.name, "the same from the run once resumed", lines[play.name], resumed)
            except RunFailed as error:
                broken.append(f"{play.name}: {error}")
            seconds = time.perf_counter() - start
            print(f"{number}/{len(plays)} {play.name} {seconds:.1f} s", file=sys.stderr, flush=True)
    return lines, broken


def unlike(name: str, what: str, expected: Line, got: Line) -> list[str]:
    """A sentence if two runs that were to leave the same did not: in what both have digests of, or in `LEFT`."""
    keys = (expected.keys() & got.keys()) | (LEFT & (expected.keys() ^ got.keys()))
    different = sorted(key for key in keys if expected.get(key) != got.get(key))
    return [f"{name}: expected {what}, got other {', '.join(different)}."] if different else []


def differences(old: Mapping[str, Line], new: Mapping[str, Line]) -> list[str]:
    """A sentence for each line of the old table that is not the same in the new one."""
    found = []
    for name, line in old.items():
        there = new.get(name, {})
        keys = sorted(key for key in {*line, *there} if line.get(key) != there.get(key))
        if keys:
            found.append(f"{name}: other {', '.join(keys)}" if there else f"{name}: not played")
    return found


def machine() -> dict[str, str]:
    """The versions and the kind of processor on which digests depend beside the code."""
    cpu = torch.backends.cpu.get_cpu_capability()
    return {"python": platform.python_version(), "torch": torch.__version__, "cpu": f"{platform.machine()} {cpu}"}


def write(path: Path, plays: Sequence[Play]) -> bool:
    """Writes a table of these; returns whether every promise was kept."""
    lines, broken = play_all(plays)
    path.write_text(json.dumps({"machine": machine(), "lines": lines, "broken": broken}, indent=1) + "\n")
    print(*broken, f"written to {path}: {len(lines)} lines, {len(broken)} promises broken", sep="\n")
    return not broken


def compare(path: Path, plays: Sequence[Play]) -> bool:
    """Plays these once more, if the table holds them; returns whether all is as it was.

    A promise that was broken when the table was written may be broken still.

    Raises:
      ConfigError: There is no such table.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: expected a table of digests, got {error}. Make one with `write`.") from error
    if content["machine"] != machine():
        print(f"{path}: written on {content['machine']}, this is {machine()}: digests may differ for that alone")
    asked, known = {play.name for play in plays}, {play.name for play in plays_of([])}
    old = {name: line for name, line in content["lines"].items() if name in asked or name not in known}
    if new := asked - old.keys():
        print(f"{path}: {len(new)} runs are not in this table, and were not played: {', '.join(sorted(new))}")
    lines, broken = play_all([play for play in plays if play.name in old])
    found = differences(old, lines)
    found += [sentence for sentence in broken if sentence not in content["broken"]]
    found += [f"known: {sentence}" for sentence in broken if sentence in content["broken"]]
    for sentence in found:
        print(sentence)
    num_wrong = sum(not sentence.startswith("known: ") for sentence in found)
    print(f"{len(old)} lines of {path} played again: {num_wrong} things are not as they were")
    return not num_wrong


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes a table, or compares with one; exits with 1 if something is not as it must be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=("write", "compare"))
    parser.add_argument("file", type=Path, help="the table, JSON")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="methods, or METHOD:VARIANT")
    parser.add_argument("--no-grpc", action="store_true", help="leave out real fleets")
    parser.add_argument("--no-simulated", action="store_true", help="leave out the lines of simulated fleets")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    plays = plays_of(args.only, simulated=not args.no_simulated, grpc=not args.no_grpc)
    do = write if args.command == "write" else compare
    sys.exit(0 if do(args.file, plays) else 1)


if __name__ == "__main__":
    main()
