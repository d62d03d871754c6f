"""Kept activations: given back to the bit, within the bound, from the disk as from memory, now or after a stop."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cutlayer.errors import CheckpointError, WireError
from cutlayer.server import cache as module
from cutlayer.server.cache import STORED, ActivationCache
from cutlayer.server.samples import one_by_one
from cutlayer.testing.tiny import random_batch
from cutlayer.wire.messages import Activations, Recall

PLENTY = 2**24
TASKS = ["classification", "causal-lm"]


def batch_of(task: str, *, first: int = 0, device: str = "device-0", dtype: torch.dtype = torch.float32) -> Activations:
    """Four samples of 12, 11, 10 and 9 tokens, padded to 12."""
    batch = random_batch(task, seed=first)
    h_BTD = torch.randn(4, 12, 8, generator=torch.Generator().manual_seed(first)).to(dtype)
    rows_B = torch.arange(first, first + 4, dtype=torch.int32)
    mask_BT, labels = batch.attention_mask_BT.bool(), batch.labels.int()
    return Activations("run", 0, 0, device, h_BTD, mask_BT, labels, batch.weight, rows_B)


def cache_for(task: str, folder: Path | None = None, **changes: Any) -> ActivationCache:
    settings = {"memory_bytes": PLENTY, "stored": "fp32", "dtype": torch.float32, **changes}
    return ActivationCache(folder, per_token=task == "causal-lm", **settings)


def recall(*rows: int, device: str = "device-0", num_tokens: int = 12) -> Recall:
    return Recall("run", 3, 5, device, torch.tensor(rows, dtype=torch.int32), num_tokens)


def assert_given_back(cache: ActivationCache, sent: Activations) -> None:
    """All of it but what was padding."""
    rows = [int(row) for row in sent.rows_B]  # type: ignore[union-attr]
    for original, kept in zip(one_by_one(sent), cache.recall(recall(*rows, device=sent.device)), strict=True):
        mask_T = original.mask_BT[0]
        assert torch.equal(kept.h_BTD[0, mask_T], original.h_BTD[0, mask_T])
        assert kept.h_BTD.shape == original.h_BTD.shape
        assert kept.h_BTD.dtype is original.h_BTD.dtype
        assert not kept.h_BTD[0, ~mask_T].any()
        assert torch.equal(kept.mask_BT, original.mask_BT)
        assert torch.equal(kept.labels, original.labels)
        assert kept.labels.dtype is original.labels.dtype
        assert (kept.device, kept.weight, kept.round, kept.step) == (original.device, original.weight, 3, 5)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_was_kept_is_given_back(task: str, dtype: torch.dtype) -> None:
    cache = cache_for(task, dtype=dtype)
    batches = [batch_of(task, first=first, dtype=dtype) for first in (0, 4)]
    batches.append(batch_of(task, first=0, device="device-1", dtype=dtype))
    for batch in batches:
        cache.keep(one_by_one(batch))
    for _ in ("before it is on the disk", "and after"):
        for batch in batches:
            assert_given_back(cache, batch)
        cache.flush()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("stored", STORED)
def test_the_disk_gives_what_memory_gives(
    task: str, stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so does another process: a run depends neither on the bound nor on being stopped."""
    monkeypatch.setattr(module, "PENDING_BYTES", 600)
    caches = {
        "memory": cache_for(task, tmp_path / "memory", stored=stored),
        "disk": cache_for(task, tmp_path / "disk", stored=stored, memory_bytes=1200),
    }
    for cache in caches.values():
        for first in (0, 4, 8):
            cache.keep(one_by_one(batch_of(task, first=first)))
        cache.flush()
        assert len(cache._places) == 12
    assert len(caches["memory"]._memory) == 12
    assert len(caches["disk"]._memory) < 12
    assert len(list((tmp_path / "disk").iterdir())) > 1
    caches["resumed"] = cache_for(task, tmp_path / "disk", stored=stored)
    caches["resumed"].load(caches["disk"].state())
    for row in range(12):
        first, *others = (cache.recall(recall(row, num_tokens=16))[0] for cache in caches.values())
        for other in others:
            assert torch.equal(first.h_BTD, other.h_BTD)
            assert torch.equal(first.mask_BT, other.mask_BT)
            assert torch.equal(first.labels, other.labels)
            assert first.weight == other.weight


@pytest.mark.parametrize(("stored", "relative", "bytes_per_value"), [("bf16", 2**-7, 2), ("int8", 1 / 127, 1)])
def test_fewer_bits_are_a_bounded_error_and_fewer_bytes(stored: str, relative: float, bytes_per_value: int) -> None:
    """int8 has a scale for each token: its error is half a step of the token's largest value."""
    cache, batch = cache_for("classification", stored=stored), batch_of("classification")
    cache.keep(one_by_one(batch))
    for original, kept in zip(one_by_one(batch), cache.recall(recall(0, 1, 2, 3)), strict=True):
        mask_T = original.mask_BT[0]
        exact_TD, rounded_TD = original.h_BTD[0, mask_T], kept.h_BTD[0, mask_T]
        assert rounded_TD.dtype is torch.float32
        assert ((exact_TD - rounded_TD).abs() <= 0.51 * relative * exact_TD.abs().amax(-1, keepdim=True)).all()
        assert not torch.equal(exact_TD, rounded_TD)
    assert all(sample.h_TD.nbytes == bytes_per_value * sample.h_TD.numel() for sample in cache._new.values())


def test_a_token_of_zeros_stays_zero() -> None:
    cache, batch = cache_for("classification", stored="int8"), batch_of("classification")
    cache.keep(one_by_one(replace(batch, h_BTD=torch.zeros_like(batch.h_BTD))))
    assert not cache.recall(recall(0))[0].h_BTD.any()


def test_memory_stays_within_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PENDING_BYTES", 1000)
    bound, most = 4000, 0
    cache = cache_for("classification", memory_bytes=bound)
    for first in range(0, 80, 4):
        for sample in one_by_one(batch_of("classification", first=first)):
            cache.keep([sample])
            held = [*cache._new.values(), *cache._memory.values()]
            most = max(most, sum(kept.num_bytes for kept in held))
    assert len(cache._places) + len(cache._new) == 80
    for row in range(80):
        cache.recall(recall(row))
    assert sum(kept.num_bytes for kept in [*cache._new.values(), *cache._memory.values()]) <= bound
    assert bound / 2 < most <= bound


def test_a_sample_sent_again_stays_as_it_was() -> None:
    cache, batch = cache_for("classification"), batch_of("classification")
    cache.keep(one_by_one(batch))
    for _ in ("before it is on the disk", "and after"):
        cache.keep(one_by_one(replace(batch, h_BTD=batch.h_BTD + 1)))
        assert_given_back(cache, batch)
        cache.flush()
    assert not cache._new
    assert len(cache._files) == 1


def test_a_sample_that_was_never_sent_is_an_error() -> None:
    cache = cache_for("classification")
    cache.keep(one_by_one(batch_of("classification")))
    with pytest.raises(WireError, match=r"device device-1: expected a sample .*, got row 2"):
        cache.recall(recall(2, device="device-1"))
    with pytest.raises(WireError, match="got row 4"):
        cache.recall(recall(3, 4))


def test_files_of_a_round_that_begins_anew_are_not_used(tmp_path: Path) -> None:
    cache = cache_for("classification", tmp_path)
    cache.keep(one_by_one(batch_of("classification", first=0)))
    cache.flush()
    state = cache.state()
    cache.keep(one_by_one(batch_of("classification", first=4)))
    cache.flush()
    cache.flush()  # nothing new, no file
    assert len(list(tmp_path.iterdir())) == 2
    resumed = cache_for("classification", tmp_path)
    resumed.load(state)
    with pytest.raises(WireError):
        resumed.recall(recall(4))
    resumed.keep(one_by_one(batch_of("classification", first=4)))
    resumed.flush()
    assert_given_back(resumed, batch_of("classification", first=4))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("harm", ["missing", "torn"])
def test_a_file_that_is_not_whole_is_refused(harm: str, tmp_path: Path) -> None:
    cache = cache_for("classification", tmp_path)
    cache.keep(one_by_one(batch_of("classification")))
    cache.flush()
    [path] = tmp_path.iterdir()
    content = path.read_bytes()
    path.unlink()
    if harm == "torn":
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"0000\.safetensors: expected activations that the run keeps"):
        cache_for("classification", tmp_path).load(cache.state())


def test_a_temporary_folder_ends_with_the_cache() -> None:
    cache = cache_for("classification")
    cache.keep(one_by_one(batch_of("classification")))
    cache.flush()
    folder = cache._folder
    assert list(folder.iterdir())
    del cache
    gc.collect()
    assert not folder.exists()
