"""Settings of a model: in what it computes, and whether anything drops out."""

from __future__ import annotations

import pytest
import torch

from cutlayer.errors import ConfigError
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.settings import ModelSettings


@pytest.mark.parametrize(
    ("dtype", "compute", "expected"),
    [
        ("fp32", None, torch.float32),
        ("bf16", None, torch.bfloat16),
        ("fp16", "fp16", torch.float16),
        ("int8", None, torch.float32),
        ("nf4", "bf16", torch.bfloat16),
        ("int8", "fp16", torch.float16),
    ],
)
def test_weights_in_few_bits_are_computed_with_in_plain_numbers(
    dtype: str, compute: str | None, expected: torch.dtype
) -> None:
    settings = ModelSettings("model", "causal-lm", dtype=dtype, compute=compute)
    assert settings.computes_in is expected
    assert settings.quantised == (dtype if dtype in ("int8", "nf4") else None)


@pytest.mark.parametrize(("dtype", "compute"), [("fp32", "bf16"), ("bf16", "fp32")])
def test_plain_weights_are_computed_with_as_they_are(dtype: str, compute: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.compute: expected {dtype}.*got {compute}"):
        _ = ModelSettings("model", "causal-lm", dtype=dtype, compute=compute).computes_in


def test_something_drops_out_where_the_base_or_lora_does() -> None:
    assert not ModelSettings("model", "causal-lm").drops
    assert ModelSettings("model", "causal-lm", base_dropout=True).drops
    assert ModelSettings("model", "causal-lm", lora=LoraSettings(dropout=0.1)).drops
