"""Draws docs/protocol.svg: python docs/protocol.py

With --print the picture goes to the terminal instead, for the test that holds the two together.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree as ET

from cutlayer.report.svg import FAINT, INK, canvas, rect, text, to_text

WIDTH, ROW, TOP = 760, 30, 56
DEVICE_X, SERVER_X = 150, 610
SPEAKERS = {">": (DEVICE_X, SERVER_X), "<": (SERVER_X, DEVICE_X)}

# What passes, in order: `>` device to server, `<` server to device, `x` the connection breaks, `=` a new phase.
SEQUENCE = """
= a connection
> Hello: name, version
< Welcome: run, config, labels, fingerprint, conversation (or Refusal)
> Ask: echo, files, piece
< Answer
> Ready: speed, memory, samples; its round, frames received
< Stand: the server's life, its round, frames received
= round 3, a split one
< 1 Assignment: plan, adapter
> 1 Activations of step 0
< 2 Gradients of step 0
> 2 Activations of step 1
x the connection breaks: has the server frame 2?
> Hello ... Ready: round 3, 2 frames received
< Stand: round 3, 1 frame received
> 2 Activations of step 1, again
< 3 Gradients of step 1
> 3 Measured: its timeline
> 4 Update: adapter
= after the last round
< 1 Finish
""".strip().splitlines()


def draw() -> ET.Element:
    """Two lifelines, and what passes between them, downwards in time."""
    svg = canvas(WIDTH, TOP + ROW * len(SEQUENCE) + 24)
    ET.SubElement(svg, "title").text = "A device and a server: a connection, a round with a break, the end"
    size = {"id": "head", "markerWidth": "9", "markerHeight": "9", "refX": "8", "refY": "4.5", "orient": "auto"}
    marker = ET.SubElement(ET.SubElement(svg, "defs"), "marker", size)
    ET.SubElement(marker, "path", {"d": "M0,0 L9,4.5 L0,9 Z", "fill": INK})
    for x, who, fill in ((DEVICE_X, "device", "#dcf2ec"), (SERVER_X, "server", "#e4e7fb")):
        rect(svg, x - 60, 14, 120, 26, fill, radius=4, stroke=FAINT)
        text(svg, x, 32, who, size=13, anchor="middle", bold=True)
        _line(svg, (x, 40), (x, TOP + ROW * len(SEQUENCE) + 10), {"stroke": "#c9d1da"})
    for index, row in enumerate(SEQUENCE):
        kind, _, words = row.partition(" ")
        y = TOP + ROW * index + 18
        if kind in SPEAKERS:
            start, end = SPEAKERS[kind]
            _line(svg, (start, y), (end, y), {"stroke": INK, "stroke-width": "1.4", "marker-end": "url(#head)"})
            text(svg, WIDTH / 2, y - 6, words, size=12, anchor="middle")
        else:
            broken = kind == "x"
            rect(svg, 24, y - 13, WIDTH - 48, 20, "#fbe4e4" if broken else "#f3f5f7", radius=4)
            text(svg, WIDTH / 2, y + 2, words, size=12, anchor="middle", fill=INK if broken else FAINT, bold=True)
    return svg


def _line(svg: ET.Element, start: tuple[float, float], end: tuple[float, float], style: dict[str, str]) -> None:
    ends = {"x1": f"{start[0]:g}", "y1": f"{start[1]:g}", "x2": f"{end[0]:g}", "y2": f"{end[1]:g}"}
    ET.SubElement(svg, "line", ends | style)


def main() -> None:
    picture = to_text(draw())
    if "--print" in sys.argv:
        sys.stdout.write(picture)
    else:
        Path(__file__).with_suffix(".svg").write_text(picture)


if __name__ == "__main__":
    main()
