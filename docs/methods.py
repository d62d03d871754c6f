"""Writes docs/methods.md from the method table and the method files: python docs/methods.py

With --print the page goes to the terminal instead, for the test that holds them together.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from cutlayer.methods.described import Description, described
from cutlayer.methods.table import ROWS, MethodRow

HERE = Path(__file__).parent
HEAD = """\
# Methods

Made by `docs/methods.py` from [the method table](../src/cutlayer/methods/table.py) and the docstrings of the method
files; do not edit it here. `cutlayer methods` prints the short form, `-o method.KEY=VALUE` sets an option, and
`cutlayer compare` holds methods against each other ([how](comparing.md)). The options are those of the method alone:
learning rates, steps and rounds belong to the run.

*How sure* says where the facts come from. A method file says more, step by step of its paper.
"""


def page() -> str:
    """The whole page: what there is, then a section per method."""
    index = ["| method | what it does | how sure |", "|---|---|---|"]
    index += [f"| [`{row.name}`](#{row.name}) | {row.summary} | {row.evidence} |" for row in ROWS]
    return "\n".join([HEAD, *index, "", *("\n".join(section(row, described(row.name))) for row in ROWS)])


def section(row: MethodRow, said: Description) -> list[str]:
    """One method."""
    file = f"src/cutlayer/methods/{row.name}.py"
    lines = [f"## {row.name}", "", said.title, ""]
    lines += [f"{linked(row.paper)} · how sure: {row.evidence} · [{file}](../{file})", ""]
    if said.options:
        lines += ["| option | kind | default | |", "|---|---|---|---|"]
        lines += [
            f"| `{name}` | {option.kind.replace('|', 'or')} | `{option.typed}` | {option.help} |"
            for name, option in said.options.items()
        ]
        lines.append("")
    for note in said.notes:
        lines += [note, ""]
    return lines


def linked(paper: str) -> str:
    """`arXiv NUMBER` as a link."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[\g<0>](https://arxiv.org/abs/\1)", paper)


if __name__ == "__main__":
    if "--print" in sys.argv[1:]:
        sys.stdout.write(page())
    else:
        (HERE / "methods.md").write_text(page())
