"""A built-in, seeded task for language models: facts about a place to eat, to be said in plain words.

The facts are a meaning representation as in E2E and other data-to-text sets, `name[The Copper Pear], kind[pub],
price[low]`; the places and all words are made up. A name, a kind and two to four other facts are said in one to three
sentences, each fact once and nothing else. How they are worded is drawn, so no model is right in every word.

Example:
    >>> row = generate(1, seed=0)[0]
    >>> facts_of(row["prompt"]).keys() >= {"name", "kind"}
    True
"""

from __future__ import annotations

import re
from random import Random

from cutlayer.data.words import different

INSTRUCTION = "Describe this place."
_FIRST = ("Copper", "Silver", "Crooked", "Quiet", "Painted", "Hollow", "Merry", "Winter", "Amber", "Little")
_LAST = ("Pear", "Heron", "Lantern", "Anchor", "Kettle", "Fiddler", "Orchard", "Wagon", "Thistle", "Bell")
KINDS = ("pub", "restaurant", "bistro", "tea room", "bakery", "canteen")
SAID: dict[str, dict[str, tuple[str, ...]]] = {
    "price": {
        "low": ("cheap", "low-priced"),
        "moderate": ("moderately priced", "mid-priced"),
        "high": ("costly", "high-priced"),
    },
    "food": {
        food: (f"serving {food} food", f"with {food} dishes")
        for food in ("Italian", "Indian", "Japanese", "French", "Greek", "Turkish", "Thai")
    },
    "area": {
        area: (f"in the {area}", f"located in the {area}")
        for area in ("old town", "harbour", "city centre", "station quarter", "suburbs")
    },
    "near": {
        near: (f"near the {near}", f"close to the {near}")
        for near in ("mill", "museum", "town hall", "theatre", "botanic garden", "lighthouse")
    },
    "families": {
        "yes": ("families are welcome", "it is good for children"),
        "no": ("it is for adults only", "children are not allowed"),
    },
    "rating": {
        "low": ("guests rate it poorly", "its rating is low"),
        "average": ("guests rate it as average", "its rating is average"),
        "high": ("guests rate it highly", "its rating is excellent"),
    },
}
"""The words for each value of each fact; no value's words are in those of another."""


def generate(num_samples: int, seed: int) -> list[dict[str, str]]:
    """Makes `num_samples` different rows with the columns `prompt` and `completion`.

    The same seed gives the same rows, and the first rows of a longer call are those of a shorter one.
    """
    return different(_row, num_samples, seed)


def facts_of(prompt: str) -> dict[str, str]:
    """Reads the facts of a prompt, by name.

    Example:
      >>> facts_of("Describe this place.\\nname[The Quiet Bell], kind[pub]")
      {'name': 'The Quiet Bell', 'kind': 'pub'}
    """
    return dict(re.findall(r"(\w+)\[([^]]*)\]", prompt))


def _row(rng: Random) -> dict[str, str]:
    chosen = set(rng.sample(list(SAID), rng.choice((2, 3, 3, 4))))
    facts = {"name": f"The {rng.choice(_FIRST)} {rng.choice(_LAST)}", "kind": rng.choice(KINDS)}
    facts |= {fact: rng.choice(list(values)) for fact, values in SAID.items() if fact in chosen}
    meaning = ", ".join(f"{fact}[{value}]" for fact, value in facts.items())
    return {"prompt": f"{INSTRUCTION}\n{meaning}", "completion": _said(facts, rng)}


def _said(facts: dict[str, str], rng: Random) -> str:
    """The facts in sentences: what the place is, then who may come and what guests think of it."""
    words = {fact: rng.choice(SAID[fact][value]) for fact, value in facts.items() if fact in SAID}
    kind = " ".join(filter(None, (words.get("price"), facts["kind"])))
    where = "".join(f" {words[fact]}" for fact in ("food", "area", "near") if fact in words)
    frame = rng.choice(("{name} is a {kind}{where}", "There is a {kind} called {name}{where}"))
    sentences = [frame.format(name=facts["name"], kind=kind, where=where)]
    rest = [words[fact] for fact in ("families", "rating") if fact in words]
    sentences += [" and ".join(rest)] if len(rest) > 1 and rng.random() < 0.5 else rest
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)
