"""cutlayer: fine-tune one large language model with LoRA on private data that stays on many weak, unequal devices.

Public names are those of `__init__.pyi`. Each is imported when it is first asked for, so that `import cutlayer` takes
no time and no torch, and has an example in its docstring: `help(cutlayer.simulate)`.
"""

import ast
import os
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# gRPC writes what strangers send, as they wrote it, into the terminal, at the pace at which it comes. It reads this
# when it begins, so it is said before anything of ours can import it; whoever debugs gRPC sets it to something else.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

_HOMES = {
    alias.name: node.module
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom) and node.module
    for alias in node.names
}
"""Public names, and the module in which each is defined."""

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'cutlayer' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    """The public names, for whoever asks an interpreter for them."""
    return sorted(__all__)
