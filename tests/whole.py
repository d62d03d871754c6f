"""Whether a table shows what it holds, at a width."""

from __future__ import annotations

import io
import re

from rich.console import Console

from cutlayer.report.listing import Listing

PIPE = 10_000


def problems(shown: Listing, width: int) -> list[str]:
    """Problems of a table that is drawn so wide: what is missing or cut; nothing in a pipe may be left out."""
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, markup=False).print(shown)
    lines = out.getvalue().splitlines()
    found = [f"longer than {width}: {line!r}" for line in lines if len(line.rstrip()) > width]
    text = " ".join(" ".join(lines).split())
    said = re.search(r"not shown here: (.*)\. A wider terminal", text)
    left_out = [heading for heading in shown.headings if said and heading in said[1].split(", ")]
    if left_out and width >= PIPE:
        found.append(f"left out in a pipe: {left_out}")
    squeezed = text.replace(" ", "")
    for cells in shown.cells:
        name = cells[0].strip()
        own = [line for line in lines if line.strip().startswith(name)]
        if not own and name.replace(" ", "") not in squeezed:
            found.append(f"no row of {name!r}")
        for heading, cell in zip(shown.headings[1:], cells[1:], strict=True):
            if heading in left_out or not cell.strip():
                continue
            if width >= PIPE and not any(cell in line for line in own):
                found.append(f"{name}: {heading} {cell!r} is not on its line in a pipe")
            if not all(word in text for word in cell.split()):
                found.append(f"{name}: {heading} lacks {cell!r}")
    return found
