"""Activations that a frozen device has sent once, kept on the server for every later epoch.

    keep(samples)       as they arrive: what is new is kept, what is there already stays
    recall(message)     the samples that a device names
    flush()             at a commit point: what is new is on the disk, so a resumed run has it

In memory is what came first, up to the bound: an epoch passes over all samples in an order of its own, so no rule
of what to forget does better than forgetting nothing. Everything is in files `0000.safetensors`, `0001.safetensors`,
... of at most `PENDING_BYTES` of one round, from which a sample is read in one piece. What is read is, bit for bit,
what memory would have given: a run does not depend on the bound, nor on whether it was stopped.

Shapes: B batch, T tokens, D hidden size, N tokens of all samples of a file, S samples of a file.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import pad

from cutlayer.errors import CheckpointError, WireError
from cutlayer.files import write_atomically
from cutlayer.model.loss import MASKED
from cutlayer.server.samples import weight_of
from cutlayer.state import State
from cutlayer.wire.codecs import in_steps
from cutlayer.wire.messages import Activations, Recall

PENDING_BYTES = 2**26
"""New samples that wait in memory for their file."""
STORED = ("fp32", "bf16", "int8")
"""Forms in which samples are stored: as they arrived, in fp32 at most; in 16 bits; in 8 with a scale for each token."""

Key = tuple[str, int]
"""A device, and a row of its data."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """One sample without its padding, as it is stored: the activations are `h_TD * scale_T`."""

    h_TD: Tensor
    scale_T: Tensor  # ones but for int8
    mask_T: Tensor
    label: Tensor  # () class, or (T,) tokens

    @property
    def num_bytes(self) -> int:
        return self.h_TD.nbytes + self.scale_T.nbytes + self.mask_T.nbytes + self.label.nbytes


class ActivationCache:
    """The activations of every sample that was sent.

    Args:
      folder: Where files are; None for a temporary folder that ends with this object.
      memory_bytes: The most that is held in memory.
      stored: One of `STORED`.
      dtype: Of the activations, as they arrive and as they are given back.
      per_token: Whether labels are tokens (causal LM), or one class for each sample.
    """

    def __init__(
        self, folder: Path | None, *, memory_bytes: int, stored: str, dtype: torch.dtype, per_token: bool
    ) -> None:
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="cutlayer-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._folder, self._stored, self._dtype, self._per_token = folder, stored, dtype, per_token
        self._pending_bytes = min(PENDING_BYTES, memory_bytes // 2)
        self._room = memory_bytes - self._pending_bytes  # for samples that have a file
        self._new: dict[Key, _Kept] = {}
        self._new_bytes = 0
        self._memory: dict[Key, _Kept] = {}
        self._places: dict[Key, tuple[int, int, int, int]] = {}  # file, sample, first token, end
        self._files: list[Any] = []

    def keep(self, samples: Iterable[Activations]) -> None:
        """Keeps samples, each a batch of one with its row; those that are kept already stay as they are."""
        for sample in samples:
            assert sample.rows_B is not None, "who is to be kept has a name"
            key = (sample.device, int(sample.rows_B[0]))
            if key in self._new or key in self._places:
                continue
            self._new[key] = kept = self._pack(sample)
            self._new_bytes += kept.num_bytes
            if self._new_bytes >= self._pending_bytes:
                self.flush()

    def holds(self, device: str, row: int) -> bool:
        """Whether a sample was sent."""
        return (device, row) in self._new or (device, row) in self._places

    def recall(self, asked: Recall) -> list[Activations]:
        """The samples that a device names, each a batch of one, padded to the length of their batch.

        Raises:
          WireError: One of them was never sent.
        """
        return [self._unpack(asked, row) for row in asked.rows_B.tolist()]

    def flush(self) -> None:
        """Writes what is new to a file of its own."""
        if not self._new:
            return
        kept = list(self._new.values())
        tensors = {
            "h_ND": torch.cat([sample.h_TD for sample in kept]),
            "scale_N": torch.cat([sample.scale_T for sample in kept]),
            "mask_N": torch.cat([sample.mask_T for sample in kept]),
            "labels": torch.cat([sample.label.reshape(-1) for sample in kept]),
        }
        table = [(device, row, len(sample.h_TD)) for (device, row), sample in self._new.items()]
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path(len(self._files)), save(tensors, {"samples": json.dumps(table)}))
        self._open(len(self._files))
        for key, sample in self._new.items():
            self._remember(key, sample)
        self._new, self._new_bytes = {}, 0

    def state(self) -> State:
        """The number of files that belong to what has been flushed; they lie in the folder."""
        return State({"files": len(self._files)})

    def load(self, state: State) -> None:
        """Goes on with the files of a `state`; later ones belong to a round that begins anew.

        Raises:
          CheckpointError: One of them is missing or torn.
        """
        for number in range(state.facts.get("files", 0)):
            try:
                self._open(number)
            except (OSError, SafetensorError) as error:
                raise CheckpointError(
                    f"{self._path(number)}: expected activations that the run keeps, got {error}. Start the run again."
                ) from error

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:04}.safetensors"

    def _open(self, number: int) -> None:
        file: Any = safe_open(self._path(number), framework="pt")
        first = 0
        for index, (device, row, length) in enumerate(json.loads(file.metadata()["samples"])):
            self._places[device, row] = (number, index, first, first + length)
            first += length
        self._files.append(file)

    def _remember(self, key: Key, sample: _Kept) -> None:
        """Holds in memory what has a place on the disk, while there is room."""
        if sample.num_bytes <= self._room:
            self._room -= sample.num_bytes
            self._memory[key] = sample

    def _find(self, key: Key) -> _Kept:
        sample = self._new.get(key) or self._memory.get(key)
        if sample is None:
            if key not in self._places:
                raise WireError(
                    f"device {key[0]}: expected a sample whose activations it has sent, got row {key[1]}. "
                    "Start the run again from its last checkpoint, on all machines."
                )
            sample = self._read(*self._places[key])
            self._remember(key, sample)
        return sample

    def _read(self, number: int, index: int, first: int, end: int) -> _Kept:
        def rows(name: str) -> Tensor:
            part: Tensor = self._files[number].get_slice(name)[first:end]
            return part

        labels = self._files[number].get_slice("labels")
        label = rows("labels") if self._per_token else labels[index : index + 1][0]
        return _Kept(rows("h_ND"), rows("scale_N"), rows("mask_N"), label)

    def _pack(self, sample: Activations) -> _Kept:
        """Cuts off the padding and rounds to what is stored. A copy, so that the batch's memory can be freed."""
        length = int(sample.mask_BT[0].nonzero().max()) + 1
        h_TD, scale_T = sample.h_BTD[0, :length].detach().cpu(), torch.ones(length)
        if self._stored == "int8":
            h_TD, scale_T1 = in_steps(h_TD)
            scale_T = scale_T1[:, 0]
        elif self._stored == "bf16":
            h_TD = h_TD.bfloat16()
        label = sample.targets[0, :length] if self._per_token else sample.targets[0]
        return _Kept(h_TD.clone(), scale_T, sample.mask_BT[0, :length].cpu().clone(), label.cpu().clone())

    def _unpack(self, asked: Recall, row: int) -> Activations:
        kept = self._find((asked.device, row))
        missing = max(0, asked.num_tokens - len(kept.h_TD))
        h_TD = (kept.h_TD.float() * kept.scale_T[:, None]).to(self._dtype)  # times one, where nothing was rounded
        return Activations(
            run=asked.run,
            round=asked.round,
            step=asked.step,
            device=asked.device,
            h_BTD=pad(h_TD, (0, 0, 0, missing))[None],
            mask_BT=pad(kept.mask_T, (0, missing))[None],
            labels=(pad(kept.label, (0, missing), value=MASKED) if self._per_token else kept.label)[None],
            weight=weight_of(kept.label),
            rows_B=torch.tensor([row], dtype=torch.int32),
        )
