"""Tensors that are not there: they have a shape, a dtype and a storage, and computing with them costs FLOPs on paper.

torch's fake tensors choose the kernels of the device that they say they are on, which tensors on the meta device do
not, and answer no question about their values. For each operator they look into a cache by a key of all that an
operator may depend on, which takes several times as long as the operator's own shape rule. A transformer's step is
hundreds of matrix products, sums and views that depend on shapes alone; these go straight to their shape rule here,
all others the way of torch. A step of two blocks takes a third of the time so (`tests/model/test_imagined.py` holds the
two ways equal).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count, shape_wrapper

aten = torch.ops.aten

CPU = torch.device("cpu")

BY_SHAPE = frozenset(
    {
        *(aten.mm.default, aten.addmm.default, aten.bmm.default, aten.sum.dim_IntList, aten.mean.dim),
        *(aten.t.default, aten.transpose.int, aten.permute.default, aten.view.default, aten._unsafe_view.default),
        *(
            aten.expand.default,
            aten.unsqueeze.default,
            aten.squeeze.dim,
            aten.slice.Tensor,
            aten.slice_backward.default,
        ),
        *(aten.mul.Tensor, aten.mul.Scalar, aten.add.Tensor, aten.div.Scalar, aten.neg.default, aten.detach.default),
        *(aten.pow.Tensor_Scalar, aten.rsqrt.default, aten.silu.default, aten.silu_backward.default),
        *(aten.cat.default, aten.clone.default, aten.cos.default, aten.sin.default, aten.bitwise_and.Tensor),
    }
)
"""Operators whose one output has a shape that follows from their inputs' by torch's rule for the meta device."""


def _attention(*shapes: torch.Size, **_: object) -> int:
    return int(sdpa_flop_count(*shapes[:3]))


def _attention_backward(*shapes: torch.Size, **_: object) -> int:
    return int(sdpa_backward_flop_count(*shapes[:4]))


FUSED_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""The CPU's kernels, for which torch's counter has no formula."""
FORMULAS = {
    **flop_registry,
    aten.addmm_: flop_registry[aten.addmm],  # weights in a form are multiplied some rows at a time
    **{kernel: shape_wrapper(formula) for kernel, formula in FUSED_ATTENTION.items()},
}


class Imagined(FakeTensorMode):
    """A mode in which tensors on the CPU are imagined, and FLOPs added up by torch's formulas.

    Attributes:
      flops: of what has run in it so far.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.flops = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return CPU  # asked more often than anything is computed
        kwargs = kwargs or {}
        if func in BY_SHAPE and all(_imagined(arg) for arg in args):
            with in_kernel_invocation_manager(self):
                out: Any = FakeTensor(self, func(*args, **kwargs), CPU)
        else:
            before = self.flops
            out = super().__torch_dispatch__(func, types, args, kwargs)
            self.flops = before  # an operator counts as what it is, not as what torch makes it of
        formula = FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.flops += float(formula(*args, **kwargs, out_val=out))
        return out


def _imagined(arg: object) -> bool:
    """Whether nobody knows the values of an argument, if it is a tensor or some: with known ones torch computes."""
    if isinstance(arg, Tensor):
        return isinstance(arg, FakeTensor) and arg.constant is None
    return not isinstance(arg, list) or all(_imagined(one) for one in arg)
