"""The cost of codecs: milliseconds of processor time to pack and unpack a MiB of fp32 activations, and the bytes left.

All codecs take turns in one process with one thread, and so does a plain copy, against which ratios are; the figure is
the least of many turns. `frame` is what encoding a message with the packed tensor costs beside.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from cutlayer.report.listing import Listing
from cutlayer.wire.codecs import Codec, codec_by_name
from cutlayer.wire.frames import encode
from cutlayer.wire.messages import Activations
from tables import in_fresh_process, publish

CODECS = ("none", "bf16", "int8", "topk:0.1", "topk:0.01")
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Row:
    """One codec: bytes left of each byte, milliseconds of processor time per MiB of fp32."""

    codec: str
    bytes_left: float
    pack_ms: float
    unpack_ms: float
    frame_ms: float
    copy_ms: float


def measure(shape_BTD: tuple[int, int, int], turns: int) -> list[Row]:
    """Every codec on the same random activations, in turns."""
    h_BTD = torch.randn(shape_BTD, generator=torch.Generator().manual_seed(0))
    codecs = [codec_by_name(name) for name in CODECS]
    packed = [codec.pack(h_BTD) for codec in codecs]
    least = [[float("inf")] * 4 for _ in codecs]
    for _ in range(turns):
        for times, codec, tensor in zip(least, codecs, packed, strict=True):
            for place, work in enumerate(_works(codec, h_BTD, tensor)):
                times[place] = min(times[place], _cpu_ms(work))
    mib = h_BTD.nbytes / MIB
    return [
        Row(codec.name, tensor.nbytes / h_BTD.nbytes, *(value / mib for value in times))
        for codec, tensor, times in zip(codecs, packed, least, strict=True)
    ]


def _works(codec: Codec, h_BTD: Tensor, packed: Tensor) -> list[Callable[[], object]]:
    message = Activations("run", 0, 0, "device", packed, h_BTD[..., 0] > 0, torch.zeros(len(h_BTD)).int(), 1)
    return [
        lambda: codec.pack(h_BTD),
        lambda: codec.unpack(packed, h_BTD.shape, h_BTD.dtype),
        lambda: encode(message),
        lambda: h_BTD.clone(),
    ]


def _cpu_ms(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return 1e3 * (time.process_time() - start)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(16, 64, 384), metavar=("B", "T", "D"))
    parser.add_argument("--turns", type=int, default=50)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/compress.json"))
    options = parser.parse_args(arguments)
    rows: list[Row] = in_fresh_process(measure, tuple(options.shape), options.turns)
    table = Listing(title=f"a MiB of fp32 activations, {' x '.join(map(str, options.shape))}, one thread")
    for column in ("codec", "bytes left", "pack ms", "unpack ms", "frame ms", "pack / copy", "unpack / copy"):
        table.add_column(column, justify="left" if column == "codec" else "right")
    for row in rows:
        ratios = (f"{value / row.copy_ms:.1f}" for value in (row.pack_ms, row.unpack_ms))
        times = (f"{value:.2f}" for value in (row.pack_ms, row.unpack_ms, row.frame_ms))
        table.add_row(row.codec, f"{row.bytes_left:.3f}", *times, *ratios)
    settings = {"shape": options.shape, "turns": options.turns}
    publish([table], options.json, settings, {row.codec: asdict(row) for row in rows})


if __name__ == "__main__":
    main()
