"""Frozen weights in 8 or 4 bits: how they are stored, and the layers that compute with them.

LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale
    Tim Dettmers, Mike Lewis, Younes Belkada, Luke Zettlemoyer. 2022. https://arxiv.org/abs/2208.07339
QLoRA: Efficient Finetuning of Quantized LLMs
    Tim Dettmers, Artidoro Pagnoni, Ari Holtzman, Luke Zettlemoyer. 2023. https://arxiv.org/abs/2305.14314

    int8    a scale for each output (of an embedding: for each token), w = q s, s = max |w| / 127; the first paper's
            vector-wise form for weights alone, without its outliers and without 8-bit activations
    nf4     a scale for each 64 weights that lie together, w = s c[q], s = max |w|, c the second paper's 16 levels
            (its double quantisation of the scales is left out); linear layers inside blocks, all else is int8

A layer makes its weights some rows at a time, uses them and forgets them, forward and backward: never are more than
`CHUNK_NUMBERS` of them there. What it computes is what a plain layer with the weights `Form.dense` gives computes.
Rounding to a form happens on the CPU, so that everybody has the same weights whatever computes.

Shapes: R rows of a weight as it is stored, C columns, N all of its numbers, B blocks of them, S positions of a batch,
I inputs, O outputs.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

Kind = Literal["int8", "nf4"]
KINDS: tuple[Kind, ...] = ("int8", "nf4")
SCALE = "_scale"
"""The end of the name of a weight's scales, which stand beside it everywhere: in a module, in a file, on the wire."""
CHUNK_NUMBERS = 2**18
BLOCK = 64
"""Weights that share a scale in nf4."""
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""QLoRA's NormalFloat4: quantiles of a normal distribution, as its authors' library prints them."""


class HasRows(Protocol):
    """A matrix of which rows can be asked for: a tensor, or rows of a file (`model/rows.py`)."""

    def __getitem__(self, some: slice, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Form:
    """The form in which one weight is stored.

    Attributes:
      kind: int8 or nf4.
      shape: (R, C) of the weight.
      outputs: the axis of its outputs, or of an embedding's tokens: 0, or 1 where inputs come first, as in GPT-2.
    """

    kind: Kind
    shape: tuple[int, int]
    outputs: int = 0

    @property
    def stored(self) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype of the numbers."""
        if self.kind == "int8":
            return self.shape, torch.int8
        return (self.shape[0] * self.shape[1] // 2,), torch.uint8

    @property
    def scales(self) -> tuple[int, ...]:
        """Shape of the scales, which are fp32."""
        return (self.shape[self.outputs] if self.kind == "int8" else self.shape[0] * self.shape[1] // BLOCK,)

    @property
    def num_bytes(self) -> int:
        """Bytes of the numbers and the scales."""
        stored, dtype = self.stored
        return torch.Size(stored).numel() * dtype.itemsize + 4 * self.scales[0]

    def rounded(self, weight_RC: HasRows) -> tuple[Tensor, Tensor]:
        """A weight in this form: numbers and scales, on the CPU. Of the weight, some rows at a time are asked for."""
        if self.kind == "int8":
            return self._int8(weight_RC)
        made = (_nf4(weight_RC[first:end].detach().cpu().float()) for first, end in self._chunks())
        packed, scales = zip(*made, strict=True)
        return torch.cat(packed), torch.cat(scales)

    def _int8(self, weight_RC: HasRows) -> tuple[Tensor, Tensor]:
        chunks = self._chunks()
        buffer_RC = torch.empty(chunks[0][1], self.shape[1])  # one for all rows: no temporaries
        largest = torch.zeros(self.scales)
        for first, end in chunks if self.outputs else ():  # all rows have a part in each scale
            some_RC = buffer_RC[: end - first].copy_(weight_RC[first:end].detach())
            torch.maximum(largest, some_RC.abs_().amax(0), out=largest)
        numbers_RC = torch.empty(self.shape, dtype=torch.int8)
        for first, end in chunks:
            some_RC = buffer_RC[: end - first].copy_(weight_RC[first:end].detach())
            if self.outputs == 0:
                largest[first:end] = torch.maximum(some_RC.amax(1), some_RC.amin(1).neg_()).abs_()  # no -0.0
            scale = self._of_rows(largest, first, end) / 127
            some_RC.div_(torch.where(scale > 0, scale, 1.0)).round_()
            numbers_RC[first:end] = some_RC.clamp_(-127, 127)
        return numbers_RC, largest / 127

    def rows(
        self, numbers: Tensor, scale: Tensor, first: int, end: int, dtype: torch.dtype, room: Tensor | None = None
    ) -> Tensor:
        """Rows `[first, end)` of the weight, (R, C): made in fp32, then rounded to the dtype.

        Args:
          numbers: As they are stored.
          scale: Likewise.
          first: The first row.
          end: The row after the last.
          dtype: Of what is returned.
          room: Where they are made, fp32 with room for as many numbers; None for memory of their own.
        """
        columns = self.shape[1]
        count = (end - first) * columns
        made_N = torch.empty(count, device=numbers.device) if room is None else room[:count]
        made_RC = made_N.view(end - first, columns)
        if self.kind == "int8":
            return made_RC.copy_(numbers[first:end]).mul_(self._of_rows(scale, first, end)).to(dtype)
        some = slice(first * columns // BLOCK, end * columns // BLOCK)
        pairs = PAIRS if numbers.device.type == "cpu" else _pairs_on(numbers.device)
        places = numbers[first * columns // 2 : end * columns // 2].int()
        torch.index_select(pairs, 0, places, out=made_N.view(-1, 2))
        made_N.view(-1, BLOCK).mul_(scale[some, None])
        return made_RC.to(dtype)

    def _of_rows(self, scale: Tensor, first: int, end: int) -> Tensor:
        """The scales by which rows of int8 are multiplied: a column of them, or a row where outputs lie in columns."""
        return scale if self.outputs else scale[first:end, None]

    def dense(self, numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight as layers compute with it, (R, C)."""
        made_RC = torch.empty(self.shape, dtype=dtype, device=numbers.device)
        for first, end, rows_RC in self.chunks(numbers, scale, dtype):
            made_RC[first:end] = rows_RC
        return made_RC

    def chunks(self, numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Iterator[tuple[int, int, Tensor]]:
        """The weight's rows, some at a time: from, to, and they, which are there until the next are asked for."""
        chunks = self._chunks()
        room = _room(numbers, chunks[0][1] * self.shape[1])
        for first, end in chunks:
            yield first, end, self.rows(numbers, scale, first, end, dtype, room)

    def _chunks(self) -> list[tuple[int, int]]:
        rows, columns = self.shape
        each = max(1, CHUNK_NUMBERS // columns)
        if self.kind == "nf4":  # whole blocks of scales
            whole = next((n for n in (1, 2, 4, 8, 16, 32, 64) if n * columns % BLOCK == 0), BLOCK)
            each = max(whole, each // whole * whole)
        return [(first, min(first + each, rows)) for first in range(0, max(rows, 1), each)]


_ROOMS = threading.local()


def _room(numbers: Tensor, count: int) -> Tensor | None:
    """Memory in which this thread makes weights of numbers, fp32: it is kept, up to `CHUNK_NUMBERS`.

    Were it asked for again for every layer, glibc's heap would keep a hundred megabytes of holes between small tensors
    that outlive it. Of fake tensors and where there is no memory, none.
    """
    if type(numbers) not in (Tensor, nn.Parameter) or numbers.is_meta or count > CHUNK_NUMBERS:
        return None
    rooms: dict[torch.device, Tensor] = _ROOMS.__dict__.setdefault("by_device", {})
    room = rooms.get(numbers.device)
    if room is None or len(room) < count:
        with torch.inference_mode(False):
            room = rooms[numbers.device] = torch.empty(CHUNK_NUMBERS, device=numbers.device)
    return room


PAIRS = torch.stack([torch.tensor(LEVELS).repeat_interleave(16), torch.tensor(LEVELS).repeat(16)], 1)
"""The two levels that a byte stands for, (256, 2): those of its upper four bits, then of its lower."""


@cache
def _pairs_on(device: torch.device) -> Tensor:
    return PAIRS.to(device)


def _nf4(weight_RC: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes of two levels each, and the scale of each block; ties between two levels go to the lower."""
    blocks_BN = weight_RC.reshape(-1, BLOCK)
    scale = blocks_BN.abs().amax(1)
    levels = torch.tensor(LEVELS)
    between = (levels[1:] + levels[:-1]) / 2
    nearest = torch.bucketize(blocks_BN / torch.where(scale > 0, scale, 1.0)[:, None], between)
    pairs = nearest.to(torch.uint8).view(-1, 2)
    return pairs[:, 0] * 16 + pairs[:, 1], scale


# ------------------------------------------------------------------ layers


class _Product(torch.autograd.Function):
    """The product of an input and a weight, with a gradient for the input and none for the weight."""

    @staticmethod
    def forward(ctx: Any, x_SI: Tensor, numbers: Tensor, scale: Tensor, bias: Tensor | None, form: Form) -> Tensor:
        ctx.save_for_backward(numbers, scale)
        ctx.form, ctx.dtype = form, x_SI.dtype
        chunks = form.chunks(numbers, scale, x_SI.dtype)
        if form.outputs == 1:
            _, end, rows_IO = next(chunks)
            y_SO = x_SI[:, :end] @ rows_IO if bias is None else torch.addmm(bias, x_SI[:, :end], rows_IO)
            for first, end, rows_IO in chunks:
                y_SO.addmm_(x_SI[:, first:end], rows_IO)
            return y_SO
        y_SO = x_SI.new_empty(len(x_SI), form.shape[0])
        for first, end, rows_OI in chunks:
            if bias is None:
                torch.mm(x_SI, rows_OI.T, out=y_SO[:, first:end])
            else:
                torch.addmm(bias[first:end], x_SI, rows_OI.T, out=y_SO[:, first:end])
        return y_SO

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (dy_SO,), form = gradients, ctx.form
        chunks = form.chunks(*ctx.saved_tensors, ctx.dtype)
        if form.outputs == 1:
            dx_SI = dy_SO.new_empty(len(dy_SO), form.shape[0])
            for first, end, rows_IO in chunks:
                torch.mm(dy_SO, rows_IO.T, out=dx_SI[:, first:end])
            return dx_SI, None, None, None, None
        _, end, rows_OI = next(chunks)
        dx_SI = dy_SO[:, :end] @ rows_OI
        for first, end, rows_OI in chunks:
            dx_SI.addmm_(dy_SO[:, first:end], rows_OI)
        return dx_SI, None, None, None, None


class _Quantised(nn.Module):
    """A layer whose weight is in a form. Its weight as a plain layer has it is nowhere: `weight` says dtype and shape,
    and whoever would read its numbers is told by torch that there are none."""

    form: Form
    dtype: torch.dtype
    weight_scale: Tensor

    @property
    def weight(self) -> Tensor:
        """A tensor on the meta device, of the shape and dtype that the dense weight has."""
        return torch.empty(self.form.shape, dtype=self.dtype, device="meta")

    @property
    def numbers(self) -> Tensor:
        """The weight as it is stored."""
        stored = self._parameters["weight"]
        assert stored is not None
        return stored

    def _times(self, x: Tensor) -> Tensor:
        bias: Any = self.bias
        flat = x.reshape(-1, x.shape[-1])
        made: Tensor = _Product.apply(flat, self.numbers, self.weight_scale, bias, self.form)  # type: ignore[no-untyped-call]
        return made.view(*x.shape[:-1], made.shape[-1])


class _Linear(_Quantised, nn.Linear):  # type: ignore[override]
    def forward(self, input: Tensor) -> Tensor:
        return self._times(input)


class _Conv1D(_Quantised, Conv1D):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        return self._times(x)


class _Embedding(_Quantised, nn.Embedding):  # type: ignore[override]
    def forward(self, input: Tensor) -> Tensor:
        numbers = functional.embedding(input, self.numbers)
        return numbers.float().mul_(functional.embedding(input, self.weight_scale[:, None])).to(self.dtype)


LAYERS: tuple[tuple[type[nn.Module], type[_Quantised]], ...] = (
    (nn.Linear, _Linear),
    (Conv1D, _Conv1D),
    (nn.Embedding, _Embedding),
)


@cache
def _class_of(plain: type[nn.Module]) -> type[_Quantised]:
    """A class of layer with its weight in a form; what a family does around the plain layer, it still does."""
    base, ours = next((base, ours) for base, ours in LAYERS if issubclass(plain, base))
    return ours if plain is base else type(f"Quantised{plain.__name__}", (plain, ours), {})


def forms_of(
    model: nn.Module, kind: Kind, blocks_path: str, trained: Collection[str], looked_up: Collection[str]
) -> dict[str, Form]:
    """The forms of a model's weights by name: of every linear layer, and of every embedding that is looked up.

    Args:
      model: The whole task model, on any device.
      kind: See the module's docstring.
      blocks_path: Path of the block list.
      trained: Modules that are trained, which stay as they are with all that is in them.
      looked_up: Modules whose embeddings are looked up by ids. Others stay as they are: a block may read such a table
        whole, as DeBERTa's do the one of relative positions.
    """
    forms = {}
    for path, module in model.named_modules():
        if _within(path, trained) or (isinstance(module, nn.Embedding) and not _within(path, looked_up)):
            continue
        if isinstance(module, (nn.Linear, Conv1D, nn.Embedding)):
            rows, columns = module.weight.shape
            fits = path.startswith(f"{blocks_path}.") and rows * columns % BLOCK == 0
            layer: Kind = kind if fits and not isinstance(module, nn.Embedding) else "int8"
            forms[f"{path}.weight"] = Form(layer, (rows, columns), int(isinstance(module, Conv1D)))
    return forms


def _within(path: str, modules: Collection[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in modules)


def quantise(model: nn.Module, forms: dict[str, Form], dtype: torch.dtype) -> None:
    """Gives a part's layers their forms, with numbers and scales on the meta device; values come later.

    Args:
      model: The part, with LoRA on it; its matrices may be smaller than the model's.
      forms: See `forms_of`.
      dtype: What the layers compute in.
    """
    for path, module in list(model.named_modules()):
        form = forms.get(f"{path}.weight".replace(".base_layer.", "."))
        if form is None or not isinstance(module, (nn.Linear, Conv1D, nn.Embedding)):
            continue  # none of ours, or a stand-in for a block that the part has not
        rows, columns = module.weight.shape
        form = replace(form, shape=(rows, columns))
        stored, as_dtype = form.stored
        layer: Any = module
        layer._parameters["weight"] = nn.Parameter(
            torch.empty(stored, dtype=as_dtype, device="meta"), requires_grad=False
        )
        layer.register_parameter("weight_scale", nn.Parameter(torch.empty(form.scales, device="meta"), False))
        layer.form, layer.dtype = form, dtype
        layer.__class__ = _class_of(layer.__class__)


def dense_weight(layer: nn.Module) -> Tensor:
    """The weight of a layer, whatever its form, for whoever must see its numbers. See `Form.dense`."""
    if isinstance(layer, _Quantised):
        return layer.form.dense(layer.numbers, layer.weight_scale, layer.dtype)
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight
