"""Wall time and memory of a simulated run of many devices, each run in a process of its own.

    python benchmarks/scale.py

A whole run as `cutlayer train` makes it: data spread over the fleet, a part of the fleet drawn each round, plans from
measurements (legend), modelled machines and links, evaluation and a checkpoint every round. The model is small, so that
what is measured is what each device costs, not its arithmetic. Times are of the whole run. Peaks are VmHWM, and "base"
is what the weights of the one base model take, however many devices there are.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from cutlayer.config import read_config
from cutlayer.data.reviews import generate
from cutlayer.fleet.profile import load_fleet
from cutlayer.report.listing import Listing
from cutlayer.report.progress import NoProgress
from cutlayer.report.summary import peak_memory_bytes
from cutlayer.run.inputs import prepare
from cutlayer.run.simulated import simulate
from models import SHAPES, model_folder
from tables import in_fresh_process, publish

SAMPLES_PER_DEVICE = 8
METHOD = "legend"
LIMIT_SECONDS, LIMIT_BYTES = 600, 4 * 2**30
"""phones-1000, 50 devices a round, 20 rounds, a tiny model, on two cores."""


@dataclass(frozen=True, slots=True)
class Row:
    """One run."""

    fleet: str
    devices: int
    cohort: int
    rounds: int
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    base_bytes: int
    checkpoint_bytes: int


def play(fleet: str, cohort: int, rounds: int, model: str) -> Row:
    """One run, from its config to its adapter."""
    num_devices = len(load_fleet(fleet).devices)
    wall, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        texts = generate(SAMPLES_PER_DEVICE * num_devices, seed=1)
        data, out = Path(folder) / "data", Path(folder) / "run"
        data.mkdir()
        for split, rows in (("train", texts), ("validation", generate(100, seed=2))):
            (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        values = {
            "model.name": str(_with_tokenizer(model, Path(folder) / "model", [row["text"] for row in texts])),
            "data.path": str(data),
            "data.max_length": 32,
            "train.rounds": rounds,
            "train.local_steps": 2,
            "train.batch_size": 4,
            "method.name": METHOD,
            "method.fraction": cohort / num_devices,
            "fleet": fleet,
            "out": str(out),
        }
        inputs = prepare(read_config(None, values=values))
        simulate(inputs, NoProgress())
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert all(len(row["devices"]) == cohort for row in metrics), "as many as were asked for"
        checkpoint = sum(path.stat().st_size for path in (out / "checkpoint").iterdir())
    peak = peak_memory_bytes()
    return Row(fleet, num_devices, cohort, rounds, wall, cpu, peak, inputs.base.weights.bytes_read, checkpoint)


def _with_tokenizer(model: str, folder: Path, texts: Sequence[str]) -> Path:
    """A random model beside a tokenizer of the commonest words."""
    shutil.copytree(model_folder(model), folder)
    counted = Counter(word for text in texts for word in text.split())
    common = [word for word, _ in counted.most_common(SHAPES[model].vocab_size - 2)]
    words = {word: index for index, word in enumerate(["<pad>", "<unk>", *common])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    return folder


def table(rows: Sequence[Row]) -> Listing:
    """Every run on a line."""
    result = Listing(title=f"simulated runs of {METHOD} (aim: phones-1000 below {LIMIT_SECONDS} s and 4 GiB)")
    result.add_column("fleet")
    for heading in (
        "devices",
        "cohort",
        "rounds",
        "wall s",
        "cpu s",
        "peak MiB",
        "base MiB",
        "checkpoint MiB",
    ):
        result.add_column(heading, justify="right")
    for row in rows:
        sizes = (row.peak_bytes, row.base_bytes, row.checkpoint_bytes)
        result.add_row(
            row.fleet,
            *map(str, (row.devices, row.cohort, row.rounds)),
            *(f"{seconds:.1f}" for seconds in (row.wall_seconds, row.cpu_seconds)),
            *(f"{size / 2**20:.1f}" for size in sizes),
        )
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fleets", nargs="+", default=["memsfl-six", "jetson-80", "phones-1000"])
    parser.add_argument("--cohort", type=int, default=50, help="devices a round, at most")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--model", choices=["tiny", "nano"], default="nano")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/scale.json"))
    args = parser.parse_args(arguments)
    model_folder(args.model)
    rows = [
        in_fresh_process(play, fleet, min(args.cohort, len(load_fleet(fleet).devices)), args.rounds, args.model)
        for fleet in args.fleets
    ]
    settings = {name: value for name, value in vars(args).items() if name != "json"}
    publish([table(rows)], args.json, settings, {"runs": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
