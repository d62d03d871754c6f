"""Draws docs/architecture.svg from docs/architecture.txt: python docs/architecture.py

With --print the picture goes to the terminal instead, for the test that holds the two together.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree as ET

from cutlayer.report.svg import FAINT, INK, canvas, rect, text, to_text

HERE = Path(__file__).parent
WIDTH, MARGIN = 960, 24
LANE, ROW = 320, 34
DEVICE_X, SERVER_X = MARGIN, WIDTH - MARGIN - LANE
FILL = {"device": "#dcf2ec", "server": "#e4e7fb"}
EDGE = {"device": "#2a8f7d", "server": "#4c5bd0"}

Sections = dict[str, list[str]]


def read(path: Path) -> Sections:
    """The lines under each heading; a heading is a line that is not indented."""
    sections: Sections = {}
    heading = ""
    for line in path.read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith(" "):
            sections[heading].append(line.strip())
        else:
            heading = line
            sections[heading] = []
    return sections


def draw(sections: Sections) -> ET.Element:
    """The whole picture: the model cut in two, one step and one round in order, the rooms."""
    num_rows = len(sections["each local step"]) + len(sections["once a round"])
    steps_top = 126
    rooms_top = steps_top + ROW * num_rows + 82
    svg = canvas(WIDTH, rooms_top + 196)
    ET.SubElement(svg, "title").text = "cutlayer: a device and a server train one model together"
    _arrowhead(svg)
    _model(svg, sections["model"])
    y = _sequence(svg, "each local step", sections["each local step"], steps_top)
    _sequence(svg, "once a round", sections["once a round"], y + 26)
    _rooms(svg, sections["rooms"], rooms_top)
    return svg


def _model(svg: ET.Element, sides: list[str]) -> None:
    titles = {"device": "device: weak, holds private data", "server": "server: strong, holds the rest"}
    for side in sides:
        who, _, held = side.partition(": ")
        x, pieces = (DEVICE_X if who == "device" else SERVER_X), held.split(" | ")
        text(svg, x, 36, titles[who], size=16, fill=EDGE[who], bold=True)
        width = (LANE + 6) / len(pieces) - 6
        for index, piece in enumerate(pieces):
            left = x + index * (width + 6)
            rect(svg, left, 50, width, 34, FILL[who], radius=4, stroke=EDGE[who])
            text(svg, left + width / 2, 71, piece, size=12, anchor="middle")
    text(svg, WIDTH / 2, 64, "the cut", size=13, anchor="middle", bold=True)
    text(svg, WIDTH / 2, 82, "one base model, frozen; LoRA on each block", size=11, anchor="middle", fill=FAINT)


def _sequence(svg: ET.Element, title: str, rows: list[str], top: float) -> float:
    """Boxes on both sides and arrows between them, downwards in the order in which they happen."""
    rect(svg, MARGIN - 12, top - 14, WIDTH - 2 * MARGIN + 24, ROW * len(rows) + 18, "none", radius=8, stroke="#c9d1da")
    rect(svg, MARGIN - 2, top - 22, 9.0 * len(title), 16, "#ffffff")
    text(svg, MARGIN + 4, top - 10, title, size=13, fill=FAINT, bold=True)
    for index, row in enumerate(rows):
        y, (kind, _, words) = top + index * ROW, row.partition(": ")
        if kind in FILL:
            x = DEVICE_X if kind == "device" else SERVER_X
            rect(svg, x, y, LANE, ROW - 8, FILL[kind], radius=4, stroke=EDGE[kind])
            text(svg, x + 10, y + 17, words, size=13)
        else:
            _message(svg, words, y, up=kind == "up")
    return top + ROW * len(rows) + 14


def _message(svg: ET.Element, words: str, y: float, *, up: bool) -> None:
    left, right = DEVICE_X + LANE * 0.55, SERVER_X + LANE * 0.45
    start, end = (left, right) if up else (right, left)
    line = {"x1": f"{start:g}", "x2": f"{end:g}", "y1": f"{y + 19:g}", "y2": f"{y + 19:g}", "stroke": INK}
    ET.SubElement(svg, "line", line | {"marker-end": "url(#head)", "stroke-width": "1.4"})
    text(svg, WIDTH / 2, y + 13, words, size=13, anchor="middle")


def _rooms(svg: ET.Element, layers: list[str], top: float) -> None:
    """Rooms from left to right: each imports from those to its right only."""
    words = "the rooms of src/cutlayer: each imports only from those to its right"
    text(svg, MARGIN, top, words, size=13, fill=FAINT, bold=True)
    columns = [layer.split(", ") for layer in layers]
    gap, letter = 6.0, (WIDTH - 2 * MARGIN - 6.0 * (len(columns) - 1)) / sum(_width(column) for column in columns)
    x = float(MARGIN)
    for column in columns:
        width = _width(column) * letter
        y = top + 92 - len(column) * 17
        for room in column:
            fill, edge = FILL.get(room, "#f3f5f7"), EDGE.get(room, "#aab4bf")
            rect(svg, x, y, width, 28, fill, radius=4, stroke=edge)
            text(svg, x + width / 2, y + 18, room, size=10, anchor="middle")
            y += 34
        x += width + gap


def _width(column: list[str]) -> float:
    """Width of a column in letters, with some air."""
    return max(map(len, column)) + 1.5


def _arrowhead(svg: ET.Element) -> None:
    size = {"id": "head", "markerWidth": "9", "markerHeight": "9", "refX": "8", "refY": "4.5", "orient": "auto"}
    marker = ET.SubElement(ET.SubElement(svg, "defs"), "marker", size)
    ET.SubElement(marker, "path", {"d": "M0,0 L9,4.5 L0,9 Z", "fill": INK})


def main() -> None:
    picture = to_text(draw(read(HERE / "architecture.txt")))
    if "--print" in sys.argv:
        sys.stdout.write(picture)
    else:
        (HERE / "architecture.svg").write_text(picture)


if __name__ == "__main__":
    main()
