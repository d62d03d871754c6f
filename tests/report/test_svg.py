from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from cutlayer.report import svg
from cutlayer.shown import shown


@given(st.text())
def test_any_text_survives_as_far_as_xml_can_hold_it(words: str) -> None:
    picture = svg.canvas(10, 10)
    svg.text(picture, 0, 0, words, size=10)
    element = ET.fromstring(svg.to_text(picture).encode()).find("{http://www.w3.org/2000/svg}text")
    assert element is not None
    assert (element.text or "") == shown(words)
