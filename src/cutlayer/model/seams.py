"""Seams: a forward pass whose graph is cut between blocks, so that it is followed back one block at a time.

Within `sewn`, what a block hands to the next is a leaf of its own, and the graph ends there:

    forward     ... block 3 -> out 3 | leaf 3 -> block 4 -> out 4 | leaf 4 -> head, loss
    back        loss.backward() leaves a gradient at leaf 4, `back(4)` takes it through block 4 to leaf 3, and so on

Nothing is computed twice, and whoever stops has paid for what was followed back and for nothing else. Followed to its
end, gradients are those of one backward pass, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from cutlayer.model.part import Part


class Seams:
    """The seams of one forward pass at a time.

    Args:
      path: Of the list of blocks, from the backbone (`Family.blocks`).
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._ends: dict[int, tuple[Tensor, Tensor]] = {}  # by block, what it made, and the leaf that stands for it

    @contextmanager
    def sewn(self, part: Part, blocks: Iterable[int]) -> Iterator[None]:
        """A context in which the part runs with a seam behind each of these blocks at or below which something trains.

        Args:
          part: Whose model has the blocks.
          blocks: Their numbers.
        """
        self._ends.clear()
        model: Any = part.model
        held = getattr(model, model.base_model_prefix).get_submodule(self._path)
        wrapped = {index: held[index] for index in blocks}
        for index, block in wrapped.items():
            held[index] = _Sewn(block, index, self._ends)
        try:
            yield
        finally:
            for index, block in wrapped.items():
                held[index] = block

    def back(self, block: int) -> None:
        """Follows the graph back through a block, from where its output's gradient has been left; frees it."""
        made, leaf = self._ends.pop(block)
        made.backward(leaf.grad)

    def forget(self) -> None:
        """Frees what has not been followed back."""
        self._ends.clear()


class _Sewn(nn.Module):
    """A block, and the seam behind it."""

    def __init__(self, block: nn.Module, index: int, ends: dict[int, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.block = block
        self._index, self._ends = index, ends

    def __getattr__(self, name: str) -> Any:
        """The attribute that a model asks of its block, such as the kind of its attention."""
        own = self.__dict__["_modules"]
        return own[name] if name in own else getattr(own["block"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.block(*args, **kwargs)
        if isinstance(output, tuple):
            return (self._cut(output[0]), *output[1:])
        return self._cut(output)

    def _cut(self, made: Tensor) -> Tensor:
        """A leaf in place of what the block made, where a gradient will be wanted of that."""
        if not made.requires_grad:
            return made
        leaf = made.detach().requires_grad_()
        self._ends[self._index] = made, leaf
        return leaf
