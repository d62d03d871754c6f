"""Folders that others load: an adapter of one rank and alpha, or the whole model with it merged in; and to a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cutlayer.errors import AdapterError, ModelError
from cutlayer.model.merged import Agreement, agreement, save_merged
from cutlayer.model.model_card import model_card
from cutlayer.model.portable import save_portable
from cutlayer.run.out import check_free, check_hub_name
from cutlayer.run.trained import Trained


def export_adapter(trained: Trained, folder: Path, title: str) -> None:
    """Writes the adapter for programs that know one rank and one alpha.

    Args:
      trained: The adapter on its base.
      folder: Where to; it is not there yet.
      title: What the card calls it.

    Raises:
      ConfigError: The folder is taken.
    """
    check_free(folder)
    readme = model_card(trained.base, trained.card, trained.training, title=title, merged=False)
    save_portable(folder, trained.adapter, trained.base, trained.card, readme)


def export_merged(trained: Trained, folder: Path, title: str, *, dtype: str) -> tuple[Agreement, str]:
    """Writes the whole model, and runs it beside base + adapter.

    Args:
      trained: The adapter on its base.
      folder: Where to; it is not there yet.
      title: What the card calls it.
      dtype: Of its weights: fp32, bf16 or fp16.

    Returns:
      How near the two are, and what they were run on.

    Raises:
      ConfigError: The folder is taken.
      AdapterError: The base pools in a way of its own, or the two differ by more than rounding does.
    """
    check_free(folder)
    base, card = trained.base, trained.card
    if card.task == "classification" and base.pooling != base.family.poolings[0]:
        raise AdapterError(
            f"{trained.where}: expected a model that plain transformers computes, got a classifier that reads the "
            f"{base.pooling} of the last hidden states. Load it with cutlayer.load_finetuned, or train with "
            f"--pooling {base.family.poolings[0]}."
        )
    readme = model_card(base, card, trained.training, title=title, merged=True)
    save_merged(folder, trained.adapter, base, card, dtype=dtype, readme=readme)
    batches, what = trained.batches()
    return agreement(folder, trained.adapter, base, batches, dtype=dtype), what


def push(folder: Path, name: str, *, public: bool = False, api: Any = None) -> str:
    """Uploads an exported folder to a hub.

    Args:
      folder: Which.
      name: OWNER/NAME there; made if it is not there.
      public: Whether everybody may see it; what is there already stays as it is.
      api: The hub; None for huggingface_hub's, which knows its address and its token from the environment.

    Returns:
      Where it is.

    Raises:
      ConfigError: It is no such name.
      ModelError: The hub did not take it.
    """
    check_hub_name(name)
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=str(folder), commit_message="Upload from cutlayer"))
    except Exception as error:  # the client's, its HTTP library's or the system's: three trees, and they change
        first = str(error).partition("\n")[0]
        raise ModelError(
            f"--push {name}: expected a hub that takes it, got {type(error).__name__}: {first}. Log in (hf auth login) "
            f"and push again: {folder} is complete."
        ) from error
