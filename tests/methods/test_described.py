"""The description that is read from a method's text is what Python would say of it."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from cutlayer.errors import ConfigError
from cutlayer.methods.described import Description, described
from cutlayer.methods.table import TABLE

WHOLE = '''
"""Mine: everyone, cut at one block.

A paper
    An author. 2024. https://arxiv.org/abs/2401.00001, which cites https://arxiv.org/abs/1902.00002

    the paper        here
    ------------     ----------
    step 1           everyone()

What is certain
is little.

Evidence: a rumour,
heard twice.
"""

def mine(*, rank: int | None = None, name_of_it: str = "x", seed: int = 0) -> Method:
    """Builds it.

    Args:
        rank: Of everything,
            everywhere.
        name_of_it: Nothing.
        seed: Of chance.
    """
'''


def mine(text: str) -> Description:
    return described(text, "mine", "method mine.py:mine")


@pytest.mark.parametrize("name", sorted(TABLE))
def test_it_is_the_signature_of_the_builder(name: str) -> None:
    said, parameters = TABLE[name].description, dict(inspect.signature(TABLE[name].build).parameters)
    assert said.seeded == (parameters.pop("seed", None) is not None)
    assert {key: (option.kind, option.default) for key, option in said.options.items()} == {
        key: (parameter.annotation, parameter.default) for key, parameter in parameters.items()
    }
    assert list(said.options) == list(parameters)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_method_says_what_it_is_and_what_its_options_decide(name: str) -> None:
    said = TABLE[name].description
    assert said.title.endswith(".")
    assert said.title == f"{said.title.partition(':')[0]}: {said.summary}."
    assert said.evidence != "not said"
    assert all(option.help for option in said.options.values())
    assert all("  " not in text and "\n" not in text for text in (said.title, said.evidence, *said.notes))


def test_every_part() -> None:
    said = mine(WHOLE)
    assert (said.title, said.summary) == ("Mine: everyone, cut at one block.", "everyone, cut at one block")
    assert (said.paper, said.evidence) == ("arXiv 2401.00001", "a rumour, heard twice")
    assert said.notes == ("What is certain is little.",)
    assert said.seeded
    assert {name: (option.kind, option.typed, option.help) for name, option in said.options.items()} == {
        "rank": ("int | None", "null", "Of everything, everywhere."),
        "name_of_it": ("str", "x", "Nothing."),
    }


def test_a_file_that_says_nothing() -> None:
    said = mine("def mine(*, rank: int = 8):\n    pass\n")
    assert (said.title, said.summary, said.paper, said.evidence, said.notes) == ("", "", "none", "not said", ())
    assert said.options["rank"].help == ""
    assert not said.seeded


@pytest.mark.parametrize(
    ("docstring", "paper", "evidence", "notes"),
    [
        ("Mine: it.", "none", "not said", ()),
        ("Mine: it.\n\nEvidence: ours.", "none", "ours", ()),
        ("Mine: it.\n\nSee https://doi.org/10.1/x.\n\nA note.", "https://doi.org/10.1/x", "not said", ("A note.",)),
        ("Mine: it.\n\nNo paper.\n\nEvidence: ours.\n\nA note.", "none", "ours", ("A note.",)),
    ],
)
def test_parts_that_may_be_left_out(docstring: str, paper: str, evidence: str, notes: tuple[str, ...]) -> None:
    said = mine(f'"""{docstring}"""\n\ndef mine():\n    pass\n')
    assert (said.paper, said.evidence, said.notes) == (paper, evidence, notes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def mine(:\n", r"expected Python, got .* \(line 1\)"),
        ("x = 0\0\n", "expected Python, got .*null bytes"),
        ("mine = 3\n", "expected a function mine in the file, got none"),
        ("def ours(): ...\ndef yours(): ...\n", "expected a function mine in the file, got ours, yours"),
        ("def mine(rank: int = 8): ...\n", r"keyword-only \(def mine\(\*, rank: int = 8\)\), got the argument rank"),
        ("def mine(rank: int = 8, /): ...\n", "got the argument rank"),
        ("def mine(*ranks: int): ...\n", "got the argument ranks"),
        ("def mine(**more: int): ...\n", "got the argument more"),
        ("def mine(*, rank=8): ...\n", "as the type of the option rank, got none"),
        ("def mine(*, rank: list[int] | None = None): ...\n", r"of the option rank, got list\[int\] \| None"),
        ("def mine(*, rank: int): ...\n", "expected a default for the option rank, got none"),
        ("def mine(*, rank: int = EIGHT): ...\n", "as the default of the option rank, got EIGHT"),
        ("def mine(*, source: str = 'x'): ...\n", "a run file does not mean itself, got source"),
        ("def mine(*, name: str = 'x'): ...\n", "a run file does not mean itself, got name"),
    ],
)
def test_what_is_no_method(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        mine(text)
    assert str(error.value).startswith("method mine.py:mine: expected ")
    assert "\n" not in str(error.value)


def test_reading_the_table_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from cutlayer.methods.table import TABLE\n"
        "assert all(row.options is not None and row.summary for row in TABLE.values())\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
