"""A built-in, seeded task for language models: what a product review says, as JSON.

A review names its product and says of two to four of its parts that they are good or bad, in words, or by denying the
opposite ("the lid is anything but sturdy"). What is to be answered are the product, the good parts and the bad ones, in
the order of the text. An answer is right or wrong, and the right form is learned before the right content.

Example:
    >>> row = generate(1, seed=0)[0]
    >>> sorted(json.loads(row["completion"]))
    ['bad', 'good', 'product']
"""

from __future__ import annotations

import json
from random import Random

from cutlayer.data.words import ASPECTS, PRODUCTS, different, say

INSTRUCTION = "Extract product, good and bad as JSON."
_OPENINGS = (
    "I bought this {product}.", "My new {product}:", "A review of the {product}.", "This {product} came last week.",
    "We have had the {product} for a month.", "So, the {product}.",
)  # fmt: skip


def generate(num_samples: int, seed: int) -> list[dict[str, str]]:
    """Makes `num_samples` different rows with the columns `prompt` and `completion`.

    The same seed gives the same rows, and the first rows of a longer call are those of a shorter one.
    """
    return different(_row, num_samples, seed)


def _row(rng: Random) -> dict[str, str]:
    product = rng.choice(PRODUCTS)
    aspects = {aspect: rng.random() < 0.5 for aspect in rng.sample(ASPECTS, rng.choice((2, 3, 3, 4)))}
    verdicts = [say(f"the {aspect}", good, rng) for aspect, good in aspects.items()]
    said = [f"{verdict[0].upper()}{verdict[1:]}." for verdict in verdicts]
    review = " ".join([rng.choice(_OPENINGS).format(product=product), *said])
    facts = {
        "product": product,
        "good": [aspect for aspect, good in aspects.items() if good],
        "bad": [aspect for aspect, good in aspects.items() if not good],
    }
    return {"prompt": f"{INSTRUCTION}\n{review}", "completion": json.dumps(facts)}
