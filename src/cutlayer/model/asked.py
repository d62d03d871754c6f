"""Limits on what a config.json may ask for: it comes from a hub, or from a server, and transformers does as it says.

Sizes decide how many modules are made, and how large the tables that no checkpoint holds: a config of a few bytes would
otherwise take a machine's memory before a single weight is read. An implementation of attention that is named by a
repository is a program that transformers would fetch and run. Weights that are stored with scales are not what they
say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cutlayer.errors import ModelError

MOST = {
    re.compile(r"(^|_)layers?$|^depth$|(^|_)blocks$"): 1_024,
    re.compile(r"(^|_)(heads|experts)($|_)|(^|_)head$"): 2**15,
    re.compile(r"(^|_)(d|n|dim|rank|width|embd|inner)($|_)|(hidden|intermediate|embed|embedding|ffn|state)_size$"): 2
    ** 18,
}
"""The most that a number may be, by its key: of blocks, of what each has many of, of how wide something is."""
MOST_ELSE = 2**24
"""The most that any other whole number may be: words, positions (Llama 4 has 10,485,760)."""
FREE = re.compile(r"theta|_base$|^rope|scale|factor|version|seed|eps$|parameters|flops|val$|_ids?$")
"""Pattern of the keys whose number sizes nothing."""
LONGEST = 4_096
"""The most entries of a list, such as the kinds of blocks."""
MOST_BYTES = 2**30
"""The most memory that what a config sizes may take, before a weight is read."""
PLAIN_WEIGHTS = (
    "Name the model in plain numbers (fp32, bf16 or fp16); model.dtype=int8 and nf4 round such a one to few bits."
)


def check_config(name: str, content: Mapping[str, Any]) -> None:
    """Looks at the content of config.json before anything is made of it.

    Args:
      name: The model's, for messages.
      content: Of the whole file.

    Raises:
      ModelError: A size beyond those of any model, a program from elsewhere, quantised weights, or weights under
        another name.
    """
    for path, key, value in _entries(content, ""):
        if isinstance(value, list) and len(value) > LONGEST:
            raise _refused(name, f"at most {LONGEST} entries in {path}", str(len(value)))
        if isinstance(value, int | float) and (most := _most(key, value)) is not None and value > most:
            raise _refused(name, f"{path} of at most {most}", repr(value))
        if "implementation" in key and _elsewhere(value):
            raise ModelError(
                f"model {name}: expected config.json with an implementation that transformers has, got {path}="
                f"{str(value)[:80]!r}, a program from elsewhere. Take it out of config.json."
            )
        if key in ("quantization_config", "compression_config") and value is not None:
            kind = value.get("quant_method", value.get("format")) if isinstance(value, Mapping) else value
            raise ModelError(
                f"model {name}: expected weights in plain numbers, got quantised ones ({path} of config.json says "
                f"{str(kind)[:40]}). {PLAIN_WEIGHTS}"
            )
    if content.get("transformers_weights") is not None:
        raise ModelError(
            f"model {name}: expected weights in model.safetensors or an index of shards, got transformers_weights="
            f"{str(content['transformers_weights'])[:80]!r} in config.json. Rename the file, and take that out."
        )


def _entries(content: Mapping[str, Any], where: str) -> Iterator[tuple[str, str, Any]]:
    """Path, key and value of every entry of a config, those inside others as well."""
    for key, value in content.items():
        path = f"{where}{key}"
        yield path, str(key), value
        if isinstance(value, Mapping):
            yield from _entries(value, f"{path}.")
        elif isinstance(value, list):
            for place, one in enumerate(value[: LONGEST + 1]):
                yield from _entries(one, f"{path}[{place}].") if isinstance(one, Mapping) else [(path, str(key), one)]


def _most(key: str, value: float) -> int | None:
    if FREE.search(key):
        return None
    known = next((most for kind, most in MOST.items() if kind.search(key)), None)
    return MOST_ELSE if known is None and isinstance(value, int) else known


def check_room(name: str, num_bytes: int) -> None:
    """Looks at what a config makes a model take that is not in its files.

    Raises:
      ModelError: More than any model does.
    """
    if num_bytes > MOST_BYTES:
        raise _refused(name, f"sizes of which tables take at most {MOST_BYTES} bytes", f"{num_bytes} bytes")


def _elsewhere(value: Any) -> bool:
    """Whether a value names a repository, by itself or for one of the parts of a model."""
    if isinstance(value, Mapping):
        return any(map(_elsewhere, value.values()))
    return isinstance(value, str) and "/" in value


def _refused(name: str, expected: str, got: str) -> ModelError:
    return ModelError(f"model {name}: expected config.json with {expected}, got {got[:40]}. Fetch the file again.")
