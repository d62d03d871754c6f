"""Writes docs/methods.md and README.md's table of methods from the method files: python docs/methods.py

With --print the page goes to the terminal instead, for the test that holds them together.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from cutlayer.methods.table import TABLE, MethodRow

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
README_HEAD = "| method | what it does | paper | how sure its facts are |\n|---|---|---|---|\n"
HEAD = """\
# Methods

Made by `docs/methods.py` from the docstrings of the method files; do not edit it here. `cutlayer methods` prints the
short form, `cutlayer methods NAME` this of one method, `-o method.KEY=VALUE` sets an option, and `cutlayer compare`
holds methods against each other ([how](comparing.md)). The options are those of the method alone: learning rates, steps
and rounds belong to the run.

*How sure* says where the facts come from. A method file says more, step by step of its paper.
"""


def page() -> str:
    """The whole page: what there is, then a section per method."""
    index = ["| method | what it does | how sure |", "|---|---|---|"]
    index += [f"| [`{row.name}`](#{row.name}) | {row.summary} | {row.evidence} |" for row in TABLE.values()]
    return "\n".join([HEAD, *index, "", *("\n".join(section(row)) for row in TABLE.values())])


def section(row: MethodRow) -> list[str]:
    """One method."""
    file, said = f"src/cutlayer/methods/{row.name}.py", row.description
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


def with_rows(readme: str) -> str:
    """The README with the rows of its table as the method files have them."""
    before, head, after = readme.partition(README_HEAD)
    assert head, "README.md has a table of methods"
    rows = "".join(f"| `{row.name}` | {row.summary} | {row.paper} | {row.evidence} |\n" for row in TABLE.values())
    return before + head + rows + after[after.index("\n\n") + 1 :]


def linked(paper: str) -> str:
    """`arXiv NUMBER` as a link."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[\g<0>](https://arxiv.org/abs/\1)", paper)


if __name__ == "__main__":
    if "--print" in sys.argv[1:]:
        sys.stdout.write(page())
    else:
        (HERE / "methods.md").write_text(page())
        README.write_text(with_rows(README.read_text()))
