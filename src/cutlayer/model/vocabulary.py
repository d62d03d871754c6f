"""Whether a tokenizer and a model belong together: the ids that one gives against the rows of the other's embeddings.

An id beyond the rows ends a run in its middle, and a folder without a tokenizer's files trains on nothing: of it
transformers makes a tokenizer of the special tokens alone, to which every word is unknown. Both show before anything is
written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cutlayer.errors import DataError, ModelError
from cutlayer.model.pretrained import config_of
from cutlayer.model.source import ModelFiles

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

ALL_OF_IT = "tokenizer.json"
NEEDED = ("vocab_file", "merges_file")
"""The files, among those that a tokenizer's class names, without which it knows no word."""
NAMED = ("pad", "bos", "eos", "unk", "cls", "sep")
"""The special tokens that stand in texts though nobody writes them."""


def rows_of(files: ModelFiles) -> int:
    """Number of rows that the embeddings have, as config.json says.

    Raises:
      ModelError: transformers makes no config of it.
    """
    return int(config_of(files).get_text_config().vocab_size)


def check_fit(tokenizer: PreTrainedTokenizerBase, files: ModelFiles) -> None:
    """Looks whether this is a tokenizer of this model.

    Special tokens beyond the rows that no text has by itself (an image's, in a model that reads only text) may be
    there: `check_ids` finds them where a text has them.

    Raises:
      ModelError: There are no files of it, or it gives ids for which the model has no row.
    """
    wanted = [name for role, name in type(tokenizer).vocab_files_names.items() if role in NEEDED]
    absent = [name for name in wanted if files.find(name) is None]
    known = tokenizer.get_vocab()
    if files.find(ALL_OF_IT) is None and (absent or not wanted):
        lacks = " and ".join(absent) if absent else ALL_OF_IT
        raise ModelError(
            f"model {files.name}: expected the files of its tokenizer ({ALL_OF_IT}), got none: there is no {lacks}. "
            "Copy them from the original model."
        )
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    words = {token: number for token, number in known.items() if number not in special}
    if not words:
        raise ModelError(
            f"model {files.name}: expected a tokenizer that knows words, got one of {len(known)} special tokens. Copy "
            "its files from the original model."
        )
    named = {f"its {name} token": getattr(tokenizer, f"{name}_token_id") for name in NAMED}
    given = [(number, what) for what, number in named.items() if number is not None]
    word = max(words, key=lambda one: words[one])
    given.append((words[word], "a word of its vocabulary"))
    (highest, what), rows = max(given), rows_of(files)
    if highest >= rows:
        raise ModelError(
            f"model {files.name}: expected a tokenizer with ids below {rows}, the rows of the model's embeddings, got "
            f"ids up to {highest}, {what} {known_as(tokenizer, highest)}. Use the model's own tokenizer, or resize the "
            f"embeddings (resize_token_embeddings({highest + 1})) and save the model again."
        )


def known_as(tokenizer: PreTrainedTokenizerBase, number: int) -> str:
    """A token as it is written."""
    return repr(tokenizer.convert_ids_to_tokens(number))


def check_ids(ids: NDArray[np.int32], types: NDArray[np.int32] | None, files: ModelFiles, where: str) -> None:
    """Looks whether the model has a row for each token of some texts, and for each type of token.

    Args:
      ids: Of all tokens of the texts.
      types: Their types, where the tokenizer gives some.
      files: The model's.
      where: Names the texts in messages.

    Raises:
      DataError: It has not.
    """
    config = config_of(files).get_text_config()
    kinds = getattr(config, "type_vocab_size", None)
    for what, given, rows in (("token ids", ids, int(config.vocab_size)), ("token types", types, kinds)):
        if given is not None and rows and len(given) and (highest := int(given.max())) >= rows:
            raise DataError(
                f"{where}: expected {what} below {rows}, the rows that model {files.name} has for them, got {highest}. "
                "Use the model's own tokenizer, or leave out the texts that have it."
            )
