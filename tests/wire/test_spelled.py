"""How a person spells a codec; `test_codecs.py` has what comes of it."""

from __future__ import annotations

import pytest

from cutlayer.errors import ConfigError
from cutlayer.wire.spelled import BITS, PLAIN, parse_codec


@pytest.mark.parametrize("name", PLAIN)
def test_plain_words(name: str) -> None:
    assert parse_codec(name) == (name, 1.0, 0)


@pytest.mark.parametrize("bits", BITS)
def test_sparse_is_of_adapters_alone(bits: int) -> None:
    assert parse_codec(f"sparse:0.5:{bits}", rows=False) == ("sparse", 0.5, bits)
    with pytest.raises(ConfigError):
        parse_codec(f"sparse:0.5:{bits}")


@pytest.mark.parametrize("name", ["", "int9", "topk", "topk:0", "topk:1.1", "topk:x", "sparse:0.5:3", "none:1"])
def test_what_is_none(name: str) -> None:
    with pytest.raises(ConfigError, match="codec: expected none, bf16, int8"):
        parse_codec(name, rows=False)
