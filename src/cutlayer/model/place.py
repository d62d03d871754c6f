"""The place of a model, told from its name and the disk alone: before torch is imported, and before a hub is asked."""

from __future__ import annotations

from pathlib import Path
from reprlib import repr as shortened

from cutlayer.errors import ModelError
from cutlayer.reading import reading

MINILM = "builtin:minilm"
SMOLLM2 = "builtin:smollm2"
SUFFIX = ".gguf"


def check_place(name: str, revision: str | None = None) -> None:
    """Looks whether a model that can only be on this machine is there.

    Args:
      name: As `ModelFiles` takes it.
      revision: As `ModelFiles` takes it.

    Raises:
      ModelError: No such folder or file, several GGUF files, a folder without `config.json`, or neither a path nor a
        hub name; or a revision of what is not on the hub.
    """
    with reading(f"model {shortened(name)}", "files that can be read", ModelError):
        here = name in (MINILM, SMOLLM2) or gguf_in(name) is not None
        if not here and Path(name).is_dir():
            if not (Path(name) / "config.json").is_file():
                raise ModelError(f"model {name}: expected a config.json, got none. Is this the model's folder?")
            here = True
    if here and revision is not None:
        raise ModelError(
            f"model.revision: expected none for {name}, got {revision!r}. Only models on the hub have revisions."
        )
    if not here and (name.endswith(SUFFIX) or name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise ModelError(
            f"model: expected a folder with config.json and *.safetensors, a *{SUFFIX} file, a hub name like "
            f"org/model, {MINILM} or {SMOLLM2}, got {name!r}, which is none of them. Check the path."
        )


def gguf_in(name: str | Path) -> Path | None:
    """The GGUF file that a path names, or that is in the folder it names beside no safetensors; None for none.

    Raises:
      ModelError: There are several.
    """
    path = Path(name)
    if path.suffix == SUFFIX:
        return path if path.is_file() else None
    if not path.is_dir() or any(path.glob("*.safetensors*")):
        return None
    found = sorted(path.glob(f"*{SUFFIX}"))
    if len(found) > 1:
        raise ModelError(
            f"model {name}: expected one GGUF file, got {', '.join(one.name for one in found)}. Name one of them."
        )
    return found[0] if found else None
