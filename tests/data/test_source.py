"""Reading tables: every source gives its rows, every bad input one line that says where and what to change."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict

from cutlayer.data.rows import Rows
from cutlayer.data.source import Splits, Tables, load_tables, load_validation, require_columns, split_off_validation
from cutlayer.errors import ConfigError, DataError

USUAL = Splits()
ROWS = [{"text": "good", "label": "1"}, {"text": "None", "label": "0"}, {"text": "a, b", "label": "1"}]


def write(path: Path, rows: list[dict[str, object]] = ROWS) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        Dataset.from_list(rows).to_pandas().to_csv(path, index=False)
    else:
        Dataset.from_list(rows).data.table.to_pandas().to_parquet(path)
    return path


def records(rows: Rows) -> list[dict[str, object]]:
    return [
        dict(zip(rows.column_names, cells, strict=True))
        for cells in zip(*map(rows.cells, rows.column_names), strict=True)
    ]


def refusal(data: Path | str, splits: Splits = USUAL) -> str:
    """The one line with which `load_tables` refuses."""
    with pytest.raises(DataError) as caught:
        load_tables(str(data), splits)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_file_gives_its_rows_and_no_validation(tmp_path: Path, suffix: str) -> None:
    tables = load_tables(str(write(tmp_path / f"mine{suffix}")))
    assert records(tables.train) == ROWS
    assert tables.validation is None


def test_a_folder_gives_both_and_mixes_formats(tmp_path: Path) -> None:
    write(tmp_path / "train.csv")
    write(tmp_path / "validation.jsonl", ROWS[:1])
    tables = load_tables(str(tmp_path))
    assert records(tables.train) == ROWS
    assert tables.validation is not None
    assert records(tables.validation) == ROWS[:1]
    assert tables.origin == str(tmp_path)


def test_a_name_with_wildcards_is_that_file_alone(tmp_path: Path) -> None:
    folder = tmp_path / "x[y]*"
    folder.mkdir()
    write(folder / "train.jsonl")
    assert records(load_tables(str(folder)).train) == ROWS


def test_reading_leaves_no_cache_no_output_and_the_settings_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("HF_DATASETS_CACHE", "HF_CACHE_HOME", "HF_MODULES_CACHE"):
        monkeypatch.setattr(datasets.config, name, str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    verbosity, bars = datasets.logging.get_verbosity(), datasets.is_progress_bar_enabled()
    load_tables(str(write(tmp_path / "mine.jsonl")))
    (tmp_path / "bad.jsonl").write_text("{\n")
    refusal(tmp_path / "bad.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "mine.jsonl"]
    assert capfd.readouterr() == ("", "")
    assert (datasets.logging.get_verbosity(), datasets.is_progress_bar_enabled()) == (verbosity, bars)


def test_the_built_in_reviews_share_nothing_between_train_and_validation() -> None:
    tables = load_tables("builtin:reviews")
    assert tables.validation is not None
    assert (len(tables.train), len(tables.validation)) == (3000, 600)
    assert not set(tables.train.cells("text")) & set(tables.validation.cells("text"))


def test_an_unknown_built_in_set() -> None:
    assert "builtin:meanings, got builtin:novels" in refusal("builtin:novels")


@pytest.mark.parametrize("name", ["./nowhere", "a/b/c", "nowhere.csv", "nowhere/", "~/nowhere-at-all"])
def test_a_path_that_is_not_there(name: str) -> None:
    assert f"data {name}: expected a folder or a file, got nothing there" in refusal(name)


def test_a_folder_without_train_lists_what_it_holds(tmp_path: Path) -> None:
    assert "got an empty folder" in refusal(tmp_path)
    write(tmp_path / "test.csv")
    write(tmp_path / "training.csv")
    assert "expected train.* (.jsonl, .json, .csv, .parquet), got test.csv, training.csv." in refusal(tmp_path)


def test_a_folder_with_two_train_files(tmp_path: Path) -> None:
    write(tmp_path / "train.csv")
    write(tmp_path / "train.jsonl")
    assert "expected one train.* file, got train.csv, train.jsonl" in refusal(tmp_path)


def test_an_unknown_extension_lists_the_known(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("good")
    assert "expected one of .jsonl, .json, .csv, .parquet, got .txt" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", ""),
        ("a.csv", ""),
        ("a.parquet", ""),
        ("a.jsonl", "\n \n"),
        ("a.csv", "text,label\n"),
        ("a.json", "[]"),
    ],
)
def test_an_empty_file(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert f"{name}: expected at least one row, got an empty file" in refusal(tmp_path / name)


@pytest.mark.parametrize("line", [b'{"text": "bad"', b"[1, 2]", b'"text"', b"nonsense"])
def test_a_malformed_jsonl_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b'\n{"text": "good"}\n')
    assert f"data {path}, line 3: expected one JSON object, got " in refusal(tmp_path)


def test_a_malformed_json_list(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "good"},\n {"text": ]\n')
    assert "a.json: expected a readable .json file, got " in refusal(tmp_path / "a.json")


@pytest.mark.parametrize("row", ["only one field", "one,2,three", '"never closed,1\nfine,1\n'])
def test_a_ragged_csv_row_is_named(tmp_path: Path, row: str) -> None:
    path = tmp_path / "train.csv"
    path.write_text(f'text,label\n"two\nlines",1\n{row}\nfine,1\n')
    assert f"data {path}, line 4: expected 2 fields as in the header, got " in refusal(path)


@pytest.mark.parametrize(("name", "line"), [("a.csv", "café,1"), ("a.jsonl", '{"text": "café"}')])
def test_a_line_that_is_not_utf8(tmp_path: Path, name: str, line: str) -> None:
    first = "text,label" if name == "a.csv" else '{"text": "good"}'
    (tmp_path / name).write_bytes(f"{first}\n{line}\n".encode("latin-1"))
    assert f"{name}, line 2: expected UTF-8, got 'utf-8' codec can't decode" in refusal(tmp_path / name)


def test_long_csv_fields_are_fine(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": "x" * 200_000, "label": "1"}]
    assert records(load_tables(str(write(tmp_path / "a.csv", rows))).train) == rows


def test_an_unreadable_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    assert "a.parquet: expected a readable .parquet file, got Parquet magic bytes not found" in refusal(
        tmp_path / "a.parquet"
    )


def test_a_hub_name_with_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def hub(*names: object, revision: str | None) -> DatasetDict:
        asked.append((*names, revision))
        return DatasetDict(
            train=Dataset.from_list(ROWS), validation=Dataset.from_list(ROWS[:1]), test=Dataset.from_list(ROWS[:2])
        )

    monkeypatch.setattr(datasets, "load_dataset", hub)
    tables = load_tables("owner/set:small")
    load_tables("set", Splits(revision="v1"))
    assert asked == [("owner/set", "small", None), ("set", None, "v1")]
    other = load_tables("set", Splits(train="validation", validation="test"))
    assert other.validation is not None
    assert (len(other.train), len(other.validation)) == (1, 2)
    assert len(load_validation("set", Splits(validation="test"))) == 2
    assert "expected a split 'tests', got train, validation, test. Name one: data.validation_split" in refusal(
        "set", Splits(validation="tests")
    )
    assert tables.validation is not None
    assert (len(tables.train), len(tables.validation), tables.origin) == (3, 1, "owner/set:small")


def test_a_hub_set_without_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: DatasetDict(test=Dataset.from_list(ROWS)))
    assert "expected a split 'train', got test" in refusal("owner/set")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ConnectionError("Couldn't reach"), "no network or hub. Name a local folder that holds train.*"),
        (
            datasets.exceptions.DatasetNotFoundError("No such set.\nReally."),
            "from the hub: No such set. Check the name",
        ),
        (ValueError("Config name is missing."), "from the hub: Config name is missing. Check"),
    ],
)
def test_a_hub_that_fails(monkeypatch: pytest.MonkeyPatch, error: Exception, says: str) -> None:
    def hub(*_: object, **__: object) -> None:
        logging.getLogger("datasets").error("noise")
        raise error

    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert says in refusal("owner/set")


def test_splitting_is_seeded_and_loses_no_row() -> None:
    rows = [{"text": str(number)} for number in range(50)]
    tables = Tables(Rows.of(rows), None, "made")
    first, again, other = (split_off_validation(tables, 0.2, seed) for seed in (0, 0, 1))
    assert first.validation is not None
    assert again.validation is not None
    assert other.validation is not None
    assert len(first.validation) == 10
    assert sorted([*first.train.cells("text"), *first.validation.cells("text")], key=int) == [
        row["text"] for row in rows
    ]
    assert records(first.validation) == records(again.validation) != records(other.validation)
    assert split_off_validation(first, 0.5, seed=7) is first


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_splitting_leaves_a_row_on_each_side(fraction: float) -> None:
    tables = split_off_validation(Tables(Rows.of(ROWS), None, "made"), fraction, seed=0)
    assert tables.validation is not None
    assert min(len(tables.train), len(tables.validation)) == 1


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_splitting_off_no_fraction(fraction: float) -> None:
    with pytest.raises(ConfigError, match="expected between 0 and 1"):
        split_off_validation(Tables(Rows.of(ROWS), None, "made"), fraction, seed=0)


def test_splitting_one_row() -> None:
    with pytest.raises(DataError, match="data made: expected at least 2 rows to split, got 1"):
        split_off_validation(Tables(Rows.of(ROWS[:1]), None, "made"), 0.5, seed=0)


def test_required_columns() -> None:
    rows = Rows.of(ROWS)
    require_columns(rows, ["text", "label"], "here")
    with pytest.raises(
        DataError, match=r"here: expected a column 'lable', got only 'text', 'label'. Did you mean 'label'"
    ):
        require_columns(rows, ["text", "lable"], "here")
    with pytest.raises(DataError, match="Name one of these"):
        require_columns(rows, ["zzz"], "here")


def test_real_data(shared_data: Path) -> None:
    tables = load_tables(str(shared_data / "emotion"))
    assert tables.validation is not None
    assert (len(tables.train), len(tables.validation)) == (16_000, 2_000)
    require_columns(tables.train, ["text", "label"], tables.origin)


def test_rows_to_judge_by_alone(tmp_path: Path) -> None:
    assert records(load_validation("builtin:reviews")) == records(load_tables("builtin:reviews").validation)
    (tmp_path / "train.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match=r"expected validation rows, got none\. Add validation\.\*"):
        load_validation(str(tmp_path))
    (tmp_path / "validation.jsonl").write_text('{"a": 2}\n')
    assert load_validation(str(tmp_path)).cells("a") == [2]
    assert load_validation(str(tmp_path / "train.jsonl")).cells("a") == [1]
    with pytest.raises(DataError, match="got nothing there"):
        load_validation(str(tmp_path / "absent.jsonl"))


def test_splits_of_a_folder_are_its_files(tmp_path: Path) -> None:
    for name, text in (("train", "a"), ("validation", "b"), ("test", "c"), ("more", "d")):
        write(tmp_path / f"{name}.jsonl", [{"text": text}])
    tables = load_tables(str(tmp_path), Splits(train="more", validation="test"))
    assert tables.validation is not None
    assert (tables.train.cells("text"), tables.validation.cells("text")) == (["d"], ["c"])
    assert load_validation(str(tmp_path), Splits(validation="test")).cells("text") == ["c"]
    assert "expected other.* (" in refusal(tmp_path, Splits(train="other"))
    assert "expected other.* (" in refusal(tmp_path, Splits(validation="other"))


@pytest.mark.parametrize(
    ("splits", "says"),
    [
        (Splits(train="test"), "data.split, data.validation_split: expected none for "),
        (Splits(validation="test"), "data.split, data.validation_split: expected none for "),
        (Splits(revision="main"), "data.revision: expected none for "),
    ],
)
def test_what_has_no_splits(tmp_path: Path, splits: Splits, says: str) -> None:
    for data in (write(tmp_path / "mine.jsonl"), "builtin:reviews"):
        with pytest.raises(ConfigError, match=re.escape(says)):
            load_tables(str(data), splits)
