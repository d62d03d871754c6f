"""A model that no row of the family table names, recognised by its build, and tried before it is believed.

Many architectures are Llama with other numbers, and new ones come every month. One whose backbone has the modules of
Llama under Llama's names has Llama's row. Names do not say what a forward pass does with the modules, so a small model
of the same config is made, with random weights, and cut: the two halves must give the logits and the gradients of the
whole, bit for bit. That takes a fraction of a second, and reads no weight.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cutlayer.errors import ModelError
from cutlayer.model.asked import check_room
from cutlayer.model.cut import keep_device_side, keep_server_side
from cutlayer.model.families import FAMILIES, Family
from cutlayer.model.part import fed_inputs
from cutlayer.model.pooling import install_pooling
from cutlayer.reading import TaskKind

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "moe_intermediate_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Sizes that a config says, made small. What it says of kinds stays."""
MOST_BLOCKS = 8
"""Blocks that are tried: more than the period of any pattern of kinds of blocks that is in use."""

_TRIED: dict[str, Family] = {}
"""The rows that were recognised in this process, by config and task: every part of it asks."""


def recognised(name: str, config: Any, task: TaskKind, build: Callable[..., Any]) -> Family:
    """The row of a model that is built like Llama.

    Args:
      name: The model's, for the error.
      config: Its config.
      task: What it is wanted for.
      build: Makes the task model of a config on the meta device, or on the one that it is given as well.

    Raises:
      ModelError: It is not, or a cut changes what it computes; says which.
    """
    known = f"{config.to_json_string()} {task}"
    if known not in _TRIED:
        _TRIED[known] = _tried(name, config, task, build)
    return _TRIED[known]


def _tried(name: str, config: Any, task: TaskKind, build: Callable[..., Any]) -> Family:
    row = Family(config.model_type)
    model = build(config)
    backbone = getattr(model, model.base_model_prefix)
    tables = [path for path, module in backbone.named_modules() if isinstance(module, nn.Embedding)]
    others = [path for path in tables if path != row.embeddings]
    if row.embeddings in tables and others:
        raise _refused(
            name,
            config,
            f"looks up {', '.join(others[:3])} beside {row.embeddings}: blocks that read token ids cannot run where "
            "there are none. If these are tables of positions, name them in a file (docs/adding-a-family.md) and give "
            "that as --family",
        )
    missing = _missing(backbone, row)
    if missing is not None:
        raise ModelError(
            f"model {name}: expected one of the families {', '.join(sorted(FAMILIES))}, or one built like Llama, got "
            f"{config.model_type!r}, which has no {missing}. Name its blocks, embeddings, positions, after_embeddings, "
            "final, attention and head modules in a file and give that as --family (docs/adding-a-family.md), or use "
            "another model."
        )
    small = build(_small(config))
    check_room(name, sum(parameter.nbytes for parameter in small.parameters()))
    difference = _difference(config, row, task, build)
    if difference is not None:
        raise _refused(name, config, f"does not survive a cut: {difference}")
    return row


def _refused(name: str, config: Any, why: str) -> ModelError:
    return ModelError(
        f"model {name}: expected a model that can be cut, got {config.model_type!r}, which {why}. Use another model."
    )


def _missing(backbone: nn.Module, row: Family) -> str | None:
    """The first module that a Llama has and this model has not."""
    modules = dict(backbone.named_modules())
    for path, kind in ((row.embeddings, nn.Embedding), (row.blocks, nn.ModuleList), (row.final[0], nn.Module)):
        if not isinstance(modules.get(path), kind):
            return path
    blocks = modules[row.blocks]
    assert isinstance(blocks, nn.ModuleList)
    for index in range(len(blocks)):
        for path in (*row.qkv, row.attention_output):
            if not isinstance(modules.get(f"{row.blocks}.{index}.{path}"), nn.Linear):
                return f"{row.blocks}.{index}.{path}"
    return None


def _difference(config: Any, row: Family, task: TaskKind, build: Callable[..., Any]) -> str | None:
    """The difference that a cut makes in a small model of this config; None if it makes none."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = build(_small(config), "cpu").eval()
            if task == "classification":
                install_pooling(model, row, row.poolings[0])
            whole = _computed(model, model, None)
            num_blocks = len(_backbone(model).get_submodule(row.blocks))
            for cut in sorted({1, num_blocks // 2, num_blocks - 1} - {0}):
                device, server = copy.deepcopy(model), copy.deepcopy(model)
                keep_device_side(device, _backbone(device), row, cut)
                feed = keep_server_side(_backbone(server), row, cut, num_blocks, model.dtype)
                split = _computed(device, server, feed)
                other = [path for path, value in whole.items() if not torch.equal(value, split[path])]
                if other:
                    return f"cut at block {cut}, {len(other)} of {len(whole)} results of a small one are others"
    except Exception as error:  # whatever a forward pass raises that relies on what is not there
        return f"a small one of its config ends with {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


def _backbone(model: Any) -> Any:
    return getattr(model, model.base_model_prefix)


def _small(config: Any) -> Any:
    """The config with small sizes and at most `MOST_BLOCKS` blocks."""
    values, num_blocks = config.to_dict(), config.num_hidden_layers
    small = {key: SMALL.get(key, value) if isinstance(value, int) else value for key, value in values.items()}
    small["num_hidden_layers"] = min(num_blocks, MOST_BLOCKS)
    for key, value in values.items():
        if isinstance(value, list) and len(value) == num_blocks:  # the kind of each block
            small[key] = value[:MOST_BLOCKS]
    return type(config).from_dict(small)


def _computed(device: Any, server: Any, feed: Any) -> dict[str, Tensor]:
    """Logits and the gradients of the blocks' weights of one batch; `feed` is None where the model is whole."""
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(3, SMALL["vocab_size"], (2, 8), generator=generator)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, 6:] = 0
    inputs = {"input_ids": ids_BT * mask_BT, "attention_mask": mask_BT, "use_cache": False}
    if feed is None:
        logits = device(**inputs).logits
        logits.float().square().mean().backward()
    else:
        h_BTD = _backbone(device)(**inputs).last_hidden_state
        feed.h_BTD = h_BTD.detach().requires_grad_()
        logits = server(**fed_inputs(feed.h_BTD, mask_BT.bool()), use_cache=False).logits
        logits.float().square().mean().backward()
        h_BTD.backward(feed.h_BTD.grad)
    found = {"logits": logits.detach()}
    for model in (device, server):
        for path, parameter in _backbone(model).named_parameters():
            if ".layers." in f".{path}" and parameter.grad is not None:
                found[path] = parameter.grad
    if feed is None:
        device.zero_grad(set_to_none=True)
    return found
