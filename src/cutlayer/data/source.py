"""The sources of rows: a folder, a file, the hub, or what is built in; every bad input is one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as shortened

import numpy as np

from cutlayer.data import extraction, meanings, reviews
from cutlayer.data.readers import KNOWN, SUFFIXES, first_line, quiet_datasets, read_file
from cutlayer.data.rows import Rows, joined
from cutlayer.errors import ConfigError, DataError
from cutlayer.reading import local, look_for_hub, reading

BUILTIN = {
    "builtin:reviews": reviews.generate,
    "builtin:extraction": extraction.generate,
    "builtin:meanings": meanings.generate,
}
READABLE = "a folder or a file that can be read"
BUILTIN_SEED, BUILTIN_TRAIN, BUILTIN_VALIDATION = 0, 3000, 600


@dataclass(frozen=True)
class Columns:
    """The column of each part; None where the task does not use it."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    prompt: str | None = None
    answer: str | None = None
    messages: str | None = None


@dataclass(frozen=True)
class Tables:
    """The rows to learn from, those to judge by (None where the source has none), and where they came from."""

    train: Rows
    validation: Rows | None
    origin: str


@dataclass(frozen=True)
class Splits:
    """The parts of a data set that are meant.

    Attributes:
      train: the split to learn from: `train.*` of a folder.
      validation: the split to judge by; None for `validation` where there is one. A `test` split is taken for it only
        where it is named.
      revision: of a data set on the hub: a branch, a tag or a commit; None for its newest.
    """

    train: str = "train"
    validation: str | None = None
    revision: str | None = None


def load_tables(data: str, splits: Splits = Splits()) -> Tables:
    """Reads `data`: a folder with `train.*` and maybe `validation.*`, one file, built-in data or a hub name.

    A hub name may carry a configuration, as in `nyu-mll/glue:sst2`. Local files are read into memory, and nothing
    is left in the cache of the `datasets` library.

    Raises:
      ConfigError: splits are named of what has none, or a revision of what is not on the hub.
      DataError: nothing is there, or it cannot be read.
    """
    path = local(data)
    with reading(f"data {shortened(data)}", READABLE, DataError):
        return _load_local(path, data, splits) or _load_from_hub(data, splits)


def _load_local(path: Path, data: str, splits: Splits) -> Tables | None:
    """The tables of what is on this machine; None for what can only be the name of a data set on the hub."""
    here = path.exists() or data.startswith("builtin:")
    if here and splits.revision is not None:
        raise ConfigError(f"data.revision: expected none for {data}, got {splits.revision!r}. Only the hub has them.")
    if path.is_dir():
        return _load_folder(path, splits)
    if here:
        if (splits.train, splits.validation or "validation") != ("train", "validation"):
            raise ConfigError(
                f"data.split, data.validation_split: expected none for {data}, which has no others, got "
                f"{splits.train!r} and {splits.validation!r}. Leave them out."
            )
        return Tables(read_file(path), None, data) if path.is_file() else _load_builtin(data)
    if _looks_like_a_path(data):
        raise DataError(f"data {data}: expected a folder or a file, got nothing there. Check the path.")
    return None


def check_place(data: str) -> None:
    """Looks whether data that can only be on this machine is there.

    Raises:
      DataError: It is not.
    """
    with reading(f"data {shortened(data)}", READABLE, DataError):
        here = local(data).exists()
    if not here and not data.startswith("builtin:") and _looks_like_a_path(data):
        raise DataError(f"data {data}: expected a folder or a file, got nothing there. Check the path.")


NO_DATA = "none"
"""The data of a server that has none of its own."""


def load_validation(data: str, splits: Splits = Splits()) -> Rows:
    """Reads the rows to judge by and no others: of a folder its `validation.*`, of one file all, else that split.

    Raises:
      ConfigError: as of `load_tables`.
      DataError: nothing is there, or it cannot be read.
    """
    rows = load_validation_if_any(data, splits)
    if rows is None:
        name = splits.validation or "validation"
        raise DataError(f"data {data}: expected {name} rows, got none. Add {name}.* ({KNOWN}) or name a file.")
    return rows


def load_validation_if_any(data: str, splits: Splits = Splits()) -> Rows | None:
    """Reads what `load_validation` reads; None where there is nothing of it, or `data` is `none`.

    Raises:
      ConfigError: as of `load_tables`.
      DataError: it cannot be read.
    """
    if data == NO_DATA:
        return None
    path = local(data)
    with reading(f"data {shortened(data)}", READABLE, DataError):
        if path.is_file():
            return read_file(path)
        if path.is_dir():
            return _rows_of(path, splits.validation or "validation")
    return load_tables(data, splits).validation


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


