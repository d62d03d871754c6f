"""The few SVG marks that a chart needs: text is escaped by ElementTree, nothing outside the file is used."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from cutlayer.shown import shown

INK, FAINT = "#1f2933", "#6b7785"
FONT = "ui-sans-serif, system-ui, 'Segoe UI', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"


def canvas(width: float, height: float) -> ET.Element:
    """An empty white picture, in pixels."""
    size = {"width": f"{width:g}", "height": f"{height:g}", "viewBox": f"0 0 {width:g} {height:g}"}
    svg = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", **size, "font-family": FONT})
    rect(svg, 0, 0, width, height, "#ffffff")
    return svg


def rect(
    parent: ET.Element,
    x: float,
    y: float,
    width: float,
    height: float,
    fill: str,
    *,
    radius: float = 0,
    stroke: str = "none",
) -> ET.Element:
    """A filled rectangle whose upper left corner is (x, y), in pixels."""
    box = {"x": f"{x:.2f}", "y": f"{y:g}", "width": f"{width:.2f}", "height": f"{height:g}", "fill": fill}
    corners = {"rx": f"{radius:g}"} if radius else {}
    outline = {"stroke": stroke} if stroke != "none" else {}
    return ET.SubElement(parent, "rect", box | corners | outline)


def vertical(parent: ET.Element, x: float, top: float, bottom: float, stroke: str) -> None:
    """A line from `top` to `bottom` at `x`, in pixels."""
    line = {"x1": f"{x:.2f}", "x2": f"{x:.2f}", "y1": f"{top:g}", "y2": f"{bottom:g}", "stroke": stroke}
    ET.SubElement(parent, "line", line)


def text(
    parent: ET.Element,
    x: float,
    y: float,
    words: str,
    *,
    size: float,
    anchor: str = "start",
    fill: str = INK,
    bold: bool = False,
) -> None:
    """Words whose baseline is at `y`; `anchor` is start, middle or end."""
    place = {"x": f"{x:.2f}", "y": f"{y:g}", "text-anchor": anchor, "font-size": f"{size:g}", "fill": fill}
    element = ET.SubElement(parent, "text", place | ({"font-weight": "600"} if bold else {}))
    element.text = shown(words)


def hover(element: ET.Element, words: str) -> None:
    """Adds the words that a viewer shows while the pointer is over `element`."""
    ET.SubElement(element, "title").text = shown(words)


def to_text(svg: ET.Element) -> str:
    """The picture as an SVG document."""
    ET.indent(svg, " ")
    return ET.tostring(svg, encoding="unicode") + "\n"
