"""A model that arrived in pieces is the model, bit for bit; what is not whole or not asked for is not there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from bases import open_base, settings_for
from cutlayer.errors import MalformedMessage, ModelError
from cutlayer.model import pieces
from cutlayer.model.base import Base
from cutlayer.model.part import Part
from cutlayer.model.pieces import (
    EMBEDDINGS,
    INDEX,
    MOST_PIECES,
    Piece,
    PieceServer,
    PieceStore,
    check_due,
    manifest_bytes,
    read_manifest,
)
from cutlayer.model.place import MINILM
from cutlayer.model.settings import ModelSettings
from cutlayer.testing.tiny import BLOCKS, save_tiny_model, save_tiny_tokenizer
from turns import CASES, by_turns

ModelMaker = Callable[[str, str], Path]
PLENTY = 2**40


def fetch(server: PieceServer, store: PieceStore, manifest: Iterable[Piece], chunk: int = 1000) -> list[str]:
    """Brings a store up to a manifest as a device would; returns the names of what crossed."""
    crossed = []
    for piece, offset in store.missing(tuple(manifest)):
        crossed.append(piece.name)
        whole = False
        while not whole:
            data = server.read(piece.name, offset, min(chunk, piece.length - offset))
            whole = store.append(piece, offset, data)
            offset += len(data)
    return crossed


def frozen(part: Part) -> dict[str, torch.Tensor]:
    """The tensors of the base model that a part holds. Its trainable tensors are still on the meta device."""
    return {name: value for name, value in part.model.named_parameters() if not value.is_meta}


def assert_same(one: Part, other: Part) -> None:
    mine, its = frozen(one), frozen(other)
    assert mine.keys() == its.keys()
    for name in mine:
        assert mine[name].dtype == its[name].dtype
        assert torch.equal(mine[name], its[name]), name


@pytest.fixture
def served(tiny_model: ModelMaker) -> PieceServer:
    return PieceServer(settings_for(tiny_model("llama", "causal-lm"), "causal-lm"))


# ------------------------------------------------------------------ the law


@pytest.mark.parametrize(("family", "task"), list(by_turns(CASES, one_of=2)))
def test_parts_from_pieces_are_parts_from_the_files(
    family: str, task: str, tiny_model: ModelMaker, tmp_path: Path
) -> None:
    folder = tiny_model(family, task)
    server, store, files = (
        PieceServer(settings_for(folder, task)),
        PieceStore(tmp_path / "s", PLENTY),
        open_base(folder, task),
    )
    first = fetch(server, store, server.manifest(0))
    assert [name for name in first if name.endswith(".safetensors")] == [EMBEDDINGS]
    received = open_base(store.folder, task)
    assert_same(received.device_part(0), files.device_part(0))
    for cut in range(1, BLOCKS + 1):  # deeper and deeper, in one process
        with pytest.raises(ModelError, match=f"expected the shard block-{cut - 1}.safetensors, got none"):
            received.device_part(cut)
        assert fetch(server, store, server.manifest(cut)) == [f"block-{cut - 1}.safetensors"]
        assert_same(received.device_part(cut), files.device_part(cut))
        assert_same(open_base(store.folder, task).device_part(cut), files.device_part(cut))
    fetch(server, store, server.manifest(BLOCKS, top=BLOCKS))
    assert_same(received.whole(), files.whole())
    assert received.shapes == files.shapes
    assert fetch(server, store, server.manifest(1)) == []


def renamed(new_name: Callable[[str], str]) -> Callable[[Path], None]:
    return changed(lambda tensors: {new_name(name): tensor for name, tensor in tensors.items()})


def changed(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")

    return rewrite


def old(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def in_shards(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    save_tiny_model("gpt2", "causal-lm", folder, shard="20KB")


DTYPES = (torch.bfloat16, torch.float32, torch.float16)
CHECKPOINTS = {
    "bare-bert": ("bert", "classification", renamed(lambda name: name.removeprefix("bert."))),
    "bare-gpt2": ("gpt2", "causal-lm", renamed(lambda name: name.removeprefix("transformer."))),
    "bare-opt": ("opt", "classification", renamed(lambda name: name.removeprefix("model."))),
    "gamma-beta": ("bert", "classification", renamed(old)),
    "fresh-head": ("bert", "classification", changed(lambda ts: {n: t for n, t in ts.items() if "classif" not in n})),
    "mixed": ("llama", "causal-lm", changed(lambda ts: {n: t.to(DTYPES[len(n) % 3]) for n, t in ts.items()})),
    "more": ("bert", "classification", changed(lambda ts: ts | {"cls.predictions.weight": torch.zeros(99_999)})),
    "shards": ("gpt2", "causal-lm", in_shards),
}


@pytest.mark.parametrize(("family", "task", "change"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_however_the_checkpoint_is_spelled(
    family: str, task: str, change: Callable[[Path], None], tiny_model: ModelMaker, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model(family, task), tmp_path / "model"))
    change(folder)
    server, store = PieceServer(settings_for(folder, task)), PieceStore(tmp_path / "store", PLENTY)
    fetch(server, store, server.manifest(BLOCKS, top=BLOCKS))
    received, files = open_base(store.folder, task), open_base(folder, task)
    for cut in range(BLOCKS + 1):
        assert_same(received.device_part(cut), files.device_part(cut))
    assert_same(received.whole(), files.whole())
    tensors = [tensor for path in store.folder.glob("*.safetensors") for tensor in load_file(path)]
    assert len(tensors) == len(set(tensors))
    assert not any("predictions" in name for name in tensors), "nobody needs them"
    if task == "classification":  # a device that begins by itself has the head that the server has
        for name, value in files.initial_adapter(0).items():
            assert torch.equal(received.initial_adapter(0)[name], value), name


def test_the_real_model(tmp_path: Path) -> None:
    model = ModelSettings(MINILM, "classification", num_labels=2)
    server, store = PieceServer(model), PieceStore(tmp_path, PLENTY)
    fetch(server, store, server.manifest(1), chunk=2**20)
    received = Base(replace(model, name=str(tmp_path)))
    assert_same(received.device_part(1), Base(model).device_part(1))
    text = "Splitting a model is no magic."
    mine, its = (AutoTokenizer.from_pretrained(base.files.location) for base in (received, Base(model)))
    assert mine(text) == its(text)


def test_a_tokenizer_comes_along(tiny_model: ModelMaker, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model("gpt2", "causal-lm"), tmp_path / "model"))
    save_tiny_tokenizer(folder)
    (folder / "merges.txt").touch()  # an empty file is nothing to send
    (folder / "secret.txt").write_text("mine")
    server, store = PieceServer(settings_for(folder, "causal-lm")), PieceStore(tmp_path / "store", PLENTY)
    fetch(server, store, server.manifest(0))
    assert AutoTokenizer.from_pretrained(store.folder)("n1 good").input_ids == [8, 6]
    assert sorted(path.name for path in store.folder.iterdir() if path.suffix != ".safetensors") == [
        "config.json",
        INDEX,
        "tokenizer.json",
        "tokenizer_config.json",
    ]


# ------------------------------------------------------------------ the server's side


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> PieceServer:
    folder = save_tiny_model("gpt2", "causal-lm", tmp_path_factory.mktemp("model"), shard="20KB")
    return PieceServer(settings_for(folder, "causal-lm"))


@settings(deadline=None)
@given(data=st.data())
def test_any_bytes_of_a_piece_are_those_of_the_whole(data: st.DataObject, server: PieceServer) -> None:
    piece = data.draw(st.sampled_from(server.manifest(BLOCKS, top=BLOCKS)))
    whole = server.read(piece.name, 0, piece.length)
    assert hashlib.sha256(whole).hexdigest() == piece.sha256
    first = data.draw(st.integers(0, piece.length))
    last = data.draw(st.integers(first, piece.length))
    assert server.read(piece.name, first, last - first) == whole[first:last]


@pytest.mark.parametrize(
    ("name", "offset", "length"),
    [
        ("model.safetensors", 0, 1),
        ("../config.json", 0, 1),
        ("block-9.safetensors", 0, 1),
        ("config.json", -1, 1),
        ("config.json", 0, -1),
        ("config.json", 0, 10**9),
        ("config.json", 10**9, 0),
    ],
)
def test_bytes_that_no_piece_has(name: str, offset: int, length: int, served: PieceServer) -> None:
    with pytest.raises(MalformedMessage, match="expected bytes of one of 7 pieces, got"):
        served.read(name, offset, length)


def test_a_cut_that_the_model_has_not(served: PieceServer) -> None:
    with pytest.raises(ModelError, match=f"expected 0 to {BLOCKS}"):
        served.manifest(BLOCKS + 1)


def test_a_file_that_shrank_under_the_server(tiny_model: ModelMaker, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model("llama", "causal-lm"), tmp_path / "model"))
    server = PieceServer(settings_for(folder, "causal-lm"))
    server.manifest(0)
    with open(folder / "model.safetensors", "rb+") as file:
        file.truncate(2000)
    with pytest.raises(ModelError, match=r"model\.safetensors: expected \d+ bytes from \d+, got"):
        server.manifest(BLOCKS)


def test_tensors_lie_aligned_in_what_is_sent(tiny_model: ModelMaker, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model("llama", "causal-lm"), tmp_path / "model"))
    CHECKPOINTS["mixed"][2](folder)
    server = PieceServer(settings_for(folder, "causal-lm"))
    widths, seen = {"F32": 4, "F16": 2, "BF16": 2}, set()
    for piece in server.manifest(BLOCKS, top=BLOCKS):
        if not piece.name.endswith(".safetensors"):
            continue
        blob = server.read(piece.name, 0, piece.length)
        length = int.from_bytes(blob[:8], "little")
        assert length % 8 == 0
        entries = [entry for entry in json.loads(blob[8 : 8 + length]).values() if "dtype" in entry]
        entries.sort(key=lambda entry: entry["data_offsets"])
        in_order = [widths[entry["dtype"]] for entry in entries]
        assert in_order == sorted(in_order, reverse=True), "after an odd number of narrow ones a wide one would not"
        seen |= {entry["dtype"] for entry in entries}
    assert seen == set(widths)


# ------------------------------------------------------------------ the device's side


def piece_of(name: str, content: bytes) -> Piece:
    return Piece(name, len(content), hashlib.sha256(content).hexdigest())


CONTENT = b'{"model_type": "llama"}'
CONFIG = piece_of("config.json", CONTENT)


def visible(store: PieceStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir() if not path.name.startswith("."))


def test_a_download_goes_on_where_it_ended(served: PieceServer, tmp_path: Path) -> None:
    manifest = served.manifest(1)
    whole = {piece.name: served.read(piece.name, 0, piece.length) for piece in manifest}
    received = dict.fromkeys(whole, b"")
    for turn in range(2000):  # a new process after every few bytes
        store = PieceStore(tmp_path, PLENTY)
        missing = store.missing(manifest)
        if not missing:
            break
        piece, offset = missing[turn % len(missing)]
        data = whole[piece.name][offset : offset + 997]
        assert received[piece.name] == whole[piece.name][:offset], "no byte crosses twice"
        received[piece.name] += data
        assert store.append(piece, offset, data) == ((tmp_path / piece.name).exists())
    assert received == whole
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole


def test_bytes_that_do_not_follow(tmp_path: Path) -> None:
    store = PieceStore(tmp_path, PLENTY)
    store.append(CONFIG, 0, CONTENT[:5])
    for offset, data in ((0, CONTENT[:5]), (6, CONTENT[6:]), (5, CONTENT[5:] + b"!")):
        with pytest.raises(MalformedMessage, match="expected at most 18 bytes from 5, got"):
            store.append(CONFIG, offset, data)
    assert visible(store) == []
    assert store.append(CONFIG, 5, CONTENT[5:])
    assert visible(store) == ["config.json"]


def test_what_is_not_what_was_announced_never_shows(tmp_path: Path) -> None:
    store = PieceStore(tmp_path, PLENTY)
    with pytest.raises(MalformedMessage, match=r"piece config.json: expected SHA-256 \w{16}\.\.\., got"):
        store.append(CONFIG, 0, CONTENT.replace(b"l", b"L"))
    assert list(tmp_path.iterdir()) == []
    assert store.missing([CONFIG]) == [(CONFIG, 0)]
    assert store.append(CONFIG, 0, CONTENT)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("block-0.safetensors", b"no tensors"),
        (INDEX, b"[]"),
        (INDEX, b"not json"),
        (INDEX, b'{"weight_map": {"a": "../../elsewhere.safetensors"}}'),
        (INDEX, b'{"weight_map": {"a": "model.safetensors"}}'),
        (INDEX, b'{"weight_map": {"a": 1}}'),
        (INDEX, b'{"weight_map": {}, "metadata": {}}'),
        (INDEX, b'{"weight_map": []}'),
    ],
)
def test_content_that_would_lead_elsewhere_never_shows(name: str, content: bytes, tmp_path: Path) -> None:
    store = PieceStore(tmp_path, PLENTY)
    with pytest.raises(MalformedMessage, match=f"piece {name}: expected what its name says"):
        store.append(piece_of(name, content), 0, content)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "piece",
    [
        replace(CONFIG, name=name)
        for name in (
            "../config.json",
            "/etc/passwd",
            "config.json/..",
            "",
            ".",
            "model.safetensors",
            "block-01.safetensors",
            "block-12345.safetensors",
            "block--1.safetensors",
            "block-0.safetensors\n",
            "block-\u0661.safetensors",
            "x/block-0.safetensors",
            "modeling.py",
        )
    ]
    + [replace(CONFIG, length=length) for length in (0, -1, 2**27 + 1)]
    + [replace(CONFIG, sha256=digest) for digest in ("", "../" + 61 * "0", 64 * "G", 64 * "A", 64 * "0" + "\n")],
    ids=repr,
)
def test_announcements_that_are_refused(piece: Piece, tmp_path: Path) -> None:
    store = PieceStore(tmp_path / "store", PLENTY)
    with pytest.raises(MalformedMessage, match="expected a file of a model, of 1 to"):
        store.missing([piece])
    with pytest.raises(MalformedMessage, match="expected a file of a model, of 1 to"):
        store.append(piece, 0, b"x")
    assert list((tmp_path / "store").iterdir()) == []


def test_a_manifest_has_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = Piece("block-0.safetensors", 1000, 64 * "0")
    with pytest.raises(MalformedMessage, match="expected pieces of at most 1022 bytes, got 1023"):
        PieceStore(tmp_path, 1022).missing([block, CONFIG])
    with pytest.raises(MalformedMessage, match=r"expected each piece once, got one twice\. Is it a cutlayer server\?$"):
        PieceStore(tmp_path, PLENTY).missing([CONFIG, CONFIG])
    PieceStore(tmp_path, PLENTY).append(CONFIG, 0, CONTENT[:3])
    for free in (1020, 1019):
        monkeypatch.setattr(pieces.shutil, "disk_usage", lambda _, free=free: shutil._ntuple_diskusage(0, 0, free))
        if free == 1020:
            assert PieceStore(tmp_path, 1023).missing([block, CONFIG]) == [(block, 0), (CONFIG, 3)]
        else:
            with pytest.raises(ModelError, match="expected room for 1020 bytes, got 1019"):
                PieceStore(tmp_path, 1023).missing([block, CONFIG])


def test_a_disk_that_is_full_after_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PieceStore(tmp_path, PLENTY)
    store.append(CONFIG, 0, CONTENT[:5])
    with monkeypatch.context() as patch:
        patch.setattr(pieces.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        with pytest.raises(ModelError, match="No space left"):
            store.append(CONFIG, 5, CONTENT[5:])
    assert visible(store) == []
    assert PieceStore(tmp_path, PLENTY).missing([CONFIG]) == [], "all bytes were there after all"
    assert (tmp_path / "config.json").read_bytes() == CONTENT


def test_a_torn_part_is_fetched_again(tmp_path: Path) -> None:
    store = PieceStore(tmp_path, PLENTY)
    store.append(CONFIG, 0, CONTENT[:5])
    partial = next(tmp_path.iterdir())
    partial.write_bytes(bytes(len(CONTENT)))  # what a file system may leave after a power cut
    assert store.missing([CONFIG]) == [(CONFIG, 0)]
    assert list(tmp_path.iterdir()) == []


def test_another_version_takes_the_place_of_this(tmp_path: Path) -> None:
    store = PieceStore(tmp_path, PLENTY)
    store.append(CONFIG, 0, CONTENT)
    other = b'{"model_type": "bert!"}'
    assert len(other) == len(CONTENT)
    store.append(piece_of("config.json", other), 0, other[:4])
    assert store.missing([CONFIG]) == []
    third = piece_of("config.json", other.upper())
    assert store.missing([third]) == [(third, 0)], "though it is as long"
    assert list(tmp_path.iterdir()) == [], "neither the old one nor the part of the other"


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    save_tiny_model("bert", "classification", tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ModelError, match=r"expected an empty folder or one that holds pieces of a model, got model\."):
        PieceStore(tmp_path, PLENTY)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_manifest_crosses_the_network(served: PieceServer) -> None:
    manifest = served.manifest(BLOCKS, top=BLOCKS)
    assert read_manifest(manifest_bytes(manifest)) == manifest
    assert read_manifest(b"[]") == ()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"1",
        b"{}x",
        b"[" * 100_000,
        b'["config.json"]',
        b'[{"name": "config.json"}]',
        b'[{"name": "config.json", "length": "1", "sha256": ""}]',
        b'[{"name": "config.json", "length": 1.5, "sha256": ""}]',
        b'[{"name": "config.json", "length": true, "sha256": ""}]',
        b'[{"name": ["config.json"], "length": 1, "sha256": ""}]',
        b'[{"name": "config.json", "length": 1, "sha256": "", "more": 1}]',
    ],
)
def test_what_is_no_manifest(data: bytes) -> None:
    with pytest.raises(MalformedMessage, match="manifest: expected"):
        read_manifest(data)


def announced(*names: str, length: int = 100) -> list[Piece]:
    return [Piece(name, length, "0" * 64) for name in names]


@pytest.mark.parametrize(
    ("names", "cut", "top"),
    [
        (["block-2.safetensors"], 2, None),
        (["head.safetensors"], 2, None),
        (["block-1.safetensors"], 1, 3),
        ([f"block-{number}.safetensors" for number in range(MOST_PIECES + 1)], 5000, None),
    ],
)
def test_a_manifest_is_of_what_was_asked_for(names: list[str], cut: int, top: int | None) -> None:
    with pytest.raises(MalformedMessage, match="expected at most"):
        check_due(announced(*names), cut, top)
    check_due(announced("config.json", "embeddings.safetensors", "block-0.safetensors"), 1, None)
    check_due(announced("block-3.safetensors", "head.safetensors"), 1, 3)


def kept(folder: Path, name: str, length: int, used: float) -> None:
    (folder / name).write_bytes(bytes(length))
    os.utime(folder / name, (used, used))


def test_old_pieces_stay_while_there_is_room_and_go_oldest_first(tmp_path: Path) -> None:
    for number, used in ((0, 50.0), (7, 10.0), (8, 30.0), (9, 20.0)):
        kept(tmp_path, f"block-{number}.safetensors", 100, used)
    kept(tmp_path, f".block-6.safetensors.{'a' * 16}.part", 100, 5.0)
    store = PieceStore(tmp_path, 600)
    store.missing(announced("config.json", length=100))
    assert len(list(tmp_path.iterdir())) == 5, "all of it fits"
    store.missing(announced("embeddings.safetensors", "block-1.safetensors", "block-2.safetensors"))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"block-0.safetensors", "block-8.safetensors", "block-9.safetensors"}
    store.missing(announced("block-3.safetensors", length=500))
    assert {path.name for path in tmp_path.iterdir()} == {"block-0.safetensors"}


def test_old_pieces_have_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "MOST_PIECES", 3)
    for number in range(5):
        kept(tmp_path, f"block-{number}.safetensors", 1, number)
    PieceStore(tmp_path, 10**6).missing(announced("config.json"))
    assert {path.name for path in tmp_path.iterdir()} == {"block-3.safetensors", "block-4.safetensors"}


def test_what_this_run_uses_is_never_old(tmp_path: Path) -> None:
    """Not even what an earlier round of it used: its part of the model has it open."""
    store = PieceStore(tmp_path, 250)
    for name in ("block-0.safetensors", "block-1.safetensors"):
        store.missing(announced(name))
        kept(tmp_path, name, 100, 1.0)
    with pytest.raises(MalformedMessage, match="beside those of"):
        store.missing(announced("block-2.safetensors"))
    assert len(list(tmp_path.iterdir())) == 2
