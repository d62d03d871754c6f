"""The list of methods, and what one of them is."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import run
from cutlayer.methods.table import TABLE, found


def test_each_method_is_one_line_with_its_options() -> None:
    ran = run("methods")
    assert (ran.code, ran.err) == (0, "")
    lines = {line.split()[0]: line for line in ran.out.splitlines() if line.strip()}
    for name, row in TABLE.items():
        assert all(part in lines[name] for part in (row.summary, row.paper, row.evidence, *row.options))
    assert "order=longest_tail cut=memory least=1 labels=server weighted=true" in lines["memsfl"]


@pytest.mark.parametrize("name", sorted(TABLE))
def test_one_method_with_what_its_options_decide(name: str) -> None:
    ran = run("methods", name)
    assert (ran.code, ran.err) == (0, "")
    said = TABLE[name].description
    assert ran.out.startswith(said.title)
    options = [text for key, option in said.options.items() for text in (key, option.typed, option.help)]
    assert all(part in ran.out for part in (said.paper, said.evidence, *options, *said.notes))
    assert "SHA-256" not in ran.out


def test_a_method_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text('"""Mine: it.\n\nEvidence: ours.\n"""\n\n\ndef mine(*, rank: int = 8):\n    pass\n')
    ran = run("methods", "./mine.py:mine")
    assert (ran.code, ran.err) == (0, "")
    assert f"{tmp_path / 'mine.py'}, SHA-256 {found('mine.py:mine').source.sha256}" in ran.out


def test_what_packages_offer_is_listed_and_what_is_no_method_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "offering-1.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: offering\nVersion: 1\n")
    points = ["offered_one = offering:offered_one", "gone = no_such_module:gone"]
    (told / "entry_points.txt").write_text("\n".join(["[cutlayer.methods]", *points]))
    (tmp_path / "offering.py").write_text('"""One: of others.\n"""\n\n\ndef offered_one(*, rank: int = 8):\n    pass\n')
    monkeypatch.syspath_prepend(tmp_path)
    ran = run("methods")
    assert (ran.code, ran.err) == (0, "")
    [line] = [line for line in ran.out.splitlines() if "offered_one" in line]
    assert all(part in line for part in ("of others", "rank=8", "not said"))
    assert "offered by an installed package, but no method: gone: no_such_module: expected a module" in ran.out


def test_a_method_that_is_not_there() -> None:
    ran = run("methods", "memslf")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.count("\n") == 1
    assert ran.err.endswith("got 'memslf'. Did you mean 'memsfl'?\n")
