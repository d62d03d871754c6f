"""The classes that a checkpoint's own head knows, by name: a trained head is worth something in their order alone.

config.json's `id2label` says which class each row of the head is. Where a run has the same names, it has them in the
head's order, as transformers' own examples do; where it has others, the rows that make logits are drawn anew. LABEL_0,
LABEL_1, which transformers writes where nobody named them, are no names: they are the classes 0, 1 and no others.
"""

from __future__ import annotations

from collections.abc import Sequence

from cutlayer.model.source import ModelFiles


def known_classes(files: ModelFiles) -> tuple[str, ...]:
    """The classes of the head, in the order of its rows; none where nobody named them."""
    named = files.config.get("id2label") or files.text_config.get("id2label")
    if not isinstance(named, dict):
        return ()
    classes = [named.get(str(row)) for row in range(len(named))]
    if not all(isinstance(one, str) for one in classes):
        return ()
    return () if all(one == f"LABEL_{row}" for row, one in enumerate(classes)) else tuple(map(str, classes))


def in_the_heads_order(labels: Sequence[str], files: ModelFiles) -> tuple[str, ...] | None:
    """The run's classes in the order of the head's; None where they are not the head's.

    Upper and lower case are one where that leaves every class its own. Of a head without names the classes are numbers.

    Args:
      labels: The run's, in any order.
      files: The model's.
    """
    known = known_classes(files)
    if not known:
        numbers = tuple(map(str, range(len(labels))))
        return numbers if set(labels) == set(numbers) else None
    for spelled in (str, str.casefold):
        ours = {spelled(label): label for label in labels}
        theirs = [spelled(one) for one in known]
        if len(ours) == len(labels) == len(set(theirs)) == len(known) and ours.keys() == set(theirs):
            return tuple(ours[one] for one in theirs)
    return None


def why_drawn_anew(labels: Sequence[str], files: ModelFiles, rows: int) -> str:
    """A line for who has a model with a head that the run does not go on from.

    Args:
      labels: The run's classes.
      files: The model's.
      rows: Classes of its head.
    """
    known, ours = known_classes(files), ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
    theirs = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "") if known else "without names (LABEL_0, ...)"
    line = f"model {files.name}: its classifier is drawn anew: its {rows} classes are {theirs}; the run's {len(labels)}"
    if set(known) == set(labels):
        return f"{line} are {ours}, in this order. Leave data.labels out to go on from it."
    if known or rows != len(labels):
        return f"{line} are {ours}."
    return f"{line} are {ours}. Say in id2label of its config.json which is which to go on from it."
