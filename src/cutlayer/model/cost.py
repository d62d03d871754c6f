"""What one step of a part costs, counted and not assumed: FLOPs by torch's counter, memory by what autograd keeps.

Nothing is computed: parts are built on the meta device and run at three lengths on fake tensors, which choose the
CPU's kernels (fused attention keeps no T x T matrix) and answer no question about their values. Per sample, every
quantity of a transformer is a polynomial of the length T, constant (a head on one vector) + linear (projections) +
quadratic (attention), so three lengths fix it exactly and any batch is then one multiplication
(`tests/model/test_cost.py` counts other shapes directly and compares).

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from cutlayer.model.base import Base, ModelSettings
from cutlayer.model.part import DevicePart, Part, ServerPart
from cutlayer.types import Cost

PROBE_LENGTHS = (16, 32, 48)
PROBE_SAMPLES = 2
BYTES_PER_TRAINABLE = 16
"""fp32 value, gradient and AdamW's two moments."""
TRANSIENTS = 2
"""Tensors as large as the largest one alive at the peak that no graph keeps: an input and an output of one operator."""
HEAP_SLACK = 1.25
"""What comes and goes takes this much more of the heap than it has bytes: a middle course. Where every tensor is mapped
on its own it is 1.0; glibc's heap keeps holes that no tensor fits (`tests/model/test_cost_memory.py` measures both)."""

AnyPart = TypeVar("AnyPart", bound=Part)


@dataclass(frozen=True, slots=True)
class Counts:
    """What one pass at one shape cost."""

    forward_flops: float
    backward_flops: float
    kept_bytes: int
    largest_bytes: int


class CostModel:
    """Costs of device-side and server-side steps at any cut and batch shape.

    Args:
      settings: The model; its weights are not read.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self._base = Base(settings, device="meta")
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.num_blocks = self._base.num_blocks
        self._settings = settings

    @cache  # noqa: B019  (one cost model per run; cuts and batch shapes are few, and every step asks)
    def device(self, cut: int, num_samples: int, num_tokens: int) -> Cost:
        """One step of a device: `num_samples` x `num_tokens`, padding included."""
        return self._price(
            self._device_polynomial(cut),
            self._fixed_bytes(self._device_part(cut)),
            num_samples,
            num_tokens,
        )

    @cache  # noqa: B019
    def server(self, cut: int, num_samples: int, num_tokens: int) -> Cost:
        """The server's step for a device with this cut; memory is that of one model, one adapter and one batch."""
        return self._price(
            self._server_polynomial(cut),
            self._fixed_bytes(self._server_part(cut)),
            num_samples,
            num_tokens,
        )

    def activation_bytes(self, num_samples: int, num_tokens: int) -> int:
        """The activations that cross the cut, one way, in the run's dtype."""
        return num_samples * num_tokens * self.hidden_size * self._base.dtype.itemsize

    def adapter_bytes(self, names: list[str]) -> int:
        """The fp32 tensors that go by these names."""
        return 4 * sum(int(np.prod(self._base.shapes[name])) for name in names)

    def device_adapter_bytes(self, cut: int) -> int:
        """What a device sends at the end of a round."""
        return self.adapter_bytes(self._base.device_names(cut))

    @cache  # noqa: B019
    def adapters_on_device(self, cut: int) -> int:
        """Number of LoRA layers that a device holds."""
        return sum(".lora_A." in name for name in self._base.device_names(cut))

    @cached_property
    def hidden_size(self) -> int:
        """D: the width of the activations."""
        part = self._device_part(0)
        with self._fake:
            return int(part.forward(_inputs(1, 1)).shape[-1])

    @cached_property
    def _without_recomputing(self) -> CostModel:
        return CostModel(replace(self._settings, checkpoint_device=False, checkpoint_server=False))

    def _price(self, coefficients: np.ndarray, fixed_bytes: int, num_samples: int, num_tokens: int) -> Cost:
        per_sample = coefficients @ np.array([1.0, num_tokens, num_tokens**2])
        forward, backward, kept, largest = np.rint(per_sample * num_samples)
        return Cost(float(forward), float(backward), int(fixed_bytes + HEAP_SLACK * (kept + TRANSIENTS * largest)))

    @cache  # noqa: B019
    def _device_part(self, cut: int) -> DevicePart:
        return self._faked(self._base.device_part(cut))

    @cache  # noqa: B019
    def _server_part(self, cut: int) -> ServerPart:
        return self._faked(self._base.server_part(cut))

    def _faked(self, part: AnyPart) -> AnyPart:
        """The part with fake tensors on the CPU where there were tensors on the meta device."""
        with self._fake:
            part.model.to_empty(device="cpu")
        return part

    @cache  # noqa: B019
    def _device_polynomial(self, cut: int) -> np.ndarray:
        part = self._device_part(cut)

        def step(length: int) -> Counts:
            inputs = _inputs(PROBE_SAMPLES, length)
            return _count(part, lambda: part.forward(inputs))

        coefficients = self._fit(part, step)
        if self._settings.checkpoint_device and cut > 0:  # while one block is recomputed, its activations are there
            coefficients[2] += self._without_recomputing._device_polynomial(cut)[2] / cut
        return coefficients

    @cache  # noqa: B019
    def _server_polynomial(self, cut: int) -> np.ndarray:
        part = self._server_part(cut)
        classes, hidden_size = self._settings.task == "classification", self.hidden_size

        def step(length: int) -> Counts:
            shape = (PROBE_SAMPLES, length)
            h_BTD = torch.zeros(*shape, hidden_size, dtype=self._base.dtype, requires_grad=cut > 0)
            mask_BT = torch.ones(shape, dtype=torch.bool)
            labels = torch.zeros(shape[:1] if classes else shape, dtype=torch.long)
            return _count(part, lambda: part.loss(h_BTD, mask_BT, labels))

        coefficients = self._fit(part, step)
        if self._settings.checkpoint_server and cut < self.num_blocks:
            coefficients[2] += self._without_recomputing._server_polynomial(cut)[2] / (self.num_blocks - cut)
        return coefficients

    def _fit(self, part: Part, step: Callable[[int], Counts]) -> np.ndarray:
        """(4, 3): per quantity the coefficients of 1, T and T**2, per sample."""
        with self._fake:
            part.use({name: nn.Parameter(torch.empty(self._base.shapes[name])) for name in part.names})
            counts = [step(length) for length in PROBE_LENGTHS]
        values = np.array([[c.forward_flops, c.backward_flops, c.kept_bytes, c.largest_bytes] for c in counts])
        powers = np.array([[1.0, length, length**2] for length in PROBE_LENGTHS])
        coefficients: np.ndarray = np.linalg.solve(powers, values / PROBE_SAMPLES).T
        return coefficients

    @cache  # noqa: B019
    def _fixed_bytes(self, part: Part) -> int:
        """Frozen weights, and the trainable tensors with gradient and moments."""
        trained = {slot.module._parameters[slot.attribute] for slot in part.slots}
        frozen = sum(p.numel() * p.element_size() for p in part.model.parameters() if p not in trained)
        return frozen + BYTES_PER_TRAINABLE * sum(int(np.prod(self._base.shapes[name])) for name in part.names)


