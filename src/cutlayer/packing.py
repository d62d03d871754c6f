"""The packing of what crosses the network: activations, their gradients, adapters. For any method.

`CompressedLink` lies around an end of a link. Rounds, devices and the server talk through it in whole tensors; what
it hands to the transport are the same messages with the tensors of `wire.messages.ROLES` packed by a codec of
`wire/codecs.py`, so bytes are counted, and paid for in time, as they are sent.

    role          packed                                        the other end gets
    ------------  --------------------------------------------  ---------------------------------------------
    activations   each token's row                              h as it was unpacked: loss and gradient are of that h
    gradients     each token's row                              the gradient as it was unpacked
    broadcast     the adapter's values; by top-k not at all     values as they were unpacked, to train from
    update        trained minus broadcast, plus what was lost   the exact broadcast plus what was unpacked
                  when the last update was packed

The device back-propagates the gradient at the unpacked activations through its own unpacked ones: the straight-through
estimator. An update is a difference because a difference is small and may be cut to its largest part, which values may
not; the server adds it to what it holds, so that a device which trains nothing changes nothing. What a packed update
lost is added to the next, unless it is said not to be (error feedback):

    Error Feedback Fixes SignSGD and other Gradient Compression Schemes
        Sai Praneeth Karimireddy, Quentin Rebjock, Sebastian U. Stich, Martin Jaggi. ICML 2019. arXiv 1901.09847
    Sparsified SGD with Memory
        Sebastian U. Stich, Jean-Baptiste Cordonnier, Martin Jaggi. NeurIPS 2018. arXiv 1809.07599
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from cutlayer.errors import DivergedError, MalformedMessage
from cutlayer.policies.channels import DropChannels
from cutlayer.policies.few_bits import FewBits
from cutlayer.policies.moments import FreshMoments
from cutlayer.policies.sparse_then_dense import PackedUpdate
from cutlayer.state import State
from cutlayer.types import Adapter, DevicePlan
from cutlayer.wire.codecs import NONE, Codec, NotFinite, RowCodec, Sparse, TopK, codec_by_name
from cutlayer.wire.link import Around, Link
from cutlayer.wire.messages import ROLES, Assignment, Message, Role, Update


@dataclass(frozen=True, slots=True)
class Compression:
    """The codec of each role. Both ends must have the same.

    Attributes:
      error_feedback: whether what packing an update lost is added to the next.
      seed: of what is rounded at random.
    """

    activations: Codec = NONE
    gradients: Codec = NONE
    broadcast: RowCodec = NONE
    update: Codec = NONE
    error_feedback: bool = True
    seed: int = 0

    def of(self, role: Role) -> Codec:
        codec: Codec = getattr(self, role)
        return codec


UNCOMPRESSED = Compression()


@runtime_checkable
class ChoosesCodecs(Protocol):
    """A clause of a device's plan that says how what passes between the device and the server is packed."""

    def codec(self, role: Role, codec: Codec, at: str) -> Codec:
        """The codec of one tensor.

        Args:
          role: What the tensor is.
          codec: The one that it has so far, at first the run's.
          at: Names the tensor among all that pass in a run: what is random about its packing is drawn from that.
        """


CHOOSERS: tuple[type[ChoosesCodecs], ...] = (DropChannels, FewBits, PackedUpdate)
"""The clauses that choose codecs: a device, which imports no method, knows them from here."""


def codec_under(plan: DevicePlan, role: Role, codec: Codec, at: str = "") -> Codec:
    """The codec of one tensor under a device's plan. See `ChoosesCodecs.codec`.

    The shape and dtype of what it packs are the same whatever `at` says.
    """
    for clause in plan.clauses:
        if isinstance(clause, ChoosesCodecs):
            codec = clause.codec(role, codec, at)
    return codec


