"""One self-contained file: nothing of it can become a script that its policy does not name."""

from __future__ import annotations

import base64
import hashlib
import json
import re

from cutlayer.page.document import html_page


def test_the_policy_names_the_texts_that_are_there() -> None:
    page = html_page("a title", "<p>text</p>", styles=["p { color: red; }"], scripts=["let x = 1;"])
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy


def test_scripts_are_apart_from_each_other() -> None:
    page = html_page("a title", "", scripts=["const x = 1;\n", "const x = 2;\n"])
    assert "{\nconst x = 1;\n}\n{\nconst x = 2;\n}" in page


def test_a_title_and_data_are_text() -> None:
    word = "</script><script>alert(1)</script><!--\u2028&"
    page = html_page(word, "", data={"one": {word: [word]}})
    assert page.count("</script>") == 2
    assert "alert(1)<" not in page
    [text] = re.findall(r'<script id="one" type="application/json">(.*?)</script>', page)
    assert "\u2028" not in text
    assert json.loads(text) == {word: [word]}
