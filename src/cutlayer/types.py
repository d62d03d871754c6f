"""The nouns that every room shares. No behaviour beyond what a noun can say of itself.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from torch import Tensor

Adapter = dict[str, Tensor]
"""The trainable tensors by their global name: LoRA factors of every block, and the head's where there is one.

Names are those of the exported PEFT file (`base_model.model.<module path>.lora_A.weight`), the same on a
device, on the server, on disk: joining two sides is a dictionary union, moving a cut moves names.
"""

TaskKind = Literal["classification", "causal-lm"]


@dataclass(frozen=True, slots=True)
class Batch:
    """One mini-batch, padded on the right to its longest sample.

    `weight` is the loss normaliser: samples for classification, unmasked target tokens for causal LM. Averages
    over devices use it, so that devices with longer texts count by what they really trained on.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    labels: Tensor  # (B,) class ids, or (B, T) token ids with -100 where the loss is masked
    token_type_ids_BT: Tensor | None
    indices: tuple[int, ...]  # rows of the training set, for the law that every sample counts once
    weight: int

    @property
    def num_samples(self) -> int:
        return int(self.input_ids_BT.shape[0])

    @property
    def num_tokens(self) -> int:
        """Positions, padding included: what the arithmetic costs."""
        return int(self.input_ids_BT.shape[1])


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """What one device does in one round."""

    device: str
    cut: int = 0
    """Number of blocks the device holds: it has the embeddings and blocks [0, cut)."""
    batch_size: int = 16
    local_steps: int = 1


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """Who takes part in a round and how. Planners map a plan to a better plan."""

    round: int
    devices: tuple[DevicePlan, ...] = ()

    def with_each(self, change: Callable[[DevicePlan], DevicePlan]) -> RoundPlan:
        return replace(self, devices=tuple(change(device) for device in self.devices))


@dataclass(frozen=True, slots=True)
class Cost:
    """What one step of one part costs. FLOPs of a forward pass, of a backward pass; bytes that it must hold."""

    forward_flops: float
    backward_flops: float
    memory_bytes: int


class Costs(Protocol):
    """The cost model, as planners see it (`model/cost.py` is the real one)."""

    num_blocks: int

    def device(self, cut: int, num_samples: int, num_tokens: int) -> Cost: ...

    def server(self, cut: int, num_samples: int, num_tokens: int) -> Cost: ...


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one device measured in one round. Times are virtual in simulation, wall on a real fleet."""

    round: int
    device: str
    steps: int
    samples: int
    weight: int
    loss: float
    busy_seconds: float
    network_seconds: float
    waiting_seconds: float
    bytes_up: int
    bytes_down: int


@dataclass(slots=True)
class History:
    """What rounds really did: the only thing that a learning planner may learn from."""

    records: list[StepRecord] = field(default_factory=list)

    def of(self, device: str) -> list[StepRecord]:
        return [record for record in self.records if record.device == device]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that one machine did from when to when: a bar of the Gantt chart.

    `what` is one of: forward, backward, step, upload, download, wait, aggregate.
    """

    who: str
    what: str
    start_seconds: float
    end_seconds: float
    round: int
    step: int | None = None
    peer: str | None = None
    num_bytes: int = 0


Recorder = Callable[[Event], None]
Update = Mapping[str, Tensor]
