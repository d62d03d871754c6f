"""The words of the built-in data: products, what they are made of, and what people say of them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random


def listed(words: str) -> tuple[str, ...]:
    """Splits a text at its commas."""
    return tuple(" ".join(word.split()) for word in words.split(","))


GOOD = listed("""
    great, excellent, solid, lovely, superb, impressive, brilliant, reliable, fantastic, delightful,
    outstanding, pleasing, wonderful, sturdy, splendid, charming, flawless, first-rate, well-made,
    satisfying
""")
BAD = listed("""
    awful, poor, flimsy, disappointing, terrible, shoddy, dreadful, useless, annoying, unreliable, horrible,
    mediocre, lousy, wobbly, miserable, ugly, faulty, second-rate, badly-made, frustrating
""")
PRODUCTS = listed("""
    kettle, backpack, desk lamp, keyboard, drill, tent, blender, watch, speaker, office chair, camera,
    vacuum cleaner, rain jacket, coffee grinder, mattress, stroller, printer, bike lock, suitcase, toaster,
    headset, garden hose, water bottle, monitor
""")
ASPECTS = listed("""
    build, finish, design, fit, weight, size, feel, handle, workmanship, everyday handling, surface,
    mechanism, cover, casing, base, grip, shape, stitching, material, lid
""")

SAYS = (
    "{what} is {word}", "{what} is really {word}", "{what} is {word} through and through", "I find {what} {word}",
    "{what} turned out to be {word}", "{what} feels {word}", "{what} is simply {word}",
)  # fmt: skip
DENIES = (
    "{what} is anything but {word}", "{what} is not {word} at all", "{what} is far from {word}",
    "I would never call {what} {word}", "nobody could call {what} {word}", "{what} is by no means {word}",
)  # fmt: skip


def say(what: str, good: bool, rng: Random) -> str:
    """Words a verdict on `what`: outright, or, once in ten times, by denying the opposite."""
    if rng.random() < 0.9:
        return rng.choice(SAYS).format(what=what, word=rng.choice(GOOD if good else BAD))
    return rng.choice(DENIES).format(what=what, word=rng.choice(BAD if good else GOOD))


def different(row: Callable[[Random], dict[str, str]], num_rows: int, seed: int) -> list[dict[str, str]]:
    """Draws rows until there are `num_rows` with different prompts; the first of a longer call are those of a shorter.

    Args:
      row: Draws one, with a column `prompt`.
      num_rows: How many.
      seed: Of the draws.
    """
    rng = Random(seed)
    rows: dict[str, dict[str, str]] = {}
    while len(rows) < num_rows:
        drawn = row(rng)
        rows.setdefault(drawn["prompt"], drawn)
    return list(rows.values())
