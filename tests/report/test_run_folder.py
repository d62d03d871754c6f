import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from cutlayer.errors import CheckpointError, ConfigError
from cutlayer.report.json_lines import Position
from cutlayer.report.round_row import round_row
from cutlayer.report.run_folder import RunFolder, keeping_last_round
from cutlayer.types import Event, StepRecord

EVENTS = [
    Event("a", "forward", 0.1, 0.30000000000000004, round=0, step=2),
    Event("a", "upload", 0.3, 0.4, round=0, step=2, peer="server", num_bytes=512),
    Event("server", "aggregate", 0.4, 0.5, round=0, flops=0.1),
]


def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "runs" / "one").write_config("seed: 1\n")
    with pytest.raises(ConfigError, match=r"another --out, or continue that run with --resume .*one\.$"):
        RunFolder.create(tmp_path / "runs" / "one")


def test_a_folder_without_a_run_is_taken(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder.create(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"expected a folder that can be made and written, got .*file: "):
        RunFolder.create(tmp_path / "file")


def test_reopening_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected a run folder with config\.yaml"):
        RunFolder.reopen(tmp_path)
    RunFolder.create(tmp_path).write_config("seed: 1\n")
    assert RunFolder.reopen(tmp_path).read_config() == "seed: 1\n"


def test_events_are_one_line_each_and_come_back(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path)
    folder.append_events(EVENTS[:1])
    folder.append_events(iter(EVENTS[1:]))
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert lines[0] == (
        '{"bytes": 0, "end": 0.30000000000000004, "round": 0, "start": 0.1, "step": 2, "what": "forward", "who": "a"}'
    )
    assert list(json.loads(lines[1])) == ["bytes", "end", "peer", "round", "start", "step", "what", "who"]
    assert list(folder.read_events()) == EVENTS


def test_a_line_that_is_not_an_event_is_left_out(tmp_path: Path) -> None:
    """Only the report reads them."""
    folder = RunFolder.create(tmp_path)
    folder.append_events(EVENTS)
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write('{"who": "a"}\n{"torn\n')
    assert list(RunFolder(tmp_path).read_events()) == EVENTS


def test_lines_of_another_run_are_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"expected a folder without a run, got .* which holds metrics\.jsonl\."):
        RunFolder.create(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == "{}\n"


def test_what_devices_measured_comes_back(tmp_path: Path) -> None:
    """All of it, in the order in which it was measured; of a loss that there is none of, that there is none."""
    records = [
        StepRecord(round, name, 2, 8, 8, 0.1 + round, 1.5, 0.3, 1 / 3, 2**60 + 1, 200, ranks=(8, 0, 4), late=True)
        for round in (9, 10)
        for name in ("phone-1", "phone-10", "phone-2", "ü")
    ]
    idle = StepRecord(10, "üz", 0, 0, 0, math.nan, 0.0, 0.0, 0.0, 0, 0)
    folder = RunFolder.create(tmp_path)
    times = {"virtual_seconds": 0.0, "wall_seconds": 0.0, "server_memory_bytes": 0}
    folder.append_metrics(round_row(records[:4], round=9, **times, validation={}))  # type: ignore[arg-type]
    folder.append_metrics(round_row([*records[4:], idle], round=10, **times, validation={}))  # type: ignore[arg-type]
    *back, last = RunFolder(tmp_path).read_records()
    assert back == records
    assert math.isnan(last.loss)
    assert replace(last, loss=0.0) == replace(idle, loss=0.0)


WHOLE = {"round": 1, "late": 0, "devices": {}, "validation": {}, "virtual_seconds": 1.5}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"round": None}, "expected a JSON object on one line, with round, late, devices"),
        ({"validation": None}, "expected a JSON object on one line, with round, late, devices"),
        ({"devices": {"a": {"ranks": [1]}}}, "expected on every line a round and all that its devices measured"),
    ],
)
def test_a_line_that_is_not_a_rounds_is_refused(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(WHOLE | changes) + "\n")
    with pytest.raises(CheckpointError, match=said):
        list(RunFolder(tmp_path).read_records())


