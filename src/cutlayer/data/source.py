"""Where rows come from: a folder, a file, the hub, or the built-in reviews; every bad input is one line.

Reading is left to the `datasets` library. It is imported inside the functions because that import takes over a
second, which commands that read no data should not pay.
"""

from __future__ import annotations

import csv
import difflib
import glob
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cutlayer.data import reviews
from cutlayer.errors import ConfigError, DataError

if TYPE_CHECKING:
    from datasets import Dataset

BUILTIN_REVIEWS = "builtin:reviews"
BUILTIN_SEED, BUILTIN_TRAIN, BUILTIN_VALIDATION = 0, 3000, 600

# Only an empty csv field is null: pandas would also take the words "None", "null" and "NA" out of people's texts.
_READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".csv": ("csv", {"keep_default_na": False, "na_values": [""]}),
    ".parquet": ("parquet", {}),
}
_KNOWN = ", ".join(_READERS)


@dataclass(frozen=True)
class Columns:
    """Which column plays which part; None where the task does not use it."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    prompt: str | None = None
    answer: str | None = None


@dataclass(frozen=True)
class Tables:
    """The rows to learn from, those to judge by (None where the source has none), and where they came from."""

    train: Dataset
    validation: Dataset | None
    origin: str


def load_tables(data: str) -> Tables:
    """Reads `data`: a folder with `train.*` and maybe `validation.*`, one file, `builtin:reviews` or a hub name.

    A hub name may carry a configuration, as in `nyu-mll/glue:sst2`. Local files are read into memory, and nothing
    is left in the cache of the `datasets` library.

    Raises:
      DataError: nothing is there, or it cannot be read.
    """
    path = Path(data).expanduser()
    if data.startswith("builtin:"):
        return _load_builtin(data)
    if path.is_dir():
        return _load_folder(path)
    if path.is_file():
        return Tables(_read_file(path), None, data)
    if _looks_like_a_path(data):
        raise DataError(f"data {data}: expected a folder or a file, got nothing there. Check the path.")
    return _load_from_hub(data)


def load_validation(data: str) -> Dataset:
    """Reads the rows to judge by and no others: of a folder its `validation.*`, of one file all, else that split.

    Raises:
      DataError: nothing is there, or it cannot be read.
    """
    path = Path(data).expanduser()
    if path.is_file():
        return _read_file(path)
    file = _the_file(path, "validation") if path.is_dir() else None
    rows = _read_file(file) if file else None if path.is_dir() else load_tables(data).validation
    if rows is None:
        raise DataError(f"data {data}: expected validation rows, got none. Add validation.* ({_KNOWN}) or name a file.")
    return rows


def split_off_validation(tables: Tables, fraction: float, seed: int) -> Tables:
    """Gives tables that have a validation set: the one there is, else a seeded `fraction` of the training rows.

    Raises:
      ConfigError: `fraction` is not between 0 and 1.
      DataError: too few rows for at least one on each side.
    """
    if tables.validation is not None:
        return tables
    if not 0 < fraction < 1:
        raise ConfigError(f"validation fraction: expected between 0 and 1, got {fraction}. Try 0.1.")
    num_rows = len(tables.train)
    if num_rows < 2:
        raise DataError(f"data {tables.origin}: expected at least 2 rows to split, got {num_rows}. Add rows.")
    num_validation = min(max(1, round(num_rows * fraction)), num_rows - 1)
    order = np.random.default_rng(seed).permutation(num_rows)
    validation, train = np.sort(order[:num_validation]), np.sort(order[num_validation:])
    return replace(tables, train=tables.train.select(train), validation=tables.train.select(validation))


def require_columns(dataset: Dataset, names: Sequence[str], where: str) -> None:
    """Raises DataError for the first of `names` that `dataset` lacks, with the columns it has."""
    there = list(dataset.column_names)
    for name in names:
        if name not in there:
            close = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
            hint = f"Did you mean {close[0]!r}?" if close else "Name one of these."
            raise DataError(f"{where}: expected a column {name!r}, got only {', '.join(map(repr, there))}. {hint}")


def _load_builtin(data: str) -> Tables:
    from datasets import Dataset

    if data != BUILTIN_REVIEWS:
        raise DataError(f"data: expected {BUILTIN_REVIEWS}, got {data}. There is no other built-in data set.")
    rows = reviews.generate(BUILTIN_TRAIN + BUILTIN_VALIDATION, BUILTIN_SEED)  # all different: nothing is shared
    train, validation = rows[:BUILTIN_TRAIN], rows[BUILTIN_TRAIN:]
    return Tables(Dataset.from_list(train), Dataset.from_list(validation), data)


def _load_folder(folder: Path) -> Tables:
    train = _the_file(folder, "train")
    if train is None:
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "an empty folder"
        raise DataError(f"data {folder}: expected train.* ({_KNOWN}), got {found}. Rename or add the file.")
    validation = _the_file(folder, "validation")
    return Tables(_read_file(train), _read_file(validation) if validation else None, str(folder))


def _the_file(folder: Path, stem: str) -> Path | None:
    found = sorted(path for path in folder.glob(f"{stem}.*") if path.is_file())
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"data {folder}: expected one {stem}.* file, got {names}. Keep one of them.")
    return found[0] if found else None


def _read_file(path: Path) -> Dataset:
    from datasets import load_dataset

    if path.suffix not in _READERS:
        raise DataError(f"data {path}: expected one of {_KNOWN}, got {path.suffix or 'no extension'}. Convert it.")
    if path.stat().st_size == 0:
        raise _empty(path)
    reader, options = _READERS[path.suffix]
    if reader != "parquet":
        _check_utf8(path)
    if reader == "csv":
        _check_csv(path)
    files = {"train": glob.escape(str(path.absolute()))}
    with tempfile.TemporaryDirectory(prefix="cutlayer-data-") as cache, _quietly():
        try:
            # In memory, because the cache folder goes away and some systems cannot remove mapped files.
            return load_dataset(
                reader, data_files=files, split="train", cache_dir=cache, keep_in_memory=True, **options
            )
        except Exception as error:  # the readers have no common base class
            if reader == "json":
                _check_json(path)
            raise _unreadable(path, error) from error


def _empty(path: Path) -> DataError:
    return DataError(f"data {path}: expected at least one row, got an empty file. Fill it or name another.")


def _unreadable(path: Path, error: Exception) -> DataError:
    if "corresponds to no data" in str(error):
        return _empty(path)
    cause = _first_line(error.__cause__ or error)
    return DataError(f"data {path}: expected a readable {path.suffix} file, got {cause}. Repair it.")


def _check_utf8(path: Path) -> None:
    """Raises DataError for the first line in another encoding: the json reader would let some through."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"data {path}, line {number}: expected UTF-8, got {_first_line(error)}. Save the file as UTF-8."
                ) from error