def compression(
    *,
    activations: str = "none",
    gradients: str = "none",
    adapters: str = "none",
    error_feedback: bool = True,
    seed: int = 0,
) -> Compression:
    """Finds codecs by their names, as in a run file.

    An adapter's largest changes may all sit in a few rows of one factor, and rows of `lora_B` are as short as the
    rank: top-k chooses over a whole tensor there. On the way down it does nothing: a device holds nothing to which
    a change could be added.

    Raises:
      ConfigError: No such codec.
    """
    of_adapters = codec_by_name(adapters, rows=False)
    return Compression(
        activations=codec_by_name(activations),
        gradients=codec_by_name(gradients),
        broadcast=NONE if isinstance(of_adapters, TopK | Sparse) else of_adapters,
        update=of_adapters,
        error_feedback=error_feedback,
        seed=seed,
    )


StartedFrom = Callable[[Adapter, Update], Adapter]
"""(broadcast, update) -> what the device started from, in the shapes of what it trained."""


def all_of_it(broadcast: Adapter, _update: Update) -> Adapter:
    """Devices train what they are sent."""
    return broadcast


class CompressedLink(Around):
    """One end of a link, packing what it sends and unpacking what it receives.

    Args:
      link: The transport's end.
      compression: The codecs.
      hidden_size: Width of activations.
      dtype: Of activations and their gradients.
      started_from: What of a broadcast an update is the difference to.
    """

    def __init__(
        self,
        link: Link,
        compression: Compression,
        *,
        hidden_size: int,
        dtype: torch.dtype,
        started_from: StartedFrom = all_of_it,
    ) -> None:
        super().__init__(link)
        self._compression, self._started_from = compression, started_from
        self._hidden_size, self._dtype = hidden_size, dtype
        self._broadcasts: dict[int, Adapter] = {}  # of the round that is open: what differences refer to
        self._plan: DevicePlan | None = None  # of the round that was opened last
        self._opened = -1  # the number of that round
        self._lost: Adapter = {}

    async def send(self, message: Message) -> None:
        """See `Link.send`.

        Raises:
          DivergedError: Something that its codec would have to change into a number is none.
        """
        lost: Adapter = {}
        try:
            packed = self._pack(message, lost)
        except NotFinite as error:
            device, step = getattr(message, "device", ""), getattr(message, "step", 0)
            raise DivergedError(
                f"device {device}, round {message.round}, {type(message).__name__}: {error}. "
                "Lower the learning rate (--lr), or set train.clip.",
                device=device,
                round=message.round,
                step=step,
            ) from None
        before = self._lost
        if isinstance(message, Update):
            self._lost = lost  # already now: it is part of what a device is when its update leaves (device/commit.py)
        try:
            await self._link.send(packed)
        except BaseException:
            self._lost = before  # an update whose sending was given up has lost nothing
            raise
        if isinstance(message, Update):
            self._answered(message.round)

    async def receive(self) -> Message:
        """See `Link.receive`.

        Raises:
          MalformedMessage: A packed tensor is not what its codec makes.
        """
        message = self._unpack(await self._link.receive())
        if isinstance(message, Update):
            self._answered(message.round)
        if isinstance(message, Assignment) and message.plan.clause(FreshMoments):
            self._lost = {}  # it belongs to factors that are gone
        return message

    def state(self) -> State:
        """The part of the last update that packing lost: the device's end needs it to go on as this one would."""
        return State(tensors=dict(self._lost))

    def load(self, state: State) -> None:
        """Goes on from a `state`."""
        self._lost = dict(state.tensors)

    def _pack(self, message: Message, lost: Adapter) -> Message:
        """The message as it travels; what packing an update loses goes into `lost`."""
        changes: dict[str, Any] = {}
        for field, role in ROLES.get(type(message), {}).items():
            value, codec = getattr(message, field), self._codec(role, message)
            if role == "broadcast":
                self._open(message)
                self._broadcasts = {message.round: value}
                changes[field] = {name: codec.pack(tensor) for name, tensor in value.items()}
            elif role == "update" and codec is not NONE:
                changes[field] = self._pack_update(message, value, lost)
            elif role in ("activations", "gradients") and value is not None:
                changes[field] = codec.pack(value)
        return replace(message, **changes)

    def _open(self, message: Message) -> None:
        """Notes the plan of a round that is opened."""
        assert isinstance(message, Assignment), "nothing else opens a round"
        self._plan, self._opened = message.plan, message.round

    def _codec(self, role: Role, message: Message, name: str = "") -> Codec:
        """The codec of a tensor of a message; of an update's tensor of this name."""
        codec = self._compression.of(role)
        if self._plan is None or message.round != self._opened:
            return codec
        at = f"{message.round}/{self._plan.device}/{getattr(message, 'step', '')}/{getattr(message, 'micro_batch', 0)}"
        codec = codec_under(self._plan, role, codec, f"{at}/{name}")
        return codec.keyed(f"{self._compression.seed}/{at}/{name}") if isinstance(codec, Sparse) else codec

    def _pack_update(self, message: Message, trained: Adapter, lost: Adapter) -> Adapter:
        """Differences to what the device started from, and what the last ones owe, packed.

        What a plan's codec rounds without bias is not owed: it is right in the mean as it is.
        """
        packed, references = {}, self._references(message)
        for name, value in trained.items():
            change = value - _reference(references, name, value.shape)
            owed = self._lost.get(name)
            if owed is not None and owed.shape == change.shape:  # else its rank has changed since, or it was pruned
                change = change + owed
            codec = self._codec("update", message, name)
            packed[name] = codec.pack(change)
            if self._compression.error_feedback and codec == self._compression.update:
                lost[name] = change - codec.unpack(packed[name], change.shape, change.dtype)
        return packed

    def _unpack(self, message: Message) -> Message:
        """The message in whole tensors."""
        changes: dict[str, Any] = {}
        for field, role in ROLES.get(type(message), {}).items():
            value, codec = getattr(message, field), self._codec(role, message)
            if role == "broadcast":
                self._open(message)
                changes[field] = {name: self._unpack_values(packed) for name, packed in value.items()}
                self._broadcasts = {message.round: changes[field]}
            elif role == "update" and codec is not NONE and not self._is_over(message.round):
                changes[field] = self._unpack_update(message, value)
            elif role in ("activations", "gradients") and value is not None and message.round >= self._opened:
                changes[field] = codec.unpack(value, (*value.shape[:-1], self._hidden_size), self._dtype)
        return replace(message, **changes)

    def _unpack_update(self, message: Message, packed: Adapter) -> Adapter:
        trained, references = {}, self._references(message)
        for name, value in packed.items():
            reference, codec = _reference(references, name), self._codec("update", message, name)
            trained[name] = reference + codec.unpack(value, reference.shape, reference.dtype)
        return trained

    def _unpack_values(self, packed: Tensor) -> Tensor:
        """A tensor of an adapter: what trains is fp32."""
        codec = self._compression.broadcast
        width = codec.width(packed.shape[-1]) if packed.ndim else 0
        if width < 1:
            raise MalformedMessage(
                f"tensor packed by {codec.name}: expected rows, got shape {list(packed.shape)}. "
                "Set `wire` alike on both ends."
            )
        return codec.unpack(packed, (*packed.shape[:-1], width), torch.float32)

    def _references(self, update: Message) -> Adapter:
        """The tensors that this end holds of what the device started from."""
        assert isinstance(update, Update), "no other message has this role"
        if update.round not in self._broadcasts:
            raise MalformedMessage(
                f"update of round {update.round}: expected one of rounds {sorted(self._broadcasts)}, which are open. "
                "Drop the message: it answers no assignment."
            )
        return self._started_from(self._broadcasts[update.round], update)

    def _answered(self, round: int) -> None:
        """Forgets what was broadcast for this round and those before: nothing will refer to it any more."""
        self._broadcasts = {number: adapter for number, adapter in self._broadcasts.items() if number > round}

    def _is_over(self, round: int) -> bool:
        """Whether a later round is open: an update of this one stays as it came, for nobody can use it."""
        return any(number > round for number in self._broadcasts)


def _reference(references: Adapter, name: str, shape: torch.Size | None = None) -> Tensor:
    """The tensor that the difference of this name refers to."""
    reference = references.get(name)
    if reference is None or shape not in (None, reference.shape):
        raise MalformedMessage(
            f"update of {name!r}: expected what was broadcast, of its shape, got another tensor. "
            "Compress adapters with `none` where devices send others."
        )
    return reference
