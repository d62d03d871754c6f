"""Every way of packing gives the numbers that llama.cpp's own package gives, bit for bit."""

from __future__ import annotations

import json

import pytest
import torch

from cutlayer.errors import ModelError
from cutlayer.model import packed
from cutlayer.model.packed import NOTE, PACKINGS, Stored, read_note, unpacked, written_note


@pytest.mark.parametrize("kind", PACKINGS)
def test_unpacked_is_what_the_gguf_package_dequantizes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = pytest.importorskip("gguf")
    monkeypatch.setattr(packed, "AT_ONCE", 2 * PACKINGS[kind].weights)  # several rounds, the last not full
    values = torch.randint(0, 256, (5, 3 * PACKINGS[kind].bytes), generator=torch.Generator().manual_seed(0))
    values = values.to(torch.uint8)
    for block in values.view(-1, PACKINGS[kind].bytes):  # scales that are numbers, not NaN
        for at in (0, 2) if kind != "Q6_K" else (208,):
            block[at + 1] &= 0x3B
    expected = torch.from_numpy(gguf.dequantize(values.numpy(), gguf.GGMLQuantizationType[kind]))
    assert torch.equal(unpacked(values, Stored(kind), "x"), expected)
    assert expected.isfinite().all()
    assert expected.unique().numel() > 100


def test_rows_get_their_order_back() -> None:
    heads, width = 3, 4
    rows = torch.arange(heads * width, dtype=torch.float32)[:, None].expand(-1, 5)
    by_halves = rows.view(heads, 2, width // 2, 5).transpose(1, 2).reshape(rows.shape)  # as llama.cpp writes them
    assert by_halves[:4, 0].tolist() == [0, 2, 1, 3]
    assert torch.equal(unpacked(by_halves, Stored("F32", heads), "x"), rows)


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        (torch.zeros(2, 19, dtype=torch.uint8), Stored("Q4_1")),
        (torch.zeros(2, 20), Stored("Q4_1")),
        (torch.zeros((), dtype=torch.uint8), Stored("Q4_1")),
        (torch.zeros(2, 20), Stored("F16")),
        (torch.zeros(2, 20), Stored("IQ2_XS")),
        (torch.zeros(6, 20), Stored("F32", 2)),
        (torch.zeros(4, 20), Stored("F32", -2)),
        (torch.zeros(()), Stored("F32", 2)),
    ],
)
def test_values_that_do_not_lie_like_that(values: torch.Tensor, stored: Stored) -> None:
    with pytest.raises(ModelError, match=r"^tensor x: expected .*, got \[.*Fetch the file again\.$"):
        unpacked(values, stored, "x")


def test_a_note_is_read_as_it_was_written() -> None:
    notes = {"a": Stored("Q4_1", 9), "b": Stored("F16", 3)}
    written = written_note(notes)
    assert {name: read_note(written, name) for name in ("a", "b", "c")} == {**notes, "c": None}
    assert written_note({}) == {}
    assert read_note({}, "a") is None
    assert read_note(None, "a") is None


@pytest.mark.parametrize(
    "note", ["", "[]", "3", '{"a": 3}', '{"a": ["Q4_1"]}', '{"a": ["Q9", 1]}', '{"a": [[], 1]}', '{"a": ["F32", 1.5]}']
)
def test_a_note_of_somebody_who_means_harm(note: str) -> None:
    with pytest.raises(ModelError, match="expected a note on how it is packed"):
        read_note({NOTE: note}, "a")


def test_a_note_nested_without_end() -> None:
    with pytest.raises(ModelError):
        read_note({NOTE: "[" * 200_000}, "a")
    assert json.loads(written_note({"a": Stored("F32", 2)})[NOTE]) == {"a": ["F32", 2]}
