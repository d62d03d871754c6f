"""The nouns that every room shares. No behaviour beyond what a noun can say of itself.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Tensor

Adapter = dict[str, Tensor]
"""The trainable tensors by their global name: LoRA factors of every block, and the head's where there is one.

Names are those of the exported PEFT file (`base_model.model.<module path>.lora_A.weight`), the same on a
device, on the server, on disk: joining two sides is a dictionary union, moving a cut moves names.
"""


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


def adapted_blocks(ranks: tuple[int, ...]) -> frozenset[int] | None:
    """The blocks that have an adapter at these ranks; None for all of them.

    Ranks by module (`DevicePlan.ranks`) have no 0 among them.
    """
    return frozenset(block for block, rank in enumerate(ranks) if rank) if 0 in ranks else None


class Clause:
    """A part of a device's plan that one policy adds and one shape reads: a frozen dataclass beside its policy.

    Its fields are plain values: text, whole numbers, numbers, true or false, or tuples of one of these. It travels
    under the name of its class.
    """

    kinds: ClassVar[dict[str, type[Clause]]] = {}
    """Every clause that has been imported, by name: what a device can read of a plan."""

    def __init_subclass__(cls) -> None:
        known = Clause.kinds.setdefault(cls.__name__, cls)
        assert known.__module__ == cls.__module__, f"two clauses are called {cls.__name__}"
        Clause.kinds[cls.__name__] = cls

    @property
    def other_ranks(self) -> tuple[tuple[int, ...], ...]:
        """The LoRA ranks with which a device may end a round, besides those of its plan."""
        return ()

    @property
    def one_rate(self) -> bool:
        """Whether all local steps of a round have the learning rate of the first."""
        return False


C = TypeVar("C", bound=Clause)


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """The work of one device in one round. What only some methods decide is in clauses.

    Example:
      >>> from cutlayer import DevicePlan
      >>> DevicePlan("pi-1", cut=2, ranks=(8, 8, 0)).blocks == {0, 1}
      True
      >>> ends = DevicePlan("pi-1", cut=1, top=3)  # of a model of four blocks
      >>> [block for block in range(4) if ends.holds(block)], ends.alone
      ([0, 3], False)
    """

    device: str
    cut: int = 0
    """Number of blocks the device holds: it has the embeddings and blocks [0, cut)."""
    batch_size: int = 16
    local_steps: int = 1
    top: int | None = None
    """The first block of the tail that the device holds too: blocks [top, L), the final norm and the head, and so the
    labels stay with it. L for no block of a tail, None where the server has the head."""
    ranks: tuple[int, ...] = ()
    """LoRA rank on each block of the model, 0 for no adapter there; or, all above 0, on each LoRA module, block after
    block (`Base.modules`); empty for the run's rank everywhere."""
    micro_batches: int = 1
    """Into how many parts a local step's batch is cut: fewer, where there would be one without a sample."""
    overlap: bool = True
    """Whether the device computes the next micro-batch of a step while one is on its way."""
    clauses: tuple[Clause, ...] = ()
    """The other decisions, one clause of a kind."""

    def having(self, clause: Clause) -> DevicePlan:
        """The plan with this clause, in place of one of its kind.

        Example:
          >>> from cutlayer.policies.prune import Prune
          >>> DevicePlan("phone").having(Prune(0.3)).having(Prune(0.5)).clause(Prune)
          Prune(ratio=0.5, score=True)
        """
        others = tuple(one for one in self.clauses if type(one) is not type(clause))
        return replace(self, clauses=(*others, clause))

    def clause(self, kind: type[C]) -> C | None:
        """The clause of this kind; None where the plan has none."""
        return next((one for one in self.clauses if isinstance(one, kind)), None)

    @property
    def head(self) -> bool:
        """Whether the device holds the final norm and the head."""
        return self.top is not None

    @property
    def alone(self) -> bool:
        """Whether the device holds the whole model, and so trains without the server."""
        return self.top is not None and self.top <= self.cut

    @property
    def below(self) -> DevicePlan:
        """The same, of a device that holds no tail."""
        return self if self.top is None else replace(self, top=None)

    def holds(self, block: int | None) -> bool:
        """Whether the device holds a block; or, for None, the head."""
        if block is None:
            return self.head
        return block < self.cut or (self.top is not None and block >= self.top)

    @property
    def micro_batch_size(self) -> int:
        """The most samples of a micro-batch."""
        return -(-self.batch_size // self.micro_batches)

    def parts_of(self, num_samples: int) -> list[int]:
        """Samples of each micro-batch of a batch of so many: all alike but the last, which has what is left."""
        size = -(-num_samples // self.micro_batches)
        return [min(size, num_samples - start) for start in range(0, num_samples, size)]

    @property
    def in_flight(self) -> int:
        """The most micro-batches that the device has sent, or computes, and has had no answer to."""
        return 2 if self.overlap and self.micro_batches > 1 else 1

    @property
    def samples_in_flight(self) -> int:
        """The most samples that these have together: those whose graphs the device holds."""
        return min(self.batch_size, self.in_flight * self.micro_batch_size)

    @property
    def rates(self) -> int:
        """Local steps that may have a learning rate of their own; what follows them has the last one's."""
        return 1 if any(clause.one_rate for clause in self.clauses) else self.local_steps

    @property
    def blocks(self) -> frozenset[int] | None:
        """The blocks that have an adapter; None for all of them."""
        return adapted_blocks(self.ranks)


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """The devices that take part in a round, and how. Planners map a plan to a better plan.

    `ranks` is the rank of the full adapter on each block, of which a device's are at most as large; empty for the
    run's rank everywhere. It is the same in every round of a run. `deadline_seconds` closes this round after so long,
    whatever the policy for stragglers says of rounds in general; None leaves it to the policy.

    Example:
      >>> from dataclasses import replace
      >>> from cutlayer import DevicePlan, RoundPlan
      >>> plan = RoundPlan(0, (DevicePlan("pi-1"), DevicePlan("pi-2")))
      >>> [device.cut for device in plan.with_each(lambda device: replace(device, cut=2)).devices]
      [2, 2]
    """

    round: int
    devices: tuple[DevicePlan, ...] = ()
    ranks: tuple[int, ...] = ()
    deadline_seconds: float | None = None

    def with_each(self, change: Callable[[DevicePlan], DevicePlan]) -> RoundPlan:
        return replace(self, devices=tuple(change(device) for device in self.devices))


@dataclass(frozen=True, slots=True)
class Kept:
    """The structure of a pruned model: by block, which attention heads and FFN channels are left, in ascending order.

    Heads that share a key and a value (grouped-query attention) go together and count as one.
    """

    heads: tuple[tuple[int, ...], ...]
    channels: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Flow:
    """The work of a device in a local step, for the cost model. A shape of a round says it of its own steps.

    Attributes:
      forwards: forward passes over the batch.
      at_once: how many of these run at the same time, as one larger batch.
      backward: whether it runs backward too, for which a forward pass keeps a graph.
      removed: the share of each block's heads and FFN channels that is gone from its model.
      in_flight: how many steps it is at together, of which it holds the graphs below the cut.
      away: blocks [first, end) that others hold and run for it; None where it holds all that its plan says.
    """

    forwards: int = 1
    at_once: int = 1
    backward: bool = True
    removed: float = 0.0
    in_flight: int = 1
    away: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one step of one part: FLOPs of a forward pass, of a backward pass; bytes that it must hold."""

    forward_flops: float
    backward_flops: float
    memory_bytes: int


class Costs(Protocol):
    """The cost model, as planners see it (`model/cost.py` is the real one)."""

    @property
    def num_blocks(self) -> int: ...

    @property
    def hidden_size(self) -> int: ...

    def device(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> Cost:
        """One step of the device's part under this plan, on `num_samples` x `num_tokens`, padding included."""

    def device_forward(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> float:
        """FLOPs of one forward pass of the device's part, whatever its steps run."""

    def server(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> Cost:
        """The server's step for that device: one model, one adapter, one batch."""

    def activation_bytes(self, num_samples: int, num_tokens: int) -> int:
        """The activations that cross the cut, one way."""

    def device_adapter_bytes(self, plan: DevicePlan) -> int:
        """The adapter that the device trains, as it is sent."""

    def server_trainable_bytes(self, plan: DevicePlan) -> int:
        """A server adapter of that device at rest: values and AdamW's moments."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """The figures that one device measured in one round. Times are virtual in simulation, wall on a real fleet."""

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
    backward_seconds: float = 0.0  # of busy_seconds
    upload_seconds: float = 0.0  # of network_seconds
    cut: int = 0
    batch_size: int = 0
    ranks: tuple[int, ...] = ()
    flops: float = 0.0  # forward and backward, as counted for the machine that did them
    memory_bytes: int = 0  # of its part, as the cost model predicts it
    step_network_seconds: float = 0.0  # of network_seconds: for local steps, without the adapters of a round
    facts: Mapping[str, Any] = field(default_factory=dict)  # what the method observes of it; JSON can hold it
    dropped_messages: int = 0  # of earlier rounds, that came when those were over
    late: bool = False  # it had not finished when its round was closed: what counts of its work stands here, if any


@dataclass(slots=True)
class History:
    """Records of what rounds really did: the only thing that a learning planner may learn from."""

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
    flops: float = 0.0


Recorder = Callable[[Event], None]
Update = Mapping[str, Tensor]
