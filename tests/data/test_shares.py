"""Rows written for a device are the samples that it would have had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from cutlayer.data.rows import Rows
from cutlayer.data.shares import write_rows
from cutlayer.data.source import Columns, load_tables
from cutlayer.data.tasks import Ragged, Task, task_from
from cutlayer.testing.tiny import save_tiny_tokenizer

TEXTS = ["n1 n2", "n7", ' "n3"\tn4\n\u2028 \0', "null", "n5 " * 30, "n6"]
PLAIN = Columns(text="text", label="label")


def lines_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def samples_of(rows: Rows, task: Task, tmp_path: Path):
    return task.encode(rows, AutoTokenizer.from_pretrained(save_tiny_tokenizer(tmp_path / "tokenizer")))


@pytest.mark.parametrize(
    ("cells", "named", "names"),
    [
        (["b", "a", "c", "a", "b", "c"], {}, ("a", "b", "c")),
        ([2, 0, 1, 0, 2, 1], {}, ("0", "1", "2")),
        ([2, 0, 1, 0, 2, 1], {"label": ("z", "y", "x")}, ("z", "y", "x")),
    ],
)
def test_a_part_reads_back_as_the_same_samples(cells: list[object], named, names: tuple[str, ...], tmp_path: Path):
    rows = Rows({"text": TEXTS, "label": cells, "diary": ["mine"] * 6}, named)
    task = task_from("classification", PLAIN, 16).fitted(rows)
    assert task.label_names == names
    samples, part = samples_of(rows, task, tmp_path), [0, 2, 4, 5]
    write_rows(tmp_path / "part.jsonl", rows, samples, PLAIN, names, part)
    assert [line.keys() for line in lines_of(tmp_path / "part.jsonl")] == [{"text", "label"}] * 4, (
        "no other column left"
    )
    again = samples_of(load_tables(str(tmp_path / "part.jsonl")).train, task, tmp_path)
    assert [again.input_ids[i] for i in range(4)] == [samples.input_ids[row] for row in part]
    assert again.classes == [samples.classes[row] for row in part]


def test_rows_that_were_dropped_are_in_no_part(tmp_path: Path):
    rows = Rows({"q": ["", "n2", "n3"]})
    columns = Columns(text="q")
    samples = samples_of(rows, task_from("causal-lm", columns, 8), tmp_path)
    assert samples.num_dropped == 1
    assert isinstance(samples.labels, Ragged)
    write_rows(tmp_path / "all.jsonl", rows, samples, columns, ())
    assert lines_of(tmp_path / "all.jsonl") == [{"q": "n2"}, {"q": "n3"}]
    write_rows(tmp_path / "one.jsonl", rows, samples, columns, (), [1])
    assert lines_of(tmp_path / "one.jsonl") == [{"q": "n3"}]


def test_chats_come_back_as_they_are(tmp_path: Path) -> None:
    chats = [[{"role": "user", "content": "n1"}, {"role": "assistant", "content": f"n{number}"}] for number in range(3)]
    rows, columns = Rows({"messages": chats, "site": [1, 2, 3]}), Columns(messages="messages")
    template = "{% for m in messages %}{{ m.content + ' ' }}{% endfor %}"
    samples = samples_of(rows, task_from("causal-lm", columns, 8, template), tmp_path)
    write_rows(tmp_path / "part.jsonl", rows, samples, columns, (), [2, 0])
    assert lines_of(tmp_path / "part.jsonl") == [{"messages": chats[2]}, {"messages": chats[0]}]


def test_the_same_samples_are_the_same_bytes(tmp_path: Path):
    rows = Rows({"text": TEXTS, "label": list("abcabc")})
    samples = samples_of(rows, task_from("classification", PLAIN, 16).fitted(rows), tmp_path)
    for name in ("one", "other"):
        write_rows(tmp_path / name, rows, samples, PLAIN, ("a", "b", "c"))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*")) == ["one", "other", "tokenizer"]