def _check_csv(path: Path) -> None:
    """Raises DataError for a row with more or fewer fields than the header, which readers fill in silently."""
    limit = csv.field_size_limit(2**31 - 1)  # long texts are no error
    row_starts, width = 1, 0
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            for fields in rows:
                width = width or len(fields)
                if fields and len(fields) != width:
                    raise DataError(
                        f"data {path}, line {row_starts}: expected {width} fields as in the header, "
                        f"got {len(fields)}. Quote fields that hold commas or line breaks."
                    )
                row_starts = rows.line_num + 1
    finally:
        csv.field_size_limit(limit)


def _check_json(path: Path) -> None:
    """Raises DataError for the first line that is no JSON object; says nothing where all are."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1 and path.suffix == ".json" and line.lstrip().startswith(b"["):
                return  # one list over many lines: lines say nothing
            try:
                row = json.loads(line.decode("utf-8-sig")) if line.strip() else {}
            except ValueError as error:
                got = _first_line(error)
            else:
                if isinstance(row, dict):
                    continue
                got = f"a {type(row).__name__}"
            raise DataError(f"data {path}, line {number}: expected one JSON object, got {got}. Repair the line.")


def _load_from_hub(data: str) -> Tables:
    import datasets

    name, _, config = data.partition(":")
    with _quietly():
        try:
            splits = datasets.load_dataset(name, config or None)
        except ConnectionError as error:
            raise DataError(
                f"data {data}: expected a local folder, a file or a reachable hub, got no such path and no network "
                "or hub. Name a local folder that holds train.* and validation.*."
            ) from error
        except Exception as error:  # the hub client has no common base class
            raise DataError(
                f"data {data}: expected a local folder, a file or a hub data set, got no such path, and from the hub: "
                f"{_first_line(error)}. Check the name, or its configuration after a colon."
            ) from error
    if "train" not in splits:
        raise DataError(f"data {data}: expected a split 'train', got {', '.join(splits)}. Save it as local files.")
    return Tables(splits["train"], splits.get("validation"), data)


def _looks_like_a_path(data: str) -> bool:
    """Hub names are `name` or `owner/name`: whatever is not that can only have meant a path."""
    return (
        data.startswith((".", "/", "~"))
        or data.endswith("/")
        or data.count("/") > 1
        or "\\" in data
        or Path(data).suffix in _READERS
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextmanager
def _quietly() -> Iterator[None]:
    """Silences the progress bars and logs of `datasets` and the hub client: their errors come back as ours."""
    import datasets
    from huggingface_hub import logging as hub_logging

    loggers = (datasets.logging, hub_logging)
    verbosities, bars = [each.get_verbosity() for each in loggers], datasets.is_progress_bar_enabled()
    for each in loggers:
        each.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        for each, verbosity in zip(loggers, verbosities, strict=True):
            each.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()
