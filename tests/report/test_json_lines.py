import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.errors import CheckpointError
from cutlayer.report.json_lines import JsonLines, to_json


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_keep_every_digit(value: float) -> None:
    assert json.loads(to_json({"x": value}))["x"] == value


def test_equal_values_are_equal_bytes_whatever_the_order_of_the_keys() -> None:
    assert to_json({"b": 1, "a": {"d": 2, "c": 3}}) == to_json({"a": {"c": 3, "d": 2}, "b": 1})


def test_a_number_that_is_not_finite_is_null_at_any_depth() -> None:
    assert to_json({"a": [math.nan, (math.inf,)], "b": {"c": -math.inf}}) == '{"a": [null, [null]], "b": {"c": null}}'


def test_lines_come_back(tmp_path: Path) -> None:
    file = JsonLines(tmp_path / "x.jsonl")
    assert (list(file.read()), file.position()) == ([], 0)
    file.append([{"name": "zwölf\n"}, {"n": 2}])
    file.append([{"n": 3}])
    assert list(file.read()) == [{"name": "zwölf\n"}, {"n": 2}, {"n": 3}]
    assert file.path.read_bytes().count(b"\n") == 3


def test_a_rewind_cuts_off_a_torn_line_and_what_came_after_the_position(tmp_path: Path) -> None:
    file = JsonLines(tmp_path / "x.jsonl")
    file.append([{"n": 1}])
    position, kept = file.position(), file.path.read_bytes()
    file.append([{"n": 2}])
    file.path.write_bytes(file.path.read_bytes() + b'{"n": 3, "lo')
    file.rewind(position)
    assert file.path.read_bytes() == kept
    file.append([{"n": 2}])
    assert list(file.read()) == [{"n": 1}, {"n": 2}]


def test_a_rewind_to_nothing_needs_no_file(tmp_path: Path) -> None:
    file = JsonLines(tmp_path / "x.jsonl")
    file.rewind(0)
    assert not file.path.exists()


def test_a_file_shorter_than_remembered_is_refused(tmp_path: Path) -> None:
    file = JsonLines(tmp_path / "x.jsonl")
    file.append([{"n": 1}])
    with pytest.raises(CheckpointError, match=r"expected at least the 100 bytes .* got 9\."):
        file.rewind(100)


def test_a_position_inside_a_line_is_refused(tmp_path: Path) -> None:
    file = JsonLines(tmp_path / "x.jsonl")
    file.append([{"n": 1}])
    with pytest.raises(CheckpointError, match="expected a line to end at byte 4"):
        file.rewind(4)
    assert file.position() == 9


@pytest.mark.parametrize("line", ['{"n": 2', "[1]"])
def test_reading_names_the_line_that_is_not_an_object(tmp_path: Path, line: str) -> None:
    file = JsonLines(tmp_path / "x.jsonl")
    file.append([{"n": 1}])
    file.path.write_text(file.path.read_text() + line)
    with pytest.raises(CheckpointError, match=r"x\.jsonl:2: expected a JSON object"):
        list(file.read())
