"""`cutlayer report`: a folder of a run, finished or not, as one page."""

from __future__ import annotations

from pathlib import Path

from commands import run
from made_up_runs import write_run


def test_a_page_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    write_run(tmp_path / "run", rounds=2, of=5, ended=False)
    ran = run("report", tmp_path / "run")
    assert (ran.code, ran.out) == (0, f"{tmp_path / 'run' / 'report.html'}\n")
    ran = run("report", tmp_path / "run", "--out", tmp_path / "page.html")
    assert (ran.code, ran.out) == (0, f"{tmp_path / 'page.html'}\n")
    page = (tmp_path / "page.html").read_text()
    assert page == (tmp_path / "run" / "report.html").read_text()
    assert "2 of 5 rounds" in page


def test_what_cannot_be_is_one_line(tmp_path: Path) -> None:
    ran = run("report", tmp_path / "nothing")
    assert (ran.code, ran.out) == (2, "")
    assert "expected a run folder with config.yaml" in ran.err
    write_run(tmp_path / "run")
    ran = run("report", tmp_path / "run", "--out", tmp_path / "none" / "page.html")
    assert ran.code == 2
    assert ran.err.startswith("error: --out: expected a file that can be written, got")
    (tmp_path / "run" / "metrics.jsonl").write_text("torn")
    assert "metrics.jsonl:1: expected a JSON object" in run("report", tmp_path / "run").err
