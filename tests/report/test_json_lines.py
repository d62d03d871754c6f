import errno
import json
import math
import os
import tempfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.errors import CheckpointError
from cutlayer.report.json_lines import JsonLines, Position, to_json


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_keep_every_digit(value: float) -> None:
    assert json.loads(to_json({"x": value}))["x"] == value


def test_equal_values_are_equal_bytes_whatever_the_order_of_the_keys() -> None:
    assert to_json({"b": 1, "a": {"d": 2, "c": 3}}) == to_json({"a": {"c": 3, "d": 2}, "b": 1})


def test_a_number_that_is_not_finite_is_null_at_any_depth() -> None:
    assert to_json({"a": [math.nan, (math.inf,)], "b": {"c": -math.inf}}) == '{"a": [null, [null]], "b": {"c": null}}'


def test_lines_come_back(tmp_path: Path) -> None:
    file = JsonLines(tmp_path / "x.jsonl")
    assert (list(file.read()), file.position()) == ([], Position(0, 0))
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
    assert file.position() == position
    file.append([{"n": 2}])
    assert list(file.read()) == [{"n": 1}, {"n": 2}]
    assert file.position() == JsonLines(file.path).position()


def test_a_disk_that_is_full_in_the_middle_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines that have been written are known again, by reading them."""
    file = JsonLines(tmp_path / "x.jsonl")
    file.append([{"n": 1}])
    position = file.position()

    def fsync(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space left"):
            file.append([{"n": 2}])
    assert file.position() == JsonLines(file.path).position() != position
    file.rewind(position)
    assert file.position() == position


def test_a_row_without_its_fields_is_as_good_as_a_damaged_line(tmp_path: Path) -> None:
    path, fields = tmp_path / "x.jsonl", {"round": int, "devices": dict}
    path.write_text('{"round": 0, "devices": {}}\n{"round": null, "devices": {}}\n{"round": 1}\n')
    with pytest.raises(
        CheckpointError, match=r"x\.jsonl:2: expected a JSON object .*, with round, devices, got .*null"
    ):
        list(JsonLines(path, fields=fields).read())
    assert list(JsonLines(path, fields=fields, only_shown=True).read()) == [{"round": 0, "devices": {}}]


def test_a_rewind_to_nothing_needs_no_file(tmp_path: Path) -> None:
    file = JsonLines(tmp_path / "x.jsonl")
    file.rewind(Position())
    assert not file.path.exists()


def test_a_file_shorter_than_remembered_is_refused(tmp_path: Path) -> None:
    file = JsonLines(tmp_path / "x.jsonl")
    file.append([{"n": 1}])
    with pytest.raises(CheckpointError, match=r"expected at least the 100 bytes .* got 9\."):
        file.rewind(Position(100, 0))


@given(st.lists(st.lists(st.text(), max_size=3), max_size=4), st.integers(0, 4))
def test_a_position_is_the_same_however_it_was_reached(texts: list[list[str]], reopened: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        file = JsonLines(Path(name) / "x.jsonl")
        for number, rows in enumerate(texts):
            if number == reopened:
                file = JsonLines(file.path)
            file.append({"text": text} for text in rows)
        content = file.path.read_bytes() if texts else b""
        assert file.position() == JsonLines(file.path).position() == (len(content), zlib.crc32(content))


def test_a_file_longer_than_a_piece_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = JsonLines(tmp_path / "x.jsonl")
    file.append({"n": number} for number in range(20))
    position = file.position()
    file.append([{"n": 20}])
    monkeypatch.setattr("cutlayer.report.json_lines.PIECE_BYTES", 7)
    JsonLines(file.path).rewind(position)
    assert [row["n"] for row in file.read()] == list(range(20))


@pytest.mark.parametrize("place", [0, 5, 8])
def test_a_file_changed_before_the_position_is_refused(place: int, tmp_path: Path) -> None:
    file = JsonLines(tmp_path / "x.jsonl")
    file.append([{"n": 1}])
    position = file.position()
    file.append([{"n": 2}])
    content = bytearray(file.path.read_bytes())
    content[place] ^= 1
    file.path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"expected a CRC-32 of .* of the first 9 bytes, .* got"):
        JsonLines(file.path).rewind(position)
    assert file.path.read_bytes() == content


@pytest.mark.parametrize("line", ['{"n": 2', "[1]"])
def test_reading_names_the_line_that_is_not_an_object(tmp_path: Path, line: str) -> None:
    file = JsonLines(tmp_path / "x.jsonl")
    file.append([{"n": 1}])
    file.path.write_text(file.path.read_text() + line)
    with pytest.raises(CheckpointError, match=r"x\.jsonl:2: expected a JSON object"):
        list(file.read())