@cache
def cost_model(settings: ModelSettings) -> CostModel:
    """The cost model for these settings, one per process: what was counted once is not counted again."""
    return CostModel(settings)


def _attention(*shapes: torch.Size, **_: object) -> int:
    return int(sdpa_flop_count(*shapes[:3]))


def _attention_backward(*shapes: torch.Size, **_: object) -> int:
    return int(sdpa_backward_flop_count(*shapes[:4]))


FUSED_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""The CPU's kernels, for which torch's counter has no formula."""


def _inputs(num_samples: int, num_tokens: int) -> dict[str, Tensor]:
    shape = (num_samples, num_tokens)
    return {
        "input_ids": torch.zeros(shape, dtype=torch.long),
        "attention_mask": torch.ones(shape, dtype=torch.long),
    }


def _count(part: Part, forward: Callable[[], Tensor]) -> Counts:
    """Runs forward and, where something trains, backward, within a fake mode."""
    weights = {_storage(parameter) for parameter in part.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        FlopCounterMode(display=False, custom_mapping=FUSED_ATTENTION) as ahead,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        output = forward()
    # what the loss of a language model keeps, it turns into its gradient in place
    reused = {_storage(tensor) for tensor in getattr(output.grad_fn, "saved_tensors", ())}
    back_flops = 0.0
    if output.requires_grad:
        with FlopCounterMode(display=False, custom_mapping=FUSED_ATTENTION) as back:
            output.backward(torch.empty_like(output))
        back_flops = float(back.get_total_flops())
    others = (size for storage, size in kept.items() if storage not in reused)
    largest = max([*others, output.numel() * output.element_size()])
    return Counts(float(ahead.get_total_flops()), back_flops, sum(kept.values()), largest)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
