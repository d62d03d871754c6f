"""A method's text: read once, digested, run as it was read."""

from __future__ import annotations

import hashlib
import pickle
import sys
from pathlib import Path

import pytest

from cutlayer.errors import ConfigError
from cutlayer.methods.source import Source, module_source


def written(folder: Path, text: str, name: str = "mine.py") -> Source:
    (folder / name).write_text(text)
    return Source(folder / name)


def test_a_file_is_digested_and_run(tmp_path: Path) -> None:
    source = written(tmp_path, "def number():\n    return 3\n")
    assert source.at == str(tmp_path / "mine.py")
    assert source.sha256 == hashlib.sha256(source.path.read_bytes()).hexdigest()
    assert source.load().number() == 3


def test_what_is_run_is_what_was_digested(tmp_path: Path) -> None:
    source = written(tmp_path, "number = 3\n")
    digest = source.sha256
    written(tmp_path, "number = 4\n")
    assert source.load().number == 3
    assert source.sha256 == digest
    assert Source(source.path).load().number == 4, "another text of the same file is another module"


def test_a_text_is_run_once_in_a_process(tmp_path: Path) -> None:
    source = written(tmp_path, "things = []\n")
    source.load().things.append(1)
    assert Source(source.path).load().things == [1]


def test_classes_of_a_file_know_their_module(tmp_path: Path) -> None:
    """As dataclasses and pickle want it; annotations of this project's own files do not reach into it."""
    text = "from dataclasses import dataclass\n\n\n@dataclass\nclass Point:\n    x: int\n"
    module = written(tmp_path, text).load()
    assert pickle.loads(pickle.dumps(module.Point(3))) == module.Point(3)
    assert module.Point.__annotations__ == {"x": int}


def test_a_file_that_raises_leaves_no_module_behind(tmp_path: Path) -> None:
    before = set(sys.modules)
    with pytest.raises(ConfigError, match=r"mine\.py: expected .* got ValueError: no \(line 2\)\. Correct it\."):
        written(tmp_path, "x = 1\nraise ValueError('no')\n").load()
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise SystemExit(3)\n", r"SystemExit: 3 \(line 1\)"),
        ("import no_such_module\n", r"ModuleNotFoundError: No module named 'no_such_module' \(line 1\)"),
        ("raise RuntimeError('two\\nlines')\n", "RuntimeError: two lines"),
        ("raise RuntimeError\n", r"RuntimeError \(line 1\)"),
    ],
)
def test_a_file_that_raises_is_told_in_one_line(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        written(tmp_path, text).load()
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a Python file, got No such file or directory"):
        _ = Source(tmp_path / "mine.py").text
    (tmp_path / "mine.py").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="expected a Python file, got bytes that are not UTF-8"):
        _ = Source(tmp_path / "mine.py").text


def test_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a_package").mkdir()
    (tmp_path / "a_package" / "__init__.py").write_text("")
    written(tmp_path / "a_package", "number = 5\n")
    source = module_source("a_package.mine")
    assert (source.at, source.path) == ("a_package.mine", tmp_path / "a_package" / "mine.py")
    assert source.load().number == 5
    assert source.load() is sys.modules["a_package.mine"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_package.mine", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("no_such_module", "got none"),
        ("math", "got one without a Python file"),
        ("itertools", "got one without a Python file"),
    ],
)
def test_a_module_that_is_not_there(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        module_source(name)


def test_a_package_that_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a_bad_package").mkdir()
    written(tmp_path / "a_bad_package", "raise ValueError('no')\n", "__init__.py")
    written(tmp_path / "a_bad_package", "", "mine.py")
    with pytest.raises(ConfigError, match="ValueError: no"):
        module_source("a_bad_package.mine")
