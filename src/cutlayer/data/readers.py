"""Files of rows: JSON and CSV by the standard library, Parquet by pyarrow; every bad input is one line.

What is learnt is what `datasets` would give (`tests/data/test_readers.py`), without the memory and the time that it
takes: docs/decisions/0025-local-files-without-datasets.md. But for CSV: a cell is text there, whatever the other cells
of its column look like, because a file alone cannot say that 1 is a number and not the name of a class. The role of
a column decides what its cells mean (`tasks.py`).
"""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from cutlayer.data.rows import Rows
from cutlayer.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
KNOWN = ", ".join(SUFFIXES)

_BLANK = re.compile(r"[ \t\r\n]*")


def read_file(path: Path) -> Rows:
    """Reads a file into memory, as its suffix says.

    Raises:
      DataError: the suffix is none of `SUFFIXES`, or the file is empty or cannot be read.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"data {path}: expected one of {KNOWN}, got {path.suffix or 'no extension'}. Convert it.")
    if path.stat().st_size == 0:
        raise _empty(path)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    _check_utf8(path)
    rows = _read_csv(path) if path.suffix == ".csv" else _read_json(path)
    if len(rows) == 0:
        raise _empty(path)
    return rows


def first_line(error: BaseException) -> str:
    """The first line of what an error says, as a part of a line; its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _empty(path: Path) -> DataError:
    return DataError(f"data {path}: expected at least one row, got an empty file. Fill it or name another.")


def _unreadable(path: Path, error: BaseException) -> DataError:
    return DataError(f"data {path}: expected a readable {path.suffix} file, got {first_line(error)}. Repair it.")


def _check_utf8(path: Path) -> None:
    """Raises DataError for the first line in another encoding."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"data {path}, line {number}: expected UTF-8, got {first_line(error)}. Save the file as UTF-8."
                ) from error


# ------------------------------------------------------------------ JSON


def _read_json(path: Path) -> Rows:
    """An object on each line; else objects that take several lines, or a list of objects or of texts."""
    try:
        return Rows.of(_object_per_line(path))
    except DataError as error:
        return Rows.of(_objects_over_lines(path, error))


def _object_per_line(path: Path) -> Iterator[dict[str, Any]]:
    """Raises DataError for the first line that is not one object."""
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = _DECODER.decode(line)
                _check_unicode(row, line)
            except (ValueError, RecursionError) as error:
                got = first_line(error)
            else:
                if isinstance(row, dict):
                    yield row
                    continue
                got = f"a {type(row).__name__}"
            raise DataError(f"data {path}, line {number}: expected one JSON object, got {got}. Repair the line.")


def _objects_over_lines(path: Path, otherwise: DataError) -> list[dict[str, Any]]:
    """Raises DataError for a list that holds something else, and `otherwise` where there are not even objects."""
    text = path.read_text("utf-8-sig")
    start, values = _end_of_blank(text, 0), []
    try:
        while start < len(text):
            value, end = _DECODER.raw_decode(text, start)
            values.append(value)
            start = _end_of_blank(text, end)
        _check_unicode(values, text)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) if text.lstrip().startswith("[") else otherwise from error
    if all(isinstance(value, dict) for value in values):
        return values
    if len(values) > 1 or not isinstance(values[0], list):
        raise otherwise
    if all(isinstance(item, str) for item in values[0]):
        return [{"text": item} for item in values[0]]
    for number, item in enumerate(values[0]):
        if not isinstance(item, dict):
            raise DataError(
                f"data {path}: expected a list of JSON objects, got a {type(item).__name__} as item {number} (from 0). "
                "Repair it."
            )
    return values[0]


def _end_of_blank(text: str, start: int) -> int:
    blank = _BLANK.match(text, start)
    return blank.end() if blank else start


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} twice in one object")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _check_unicode(value: object, text: str) -> None:
    """Raises ValueError for half a surrogate pair, which only an escape can write and no tokenizer takes."""
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()


# ------------------------------------------------------------------ CSV


def _read_csv(path: Path) -> Rows:
    """A header, then rows of as many fields; a field is text, and null where it is empty.

    Raises:
      DataError: a row has more or fewer fields than the header, or a quote is never closed.
    """
    limit = csv.field_size_limit(2**31 - 1)  # long texts are no error
    header: list[str] = []
    columns: list[list[str]] = []
    row_starts, row_ends, fields = 1, 0, list[str]()
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(chain(file, ["\n"]))  # an open quote would take the empty last line in
            for fields in rows:
                row_starts, row_ends, header = row_ends + 1, rows.line_num, header or fields
                if fields and len(fields) != len(header):
                    raise DataError(
                        f"data {path}, line {row_starts}: expected {len(header)} fields as in the header, "
                        f"got {len(fields)}. Quote fields that hold commas or line breaks."
                    )
                if not columns:
                    columns = [[] for _ in header]
                elif fields and not (len(fields) == 1 and fields[0].isspace()):  # a blank line
                    for column, cell in zip(columns, fields, strict=True):
                        column.append(cell)
    finally:
        csv.field_size_limit(limit)
    if fields:
        raise DataError(f"data {path}, line {row_starts}: expected a closing quote, got the file's end. Close it.")
    named = zip(_distinct(header), columns, strict=True)
    return Rows({name: [field or None for field in column] for name, column in named})


def _distinct(header: list[str]) -> list[str]:
    """The names of the columns: those without one are numbered, as are those with another's."""
    names: list[str] = []
    for position, name in enumerate(header):
        plain = name or f"Unnamed: {position}"
        taken = {*header, *names} if plain in names else set()
        numbered = (f"{plain}.{number}" for number in range(1, len(header) + 1))
        names.append(next(each for each in chain([plain], numbered) if each not in taken))
    return names


# ------------------------------------------------------------------ Parquet


class _ParquetColumns(Mapping[str, Sequence[Any]]):
    """The columns of a Parquet file, each read when it is asked for: those that no role has may be of any type."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as parquet

        self._path, self._file = path, parquet.ParquetFile(path)
        self._names: list[str] = self._file.schema_arrow.names
        self._read = cache(self._cells)

    @property
    def num_rows(self) -> int:
        return int(self._file.metadata.num_rows)

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        """The names of classes that `datasets` wrote beside the columns."""
        written = (self._file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
        features = json.loads(written).get("info", {}).get("features", {})
        named = {name: features[name].get("names") for name in self._names if isinstance(features.get(name), dict)}
        return {name: tuple(map(str, names)) for name, names in named.items() if isinstance(names, list) and names}

    def __getitem__(self, name: str) -> Sequence[Any]:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def _cells(self, name: str) -> list[Any]:
        try:
            cells: list[Any] = self._file.read(columns=[name]).column(name).to_pylist()
        except Exception as error:  # pyarrow's errors have no common base class
            raise DataError(
                f"data {self._path}, column {name!r}: expected cells that can be read, got {first_line(error)}. "
                "Repair it."
            ) from error
        return cells

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _read_parquet(path: Path) -> Rows:
    try:
        columns = _ParquetColumns(path)
        class_names, num_rows = columns.class_names, columns.num_rows
    except Exception as error:  # pyarrow's errors have no common base class
        raise _unreadable(path, error) from error
    if num_rows == 0:
        raise _empty(path)
    return Rows(columns, class_names, np.arange(num_rows))  # counted without reading a column


@contextmanager
def quiet_datasets() -> Iterator[None]:
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
