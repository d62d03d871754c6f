"""Rows of a table, whatever they were read from."""

from __future__ import annotations

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value

from cutlayer.data.rows import Rows


def test_a_column_is_null_where_a_record_lacks_it() -> None:
    rows = Rows.of([{"a": 1}, {}, {"b": "x", "a": None}, {"b": "y"}])
    assert (rows.column_names, len(rows)) == (["a", "b"], 4)
    assert rows.cells("a") == [1, None, None, None]
    assert rows.cells("b") == [None, None, "x", "y"]


def test_no_record_is_no_row() -> None:
    assert (len(Rows.of([])), len(Rows.of([{}, {}])), len(Rows.of([{"a": 1}]).select([]))) == (0, 0, 0)


def test_rows_are_chosen_from_those_that_were_chosen() -> None:
    rows = Rows({"a": list("vwxyz")}, {"a": ("names",)})
    chosen = rows.select([4, 0, 3]).select(np.array([2, 0]))
    assert (chosen.cells("a"), len(chosen), chosen.class_names) == (["y", "z"], 2, rows.class_names)


def test_a_data_set_has_the_same_rows() -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    dataset = Dataset.from_dict({"text": ["a", "b", None], "label": [1, 0, 1]}, features=features)
    rows = Rows.of_dataset(dataset.with_format("numpy"))
    assert (rows.column_names, len(rows), rows.class_names) == (["text", "label"], 3, {"label": ("bad", "good")})
    assert rows.cells("text") == ["a", "b", None]
    assert rows.select([2, 1]).cells("label") == [1, 0]
    assert type(rows.cells("label")[0]) is int
