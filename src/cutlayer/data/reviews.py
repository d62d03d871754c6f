"""A built-in, seeded generator of short product reviews: something real to learn without downloading anything.

The four labels say what the author thinks of the reviewed product: `negative`, `mixed`, `positive`, or nothing
yet, `question`. Counting words does not answer that, on purpose:
- a verdict is sometimes said by denying its opposite ("anything but flimsy"),
- every label comes with verdicts that do not count: about another product, about the shop, or other people's,
- every label comes with questions, some rhetorical, and not every real question has a question mark.

Example:
    >>> [sorted({row["label"] for row in generate(4, seed)}) == sorted(LABELS) for seed in range(3)]
    [True, True, True]
"""

from __future__ import annotations

from random import Random

from cutlayer.data.words import ASPECTS, BAD, GOOD, PRODUCTS, listed, say

LABELS = ("negative", "mixed", "positive", "question")

SHORTEST_WORDS, LONGEST_WORDS = 8, 40


_BRANDS = listed("""
    Norvik, Halden, Castello, Brightway, Orlo, Tamsin, Pellworm, Quist, Marlowe, Ardea
""")
_PEOPLE = listed("""
    my sister, my neighbour, a colleague, my father, a friend, my flatmate, the previous owner, my aunt
""")
_SERVICES = listed("""
    delivery, packaging, customer service, the courier, the shop, the checkout, the hotline, the return
    policy
""")
_USES = listed("""
    the kitchen, a long trip, the office, my son, weekend use, the garage, our holiday, my studio, a small
    flat
""")
_TIMES = listed("""
    two weeks, a month, three days, half a year, one winter, a few evenings, a whole season, ten days
""")
_DAYS = listed("""
    Monday, Tuesday, Wednesday, Thursday, Friday, Saturday
""")

_BACKGROUND = (
    "I bought it for {use}.", "I have used it for {time}.", "It came on a {day}.", "I ordered it for {use}.",
    "It replaces an older {product}.", "After {time} here is what I can say.",
)  # fmt: skip
_RHETORICAL = (
    "What more is there to say?", "Would I order it again?", "Was it worth the wait?", "Who would have thought?",
    "How does it hold up after {time}?", "Where do I begin?",
)  # fmt: skip
_OTHERS = (
    "my old {brand} {product}", "the {brand} {product} that I had before", "the {brand} one next to it",
    "the cheaper model from {brand}",
)  # fmt: skip
_ASKS = (
    "is {what} really {word}?", "can anyone tell me whether {what} is {word}?", "does {what} stay {word} after {time}?",
    "I would like to know if {what} is {word}.", "has anybody here found {what} {word}?",
    "I cannot tell from the pictures whether {what} is {word}.", "would you say that {what} is {word}?",
)  # fmt: skip


def generate(num_samples: int, seed: int) -> list[dict[str, str]]:
    """Makes `num_samples` different reviews, as rows with the columns `text` and `label`.

    Each four rows in succession hold each label once, in random order, so the labels are balanced in any long
    stretch. The same seed gives the same rows, and the first rows of a longer call are those of a shorter one.
    """
    rng = Random(seed)
    rows: list[dict[str, str]] = []
    seen: set[str] = set()
    while len(rows) < num_samples:
        for label in rng.sample(LABELS, len(LABELS)):
            text = _review(label, rng)
            while text in seen or not SHORTEST_WORDS <= len(text.split()) <= LONGEST_WORDS:
                text = _review(label, rng)
            seen.add(text)
            rows.append({"text": text, "label": label})
    return rows[:num_samples]


def _review(label: str, rng: Random) -> str:
    product = rng.choice(PRODUCTS)
    aspects = rng.sample(ASPECTS, 3)
    if label == "question":
        core = [_ask(f"the {aspect}", rng) for aspect in aspects[: rng.choice((1, 1, 2))]]
    else:
        core = _verdicts(label, product, aspects, rng)
    asides = [_aside(product, rng) for _ in range(rng.choice((0, 0, 0, 1)))]
    filler = [_fill(rng.choice(_BACKGROUND), product, rng)] if rng.random() < 0.4 else []
    filler += [_fill(rng.choice(_RHETORICAL), product, rng)] if rng.random() < 0.3 else []
    sentences = [_capital(sentence) for sentence in core + asides + filler]
    rng.shuffle(sentences)
    return " ".join(sentences)


def _verdicts(label: str, product: str, aspects: list[str], rng: Random) -> list[str]:
    """The author's opinion: one to three verdicts, which agree unless the label is `mixed`."""
    topics = [f"the {aspect}" for aspect in aspects]
    topics[0] = rng.choice((topics[0], f"this {product}"))
    if label == "mixed":
        sides = rng.choice(([True, False], [False, True], [True, False, True], [False, True, False]))
    else:
        sides = [label == "positive"] * rng.choice((1, 2, 2, 3))
    said = [say(topic, good, rng) for topic, good in zip(topics, sides, strict=False)]
    if len(said) > 1 and rng.random() < 0.5:
        joint = rng.choice((", but ", ", yet ", "; ")) if label == "mixed" else rng.choice((", and ", " and ", "; "))
        said[:2] = [joint.join(said[:2])]
    return [f"{sentence}." for sentence in said]


def _ask(what: str, rng: Random) -> str:
    return rng.choice(_ASKS).format(what=what, word=rng.choice(rng.choice((GOOD, BAD))), time=rng.choice(_TIMES))


def _aside(product: str, rng: Random) -> str:
    """A verdict that does not count: on another product, on the shop, or somebody else's."""
    good = rng.random() < 0.5
    kind = rng.choice(("other", "shop", "quote"))
    if kind == "other":
        return f"{say(_fill(rng.choice(_OTHERS), product, rng), good, rng)}."
    if kind == "shop":
        return f"{say(rng.choice(_SERVICES), good, rng)}."
    return f'{rng.choice(_PEOPLE)} told me: "{say("it", good, rng)}".'


def _fill(template: str, product: str, rng: Random) -> str:
    return template.format(
        product=product,
        brand=rng.choice(_BRANDS),
        use=rng.choice(_USES),
        time=rng.choice(_TIMES),
        day=rng.choice(_DAYS),
    )


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