def test_a_rewound_run_that_repeats_its_rounds_has_the_same_bytes(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path)
    folder.append_metrics({"round": 0, "loss": 1.5})
    folder.append_events(EVENTS[:1])
    folder.append_samples([{"rounds": 0, "prompt": "why", "text": "so"}])
    folder.append_contributions([{"round": 0, "device": "a", "norm": 0.1}])
    positions = folder.positions()
    folder.append_metrics({"round": 1, "loss": 1.25})
    folder.append_events(EVENTS[1:])
    folder.append_samples([{"rounds": 1, "prompt": "why", "text": "because"}])
    folder.append_contributions([{"round": 1, "device": "a", "norm": 0.2}])
    whole = [(tmp_path / name).read_bytes() for name in positions]

    with open(tmp_path / "events.jsonl", "ab") as file:
        file.write(b'{"bytes": 0, "en')  # killed here
    folder = RunFolder(tmp_path)
    folder.rewind(positions)
    assert folder.positions() == positions
    folder.append_metrics({"loss": 1.25, "round": 1})
    folder.append_events(EVENTS[1:])
    folder.append_samples([{"rounds": 1, "prompt": "why", "text": "because"}])
    folder.append_contributions([{"round": 1, "device": "a", "norm": 0.2}])
    assert [row["text"] for row in folder.read_samples()] == ["so", "because"]
    assert [row["norm"] for row in folder.read_contributions()] == [0.1, 0.2]
    assert [(tmp_path / name).read_bytes() for name in positions] == whole


def test_a_refused_rewind_touches_neither_file(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path)
    folder.append_metrics({"round": 0})
    folder.append_events(EVENTS)
    before = folder.positions()
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: expected at least"):
        folder.rewind(before | {"events.jsonl": Position(), "metrics.jsonl": before["metrics.jsonl"].after(b"\n")})
    assert folder.positions() == before


def test_a_checkpoint_that_remembers_other_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"got \['metrics.jsonl'\]"):
        RunFolder(tmp_path).rewind({"metrics.jsonl": Position()})


def test_the_summary_is_sorted_json_without_nan(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path)
    folder.write_summary({"seed": 1, "metrics": {"perplexity": float("inf"), "loss": 0.1}})
    text = (tmp_path / "summary.json").read_text()
    assert json.loads(text) == {"metrics": {"loss": 0.1, "perplexity": None}, "seed": 1}
    assert text.endswith("}\n")
    assert text.index('"metrics"') < text.index('"seed"')


def test_what_only_people_are_shown_may_be_absent_or_damaged(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path)
    assert (folder.read_about(), folder.read_summary()) == ({}, {})
    folder.write_about({"blocks": 6})
    folder.write_summary({"seed": 1})
    folder.write_page("<!doctype html>")
    assert (folder.read_about(), folder.read_summary()) == ({"blocks": 6}, {"seed": 1})
    assert (tmp_path / "report.html").read_text() == "<!doctype html>"
    (tmp_path / "about.json").write_text("[1]")
    (tmp_path / "summary.json").write_text('{"torn')
    assert (folder.read_about(), folder.read_summary()) == ({}, {})


def test_the_report_and_the_scalars_are_in_the_folder(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path)
    folder.write_report("<svg/>")
    folder.report_to(["tensorboard"], {})
    folder.scalars({"round": 0, "loss": 1.0})
    folder.close()
    assert (tmp_path / "report.svg").read_text() == "<svg/>"
    assert [path.name.split(".")[2] for path in (tmp_path / "tensorboard").iterdir()] == ["tfevents"]


def test_who_reports_to_nobody_has_no_file_of_a_tracker(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path)
    folder.report_to([], {})
    folder.scalars({"round": 0, "loss": 1.0})
    folder.on_round({"round": 0, "loss": 1.0})
    folder.close()
    assert list(tmp_path.iterdir()) == []


def test_a_tensorboard_that_fails_is_told_once_and_ends_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder.create(tmp_path)
    (tmp_path / "tensorboard").write_text("no folder")
    folder.report_to(["tensorboard"], {})
    for round in (0, 1):
        folder.scalars({"round": round, "loss": 1.0})
    folder.close()
    assert [message.startswith("tensorboard: ") for message in caplog.messages] == [True]


def test_the_last_round_of_which_there_are_events() -> None:
    """Work may be of a round before the one in which it counts, so the run's last round may have none."""
    events = [Event("phone", "forward", float(n), n + 1.0, round) for n, round in enumerate((0, 1, 0, 3, 1, 3))]
    kept: list[Event] = []
    assert list(keeping_last_round(events, kept)) == events
    assert kept == [events[3], events[5]]
