"""cutlayer: fine-tune one large language model with LoRA on private data that stays on many weak, unequal devices.

Public names:
    load_finetuned   the base model with a trained adapter on it, ready to use
    __version__
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cutlayer.model.export import load_finetuned

__version__ = "0.1.0"
__all__ = ["__version__", "load_finetuned"]


def __getattr__(name: str) -> Any:
    """Imports what needs torch only when it is asked for, so that `import cutlayer` takes no time."""
    if name == "load_finetuned":
        from cutlayer.model.export import load_finetuned

        return load_finetuned
    raise AttributeError(f"module 'cutlayer' has no attribute {name!r}")
