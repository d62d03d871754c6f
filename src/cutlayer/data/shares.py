"""Rows as files: what one device has of a run's data, so that a process elsewhere reads the same samples again.

Only the columns that the task uses leave, and a class as its name: its number says nothing without the others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cutlayer.data.rows import Rows
from cutlayer.data.source import Columns
from cutlayer.data.tasks import Samples
from cutlayer.files import write_atomically


def write_rows(
    path: Path,
    rows: Rows,
    samples: Samples,
    columns: Columns,
    labels: Sequence[str],
    part: Sequence[int] | None = None,
) -> None:
    """Writes one JSON object per sample and line; the same samples give the same bytes.

    Args:
      path: The file, replaced if it is there.
      rows: What the samples were made of.
      samples: The tokenised set.
      columns: Which column plays which part.
      labels: Class names; empty for causal LM.
      part: Positions in `samples`; None for all of them. Samples that were dropped are in no part.
    """
    used = (columns.text, columns.text_pair, columns.messages, columns.prompt, columns.answer)
    texts = [name for name in used if name is not None]
    positions = range(len(samples)) if part is None else part
    chosen = rows.select(samples.rows[list(positions)])
    lines: list[dict[str, Any]] = [
        dict(zip(texts, cells, strict=True)) for cells in zip(*map(chosen.cells, texts), strict=True)
    ]
    if columns.label is not None and samples.classes is not None:
        for line, position in zip(lines, positions, strict=True):
            line[columns.label] = labels[samples.classes[position]]
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))