def require_columns(rows: Rows, names: Sequence[str], where: str) -> None:
    """Raises DataError for the first of `names` that `rows` lack, with the columns they have."""
    there = rows.column_names
    for name in names:
        if name not in there:
            close = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
            hint = f"Did you mean {close[0]!r}?" if close else "Name one of these."
            raise DataError(f"{where}: expected a column {name!r}, got only {', '.join(map(repr, there))}. {hint}")


def _load_builtin(data: str) -> Tables:
    if data not in BUILTIN:
        raise DataError(f"data: expected {' or '.join(BUILTIN)}, got {data}. There is no other built-in data set.")
    rows = BUILTIN[data](BUILTIN_TRAIN + BUILTIN_VALIDATION, BUILTIN_SEED)  # all different: nothing is shared
    train, validation = rows[:BUILTIN_TRAIN], rows[BUILTIN_TRAIN:]
    return Tables(Rows.of(train), Rows.of(validation), data)


def _load_folder(folder: Path, splits: Splits) -> Tables:
    train, validation = _rows_of(folder, splits.train), _rows_of(folder, splits.validation or "validation")
    wanted = (splits.train, train), (splits.validation, validation)
    for name, rows in wanted:
        if name is not None and rows is None:
            found = ", ".join(sorted(path.name for path in folder.iterdir())) or "an empty folder"
            raise DataError(f"data {folder}: expected {name}.* ({KNOWN}), got {found}. Rename or add the file.")
    assert train is not None, "it has a name"
    return Tables(train, validation, str(folder))


def _rows_of(folder: Path, split: str) -> Rows | None:
    """The rows of a split: of its one file, or of its shards, here or in `data/` as the hub has them."""
    files = _files_of(folder, split)
    if len(files) < 2:
        return read_file(files[0]) if files else None
    return joined([read_file(file) for file in files], [str(file) for file in files])


def _files_of(folder: Path, split: str) -> list[Path]:
    """The file of a split, or its shards in their order; empty where there is none.

    Raises:
      DataError: There is more than one file, or a shard is missing.
    """
    shard = re.compile(rf"{re.escape(split)}-(\d+)-of-(\d+)(-[0-9a-f]+)?")
    found = [
        path
        for place in (folder, folder / "data")
        for path in (sorted(place.iterdir()) if place.is_dir() else ())
        if path.is_file() and (path.stem == split or shard.fullmatch(path.stem)) and path.suffix
    ]
    shards = [match for path in found if (match := shard.fullmatch(path.stem))]
    if shards and len(shards) == len(found):
        there, number = {int(match[1]) for match in shards}, int(shards[0][2])
        missing = next((each for each in range(number) if each not in there), None)
        if missing is not None:
            raise DataError(
                f"data {folder}: expected {number} shards of {split}, got none with the number {missing}. Fetch it."
            )
        if len(found) == number:
            return found
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found)
        raise DataError(f"data {folder}: expected one {split}.* file, got {names}. Keep one of them.")
    return found


def _load_from_hub(data: str, wanted: Splits) -> Tables:
    import datasets

    name, _, config = data.partition(":")
    look_for_hub()
    with quiet_datasets():
        try:
            splits = datasets.load_dataset(name, config or None, revision=wanted.revision)
        except ConnectionError as error:
            raise DataError(
                f"data {data}: expected a local folder, a file or a reachable hub, got no such path and no network "
                "or hub. Name a local folder that holds train.* and validation.*."
            ) from error
        except Exception as error:  # the hub client has no common base class
            raise DataError(
                f"data {data}: expected a local folder, a file or a hub data set, got no such path, and from the hub: "
                f"{first_line(error)}. Check the name, or its configuration after a colon."
            ) from error
    for key, split in (("split", wanted.train), ("validation_split", wanted.validation)):
        if split is not None and split not in splits:
            raise DataError(f"data {data}: expected a split {split!r}, got {', '.join(splits)}. Name one: data.{key}.")
    judged_by = wanted.validation or "validation"
    validation = Rows.of_dataset(splits[judged_by]) if judged_by in splits else None
    return Tables(Rows.of_dataset(splits[wanted.train]), validation, data)


def _looks_like_a_path(data: str) -> bool:
    """Hub names are `name` or `owner/name`: whatever is not that can only have meant a path."""
    return (
        data.startswith((".", "/", "~"))
        or data.endswith("/")
        or data.count("/") > 1
        or "\\" in data
        or Path(data).suffix in SUFFIXES
    )
