"""Files of rows: JSON and CSV by the standard library, Parquet by `datasets`; every bad input is one line.

What is learnt is what `datasets` would give (`tests/data/test_readers.py`), without the memory and the time that it
takes: docs/decisions/0025-local-files-without-datasets.md.
"""

from __future__ import annotations

import csv
import glob
import json
import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from cutlayer.data.rows import Rows
from cutlayer.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
KNOWN = ", ".join(SUFFIXES)

_BLANK = re.compile(r"[ \t\r\n]*")
_WHOLE = re.compile(r"\s*[+-]?\d+\s*", re.ASCII)
_FRACTION = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*|[+-]?inf(inity)?", re.ASCII | re.IGNORECASE)
_TRUTH = {"true": True, "false": False}


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
    """What an error says, as a part of a line."""
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
    """A header, then rows of as many fields; a column means what all of its fields can be read as.

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
    return Rows({name: _meant(column) for name, column in zip(_distinct(header), columns, strict=True)})


def _distinct(header: list[str]) -> list[str]:
    """The names of the columns: those without one are numbered, as are those with another's."""
    names: list[str] = []
    for position, name in enumerate(header):
        plain = name or f"Unnamed: {position}"
        taken = {*header, *names} if plain in names else set()
        numbered = (f"{plain}.{number}" for number in range(1, len(header) + 1))
        names.append(next(each for each in chain([plain], numbered) if each not in taken))
    return names


def _meant(fields: list[str]) -> list[Any]:
    """Whole numbers, fractions or truth values where every field is one, else texts; only an empty field is null."""
    there = [field for field in fields if field]
    if all(map(_WHOLE.fullmatch, there)):
        return [int(field) if field else None for field in fields]
    if all(map(_FRACTION.fullmatch, there)):
        return [float(field) if field else None for field in fields]
    if all(field.lower() in _TRUTH for field in there):
        return [_TRUTH[field.lower()] if field else None for field in fields]
    return [field or None for field in fields]


# ------------------------------------------------------------------ Parquet


def _read_parquet(path: Path) -> Rows:
    from datasets import load_dataset

    files = {"train": glob.escape(str(path.absolute()))}
    with tempfile.TemporaryDirectory(prefix="cutlayer-data-") as cache, quiet_datasets():
        try:
            # In memory, because the cache folder goes away and some systems cannot remove mapped files.
            rows = load_dataset("parquet", data_files=files, split="train", cache_dir=cache, keep_in_memory=True)
        except Exception as error:  # the readers have no common base class
            if "corresponds to no data" in str(error):
                raise _empty(path) from error
            raise _unreadable(path, error.__cause__ or error) from error
    return Rows.of_dataset(rows)


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
