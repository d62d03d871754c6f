"""The reader of GGUF files: what it reads is what was written, and a hostile file is an error in a line."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("gguf")

from cutlayer.errors import ModelError
from cutlayer.model.gguf import Gguf
from ggufs import TEMPLATE, TOKENS, save_gguf, tensors_of


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def number(name: str, value: int) -> bytes:
    return text(name) + struct.pack("<II", 4, value)


def tensor(name: str, *sizes: int, kind: int = 0, start: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, start)


def made(
    *, facts: tuple[bytes, ...] = (), tensors: tuple[bytes, ...] = (), data: int = 64, counts: object = None
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, *(counts or (len(tensors), len(facts))))  # type: ignore[misc]
    head += b"".join(facts) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data)


def refused(path: Path, content: bytes, says: str) -> None:
    path.write_bytes(content)
    with pytest.raises(ModelError, match=says) as error:
        Gguf(path)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------ what is read


def test_facts_and_tensors_are_those_that_were_written(file: Path) -> None:
    found, expected = Gguf(file), tensors_of("llama", tied=True)
    assert found.facts["general.architecture"] == "llama"
    assert found.facts["tokenizer.chat_template"] == TEMPLATE
    assert found.facts["tokenizer.ggml.tokens"] == len(TOKENS), "a list is its length"
    assert found.facts["llama.rope.freq_base"] == 50000.0
    assert found.facts["tokenizer.ggml.add_bos_token"] is False
    assert found.tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert found.tensors[name].shape == value.shape
    norm = found.read("blk.1.attn_norm.weight")
    assert torch.equal(norm, torch.from_numpy(expected["blk.1.attn_norm.weight"]))
    assert found.read("blk.1.attn_q.weight").shape == (32, 20), "Q4_1: 20 bytes for 32 weights"
    assert file.read_bytes().startswith(found.head)


def test_a_tensor_of_a_file_that_was_cut_off_meanwhile(tmp_path: Path) -> None:
    path = save_gguf(tmp_path / "tiny.gguf")
    found = Gguf(path)
    path.write_bytes(path.read_bytes()[:-100])
    last = max(found.tensors, key=lambda name: found.tensors[name].start)
    with pytest.raises(ModelError, match="got fewer"):
        found.read(last)


# ------------------------------------------------------------------ what is refused


def test_every_beginning_of_a_file_is_refused(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    for length in [*range(0, 600, 7), *range(600, len(whole), 997), len(whole) - 1]:
        refused(tmp_path / "part.gguf", whole[:length], "expected ")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        Gguf(tmp_path / "none.gguf")


@settings(deadline=None, max_examples=150)
@given(changes=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_changed_file_is_read_or_refused(changes: list[tuple[int, int]], file: Path) -> None:
    content = bytearray(file.read_bytes())
    for at, value in changes:
        content[at] = value
    path = file.with_name("changed.gguf")
    path.write_bytes(content)
    try:
        found = Gguf(path)
    except ModelError:
        return
    for name in found.tensors:
        found.read(name)


HUGE = 2**62
HOSTILE = {
    "no-gguf": (b"PK\x03\x04" + bytes(60), "little-endian GGUF file of version 2 or 3, got b'PK"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "little-endian"),
    "version-1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 2 or 3, got b'GGUF' and 1"),
    "many-facts": (made(counts=(0, HUGE)), "at most 65536 facts and tensors"),
    "many-tensors": (made(counts=(HUGE, 0)), "at most 65536 facts and tensors"),
    "long-name": (made(facts=(struct.pack("<Q", HUGE),)), "a text of at most 1024 bytes"),
    "long-text": (made(facts=(text("a") + struct.pack("<IQ", 8, HUGE),)), "a text of at most 16777216 bytes"),
    "no-utf8": (made(facts=(struct.pack("<Q", 1) + b"\xff" + struct.pack("<II", 4, 1),)), "got 'utf-8' codec"),
    "long-list": (made(facts=(text("a") + struct.pack("<IIQ", 9, 10, HUGE),)), "a file of at least"),
    "long-texts": (made(facts=(text("a") + struct.pack("<IIQ", 9, 8, HUGE),)), "a list within the file"),
    "texts-beyond": (made(facts=(text("a") + struct.pack("<IIQQ", 9, 8, 2, HUGE),)), "within the file, got fewer"),
    "last-text-beyond": (made(facts=(text("a") + struct.pack("<IIQQ", 9, 8, 1, HUGE),)), "a file of at least"),
    "list-of-lists": (made(facts=(text("a") + struct.pack("<IIQ", 9, 9, 1),)), "a kind of fact at .* got 9"),
    "no-kind": (made(facts=(text("a") + struct.pack("<II", 99, 1),)), "a kind of fact at .* got 99"),
    "a-fact-twice": (made(facts=(number("a", 1), number("a", 2))), "each fact once, got a twice"),
    "alignment-0": (made(facts=(number("general.alignment", 0),)), "an alignment of a multiple of 8 bytes, got 0"),
    "alignment-text": (made(facts=(text("general.alignment") + struct.pack("<I", 8) + text("x"),)), "alignment"),
    "a-tensor-twice": (made(tensors=(tensor("a", 4), tensor("a", 4, start=32))), "each tensor once, got a twice"),
    "no-axis": (made(tensors=(tensor("a"),)), "one to four axes of a, got 0"),
    "five-axes": (made(tensors=(tensor("a", 1, 1, 1, 1, 1),)), "one to four axes of a, got 5"),
    "empty": (made(tensors=(tensor("a", 4, 0),)), "a in whole blocks of 1"),
    "half-a-block": (made(tensors=(tensor("a", 16, kind=3),)), "a in whole blocks of 32"),
    "not-aligned": (made(tensors=(tensor("a", 4, start=8),)), "at a multiple of 32"),
    "packed-otherwise": (made(tensors=(tensor("a", 256, kind=16),)), "Q6_K, BF16, got type 16 of GGUF, which is not"),
    "beyond-the-end": (made(tensors=(tensor("a", 17),)), "68 bytes of tensors, got 64"),
    "far-beyond": (made(tensors=(tensor("a", HUGE, HUGE),)), "bytes of tensors, got 64"),
    "inside-another": (made(tensors=(tensor("a", 16), tensor("b", 4, start=32))), "b behind a, got it at 32"),
}


@pytest.mark.parametrize(("content", "says"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused(content: bytes, says: str, tmp_path: Path) -> None:
    refused(tmp_path / "hostile.gguf", content, says)


def test_what_is_made_here_is_otherwise_a_file(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(made(facts=(number("a", 1),), tensors=(tensor("a", 4, 2), tensor("b", 8, start=32))))
    found = Gguf(path)
    assert found.facts == {"a": 1}
    assert {name: found.read(name).shape for name in found.tensors} == {"a": (2, 4), "b": (8,)}
