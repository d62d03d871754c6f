"""Files are read as `datasets` reads them, without it. What a bad file is told is in `test_source.py`."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pyarrow.parquet as parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Value, load_dataset
from datasets.exceptions import DatasetGenerationError
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.data.readers import read_file
from cutlayer.errors import DataError

# Only an empty csv field is null: pandas would also take the words "None", "null" and "NA" out of people's texts.
# And what a field of a csv says is told by the role of its column: all of them are texts.
CSV: dict[str, Any] = {"keep_default_na": False, "na_values": [""], "dtype": str}


def by_datasets(path: Path) -> dict[str, list[Any]]:
    """The columns as `datasets` reads them."""
    if path.suffix == ".csv":  # by pandas, whose types it does not let one choose
        frame = pandas.read_csv(path, **CSV).astype(object)
        return {str(name): [None if pandas.isna(cell) else cell for cell in frame[name]] for name in frame.columns}
    with tempfile.TemporaryDirectory() as cache:
        rows = load_dataset("json", data_files=str(path), split="train", cache_dir=cache, keep_in_memory=True)
    return {name: rows[name][:] for name in rows.column_names}


def same(ours: object, theirs: object) -> bool:
    """Whether two cells mean the same. Whole numbers among nulls or fractions are fractions there: none is learnt."""
    if isinstance(theirs, float) and isinstance(ours, int | float) and not isinstance(ours, bool):
        return math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-9) or (math.isnan(ours) and math.isnan(theirs))
    if isinstance(theirs, dict | list):  # there objects have the keys of all rows; none is a text
        return type(ours) is type(theirs)
    return type(ours) is type(theirs) and ours == theirs


def check_same(path: Path) -> None:
    rows, columns = read_file(path), by_datasets(path)
    assert rows.column_names == list(columns)
    for name, theirs in columns.items():
        ours = rows.cells(name)
        assert len(ours) == len(theirs)
        assert all(map(same, ours, theirs)), (name, ours, theirs)


def told(path: Path) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(DataError) as caught:
        read_file(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------ JSON

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(-1e9, 1e9), st.text())
CELLS = st.sampled_from(
    [
        st.text(),
        st.text() | st.none(),
        st.integers(0, 9),
        st.integers(0, 9) | st.none(),
        st.integers(-9, 9) | st.floats(-9, 9),
        st.booleans(),
        SCALARS,
        st.lists(st.integers(0, 9), max_size=2) | st.none(),
        st.dictionaries(st.sampled_from("xy"), st.integers(0, 9)),
    ]
)


@st.composite
def records(draw: st.DrawFn) -> list[dict[str, Any]]:
    kinds = {name: draw(CELLS) for name in ("text", "label", "more")[: draw(st.integers(1, 3))]}
    rows = [{name: draw(kind) for name, kind in kinds.items()} for _ in range(draw(st.integers(1, 5)))]
    if draw(st.booleans()):  # a column that a row lacks
        rows[-1].pop(next(iter(kinds)))
    return rows if any(rows) else [{"text": "a"}]


def one_per_line(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


WAYS = {
    "one per line": one_per_line,
    "unescaped": lambda rows: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
    "no last line end": lambda rows: one_per_line(rows).removesuffix("\n"),
    "blank lines": lambda rows: "\n" + one_per_line(rows).replace("\n", "\n \n"),
    "from Windows": lambda rows: "\ufeff" + one_per_line(rows).replace("\n", "\r\n"),
    "over lines": lambda rows: "".join(json.dumps(row, indent=1) + "\n" for row in rows),
    "side by side": lambda rows: "".join(map(json.dumps, rows)),
    "a list": json.dumps,
    "a list over lines": lambda rows: json.dumps(rows, indent=2),
}

# `datasets` takes numbers beside texts or truth values in one column, but not written like this.
NO_MIXED_COLUMNS = ("blank lines", "over lines", "side by side")


@settings(max_examples=60, deadline=None)
@given(rows=records(), way=st.sampled_from(sorted(WAYS)), suffix=st.sampled_from(["json", "jsonl"]))
def test_json_means_what_it_did(tmp_path_factory: pytest.TempPathFactory, rows: list[Any], way: str, suffix: str):
    path = tmp_path_factory.mktemp("json") / f"a.{suffix}"
    path.write_bytes(WAYS[way](rows).encode())
    refused = (ValueError, DatasetGenerationError) if way in NO_MIXED_COLUMNS else ()
    with suppress(*refused):
        check_same(path)


def test_a_list_of_texts(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('["x",\n "y"]')
    check_same(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": 1, "a": 2}\n', "line 2: expected one JSON object, got the name 'a' twice in one"),
        ("a.jsonl", '{"a": "\\ud83d"}\n', "line 1: expected one JSON object, got 'utf-8' codec can't encode"),
        ("a.jsonl", '{"a": 1},\n{"a": 2},\n', "line 1: expected one JSON object, got Extra data"),
        ("a.jsonl", '{"a": 1}\n[{"a": 2}]\n', "line 2: expected one JSON object, got a list"),
        ("a.jsonl", '{"a": ' + "[" * 100_000 + "\n", "line 1: expected one JSON object, got maximum recursion"),
        ("a.json", '[{"a": "\\ud83d"}]', "expected a readable .json file, got 'utf-8' codec can't encode"),
        ("a.json", '[{"a": 1}, ["b"]]', "expected a list of JSON objects, got a list as item 1 (from 0)"),
        ("a.json", "{}\n{}\n", "expected at least one row"),
    ],
)
def test_json_that_is_none(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    assert says in told(tmp_path / name)


def test_texts_that_look_like_dates_are_texts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": "2026-01-01"}\n')
    assert read_file(tmp_path / "a.jsonl").cells("a") == ["2026-01-01"]


# ------------------------------------------------------------------ CSV

LETTERS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=8)
FIELDS = st.sampled_from(
    [
        LETTERS,
        st.text("ab \",'\n\t;", max_size=6),
        st.sampled_from(["0", "1", "007", "+2", " 3", "4 ", "-5", ""]),
        st.sampled_from(["0", "1.5", ".5", "2.", "1e3", "-1E-2", " 7 ", "inf", "-Infinity", ""]),
        st.sampled_from(["True", "false", "TRUE", "fALSE", ""]),
        st.sampled_from(["1", "1.5", "true", "x"]),
        st.sampled_from(["nan", "None", "NA", "null", "1_0", "1e", "0x1", "--1", "٣", "true ", "1"]),
    ]
)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), end=st.sampled_from(["\n", "\r\n"]), quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_csv_means_what_it_did(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, end: str, quoting: int):
    kinds = data.draw(st.lists(FIELDS, min_size=2, max_size=4))
    rows = [[data.draw(kind) for kind in kinds] for _ in range(data.draw(st.integers(1, 5)))]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator=end, quoting=quoting)  # type: ignore[arg-type]
    writer.writerows([["text", "label", "c", "d"][: len(kinds)], *rows])
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(data.draw(st.sampled_from(["", "\ufeff"])).encode() + file.getvalue().encode())
    check_same(path)


@pytest.mark.parametrize(
    "content",
    [
        ",text,label\n0,a,1\n1,b,0\n",  # as pandas writes its index
        "a,a,a.1,a\n1,2,3,4\n",
        ' a ,"b,\nc"\n1,2\n',
        "text\none\n\n  \ntwo\n",
        'text\n""\nx\n',
        'a,b\n"x"y,z "q" w\n',
        "a,b\r1,2\r3,4\r",
        "a,b\n\n1,2",
        "a;b\n1;2\n",
    ],
)
def test_csv_that_is_seen(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.csv").write_bytes(content.encode())
    check_same(tmp_path / "a.csv")


def test_a_quote_that_is_never_closed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"a\nb",1\nc,"1\nd\n')
    assert "a.csv, line 4: expected a closing quote, got the file's end. Close it." in told(tmp_path / "a.csv")


# ------------------------------------------------------------------ what it is for


@pytest.mark.parametrize("name", ["emotion", "gsm8k"])
def test_real_files_mean_what_they_did(shared_data: Path, tmp_path: Path, name: str) -> None:
    rows = read_file(shared_data / name / "validation.parquet")
    cells = list(zip(*map(rows.cells, rows.column_names), strict=True))
    records = [dict(zip(rows.column_names, row, strict=True)) for row in cells]
    (tmp_path / "a.jsonl").write_text(one_per_line(records))
    (tmp_path / "a.json").write_text(json.dumps(records, indent=1))
    with open(tmp_path / "a.csv", "w", newline="") as file:
        csv.writer(file).writerows([rows.column_names, *cells])
    for path in tmp_path.iterdir():
        check_same(path)
        assert read_file(path).cells(rows.column_names[0]) == rows.cells(rows.column_names[0])


# ------------------------------------------------------------------ Parquet


def test_a_column_that_nobody_asks_for_may_be_anything(tmp_path: Path) -> None:
    """Columns that `datasets` has no type for: a map, and an extension."""
    ids = pyarrow.ExtensionArray.from_storage(pyarrow.uuid(), pyarrow.array([b"0" * 16] * 2, pyarrow.binary(16)))
    pairs = pyarrow.array([[("a", 1)], []], pyarrow.map_(pyarrow.string(), pyarrow.int32()))
    columns = {"id": ids, "pairs": pairs, "text": ["a", None], "label": pyarrow.array(["x", "y"]).dictionary_encode()}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    rows = read_file(tmp_path / "a.parquet")
    assert (len(rows), rows.column_names) == (2, list(columns))
    assert (rows.cells("text"), rows.select([1]).cells("label")) == (["a", None], ["y"])


def test_what_datasets_wrote_keeps_its_names_of_classes(tmp_path: Path) -> None:
    features = Features(text=Value("string"), label=ClassLabel(names=["good", "bad"]), more=[Value("int32")])
    rows = Dataset.from_dict({"text": ["a"], "label": [1], "more": [[3]]}, features=features)
    rows.to_parquet(tmp_path / "a.parquet")
    read = read_file(tmp_path / "a.parquet")
    assert read.class_names == {"label": ("good", "bad")}
    assert (read.cells("label"), read.cells("more")) == ([1], [[3]])


def test_a_column_that_is_damaged_is_named(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"text": ["a" * 50] * 9, "label": ["x"] * 9}), tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[:4] + bytes(20) + content[24:])
    rows = read_file(tmp_path / "a.parquet")
    assert rows.cells("label") == ["x"] * 9
    with pytest.raises(DataError, match=r"a\.parquet, column 'text': expected cells that can be read, got "):
        rows.cells("text")


def test_a_device_loads_no_library_of_tables_or_charts(tmp_path: Path) -> None:
    """Not scipy either, but that transformers does where it is installed."""
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 1}\n')
    (tmp_path / "a.csv").write_text("text,label\na,1\n")
    program = (
        "import sys, cutlayer.joining\n"
        "from cutlayer.data.source import load_tables\n"
        "for data in sys.argv[1:]: assert load_tables(data).train.cells('text')\n"
        "heavy = 'datasets', 'pandas', 'pyarrow', 'matplotlib', 'tensorboard', 'sklearn'\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    files = [str(tmp_path / name) for name in ("a.jsonl", "a.csv")]
    done = subprocess.run(
        [sys.executable, "-c", program, *files, "builtin:reviews"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
