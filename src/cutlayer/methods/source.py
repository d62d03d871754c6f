"""The text of a method, wherever it is: in this package, in a file of somebody's, in a package that is installed.

What is described, digested and run is one text, read once: a file that changes meanwhile changes nothing of a method
that was found. A file stands alone; a method of several files is a package.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import linecache
import sys
import traceback
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType

from cutlayer.errors import ConfigError


@dataclass(frozen=True)
class Source:
    """A Python text.

    Attributes:
      path: its file.
      module: the name by which Python imports it; None for a file that belongs to no package.
    """

    path: Path
    module: str | None = None

    @property
    def at(self) -> str:
        """The place of the text, as a run writes it down: the module, or the path."""
        return self.module or str(self.path)

    @cached_property
    def text(self) -> str:
        """The text, read once.

        Raises:
          ConfigError: It cannot be read.
        """
        try:
            return self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "bytes that are not UTF-8"
            raise ConfigError(f"{self.at}: expected a Python file, got {reason}. Check the path.") from error

    @cached_property
    def sha256(self) -> str:
        """The digest of the text, in hexadecimal digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def load(self) -> ModuleType:
        """The module, imported; a file's text is run once per process, however often it is found.

        Raises:
          ConfigError: The text raises.
        """
        try:
            return _run(self.path, self.text) if self.module is None else importlib.import_module(self.module)
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"{self.at}: expected Python that can be imported, got {described_error(error, self.path)}. Correct it."
            ) from error


@cache
def _run(path: Path, text: str) -> ModuleType:
    """Runs the text as a module of its own; the name says which text it is, for whoever pickles what it defines."""
    name = "cutlayer_method_" + hashlib.sha256(f"{path}\n{text}".encode()).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "the path of a Python file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    linecache.cache[str(path)] = (len(text), None, text.splitlines(keepends=True), str(path))  # for tracebacks
    try:
        exec(compile(text, str(path), "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def module_source(module: str) -> Source:
    """The source of a module that can be imported; its packages are, to find it.

    Raises:
      ConfigError: There is none, or it is not a Python file.
    """
    try:
        spec = importlib.util.find_spec(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{module}: expected a module that can be imported, got {described_error(error)}. Check its name, or "
            "install its package."
        ) from error
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        got = "none" if spec is None else f"one without a Python file ({spec.origin})"
        raise ConfigError(f"{module}: expected a module on Python's path, got {got}. Check its name, or install it.")
    return Source(Path(spec.origin), module)


def described_error(error: BaseException, path: Path | None = None) -> str:
    """An error of somebody else's text on one line, with the line of `path` at which it came up."""
    name, said = type(error).__name__, " ".join(str(error).split())
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    place = f" (line {lines[-1]})" if lines else ""
    return f"{name}: {said}{place}" if said else f"{name}{place}"
