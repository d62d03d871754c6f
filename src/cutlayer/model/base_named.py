"""Ways to the base of an adapter for somebody without a run: lines of Python, and a sentence where they need one."""

from __future__ import annotations

from cutlayer.model.fingerprint import public_name
from cutlayer.model.source import ModelFiles

OURS = "from cutlayer.model.pretrained import pretrained\nfrom cutlayer.model.source import ModelFiles\n"


def base_code(files: ModelFiles, loader: str, labels: int) -> str:
    """Lines of Python that make `base`.

    Args:
      files: Of the base.
      loader: transformers' class.
      labels: Classes of the adapter's head; 0 where it has none.
    """
    if files.name.startswith("builtin:") or files.gguf is not None:
        name = files.name if files.name.startswith("builtin:") else "BASE"
        more = f", num_labels={labels}" if labels else ""
        return f"{OURS}\nbase = pretrained(ModelFiles({name!r}), {loader}{more})"
    name = "BASE" if files.folder is not None else files.name
    more = f", num_labels={labels}, ignore_mismatched_sizes=True" if labels else ""
    return f"base = {loader}.from_pretrained({name!r}{more})"


def base_sentence(files: ModelFiles) -> str:
    """A sentence on what stands for BASE, or that nobody has to find it; empty where the name says it all."""
    if files.name.startswith("builtin:"):
        return (
            f"BASE is `{files.name}`, which comes with a Python package and is found there: "
            f"`cutlayer.model.source.ModelFiles({files.name!r})`; `cutlayer.model.pretrained.pretrained` makes a model"
        )
    if files.folder is None:
        return ""
    what = "GGUF file" if files.gguf is not None else "folder"
    return (
        f"Put for BASE the {what} of the model on which the adapter was trained, on your machine: the one whose "
        f"fingerprint is `{public_name(files)}`. `cutlayer.load_finetuned` checks that it is that one"
    )
