"""`cutlayer compare` from Python."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

from cutlayer.api.given import Given, config_from
from cutlayer.comparing.carried_out import carried_out
from cutlayer.comparing.comparison import Comparison, Run
from cutlayer.comparing.entry import parse_entries
from cutlayer.comparing.metric import metric_of
from cutlayer.comparing.pool import error_of
from cutlayer.comparing.results import Results
from cutlayer.errors import ConfigError

OnRunRound = Callable[[str, dict[str, Any]], None]
"""Called with the name of a run, LABEL-seedN, and the row of a round of it."""


def compare(
    *methods: str,
    run: Given = None,
    seeds: int = 1,
    metric: str | None = None,
    target: float | None = None,
    jobs: int | None = None,
    out: str | Path = "runs/compare",
    on_round: OnRunRound | None = None,
    **sections: Any,
) -> Results:
    """Runs methods under the same data order, spread, budget, evaluation and seeds, each run in its own process.

    Stopped at any moment, the same call goes on; runs that are done are kept.

    Args:
      methods: As words, with options behind a colon: `"memsfl:order=fifo,cut=2"`, `"./mine.py:mine"`.
      run: A run file, a config, or its sections by name; its method and its folder do not count.
      seeds: Runs of each method, from `train.seed` on.
      metric: accuracy, macro_f1, perplexity or loss; None for the task's own.
      target: A value of the metric whose cost is compared.
      jobs: Runs at once; None for as many as cores and memory allow.
      out: The folder of the comparison.
      on_round: Called with the name of the run and the row of each of its rounds.
      sections: Of a run file, laid over `run`: `train={"rounds": 2}`.

    Returns:
      The figures that compare.json holds.

    Raises:
      UserError: Something that is asked for cannot be, or a run failed; what is done is kept and reported.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from cutlayer import compare
      >>> from cutlayer.testing.tiny import save_inputs
      >>> here = save_inputs(Path(tempfile.mkdtemp()), rows=48)  # a tiny model, and texts to classify
      >>> results = compare(
      ...     "fedlora",
      ...     "splitlora:cut=2",
      ...     model=here / "model",
      ...     data={"path": here / "data", "max_length": 16},
      ...     train={"rounds": 1, "local_steps": 1, "batch_size": 4},
      ...     out=here / "compared",
      ... )
      >>> [figures.label for figures in results.methods], (here / "compared" / "report.html").exists()
      (['fedlora', 'splitlora:cut=2'], True)
    """
    if seeds < 1:
        raise ConfigError(f"compare: expected at least 1 as seeds, got {seeds}. Change it.")
    if jobs is not None and jobs < 1:
        raise ConfigError(f"compare: expected at least 1 as jobs, got {jobs}. Change it.")
    if not methods:
        raise ConfigError("compare: expected at least one method, got none. Name some: compare('memsfl', 'fedlora').")
    if "method" in sections:
        raise ConfigError("compare: expected methods as words in front, got a section method. Leave it out.")
    config = config_from(run, sections, "compare")
    first = config.train.seed
    comparison = Comparison(
        shared=config,
        for_all={},
        entries=parse_entries(methods),
        seeds=tuple(range(first, first + seeds)),
        metric=metric_of(config.data.task, metric, target),
        target=target,
        folder=Path(out),
    )
    told = _Told(on_round)
    results, failed = carried_out(comparison, jobs, lambda _runs, _jobs: told, _command(comparison), nullcontext())
    if failed or results is None:
        raise error_of(failed, len(comparison.runs()))
    return results


class _Told:
    """Shows nothing and tells the caller (`pool.Display`); an error of the caller's ends every run."""

    def __init__(self, on_round: OnRunRound | None) -> None:
        self._on_round = on_round

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def started(self, run: Run, rounds_done: int) -> None:
        pass

    def round_done(self, run: Run, row: dict[str, Any]) -> None:
        if self._on_round is not None:
            self._on_round(run.name, row)

    def ended(self, run: Run, problem: str | None) -> None:
        pass


def _command(comparison: Comparison) -> str:
    """The command that a person types to get the same."""
    words: Sequence[str] = [
        *("cutlayer", "compare", *(entry.label for entry in comparison.entries)),
        *("--run", str(comparison.folder / "compare.yaml"), "--seed", str(comparison.seeds[0])),
        *("--seeds", str(len(comparison.seeds)), "--metric", comparison.metric.name),
        *([] if comparison.target is None else ["--target", f"{comparison.target:g}"]),
        *("--out", str(comparison.folder)),
    ]
    return shlex.join(words)
