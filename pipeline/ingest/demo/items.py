"""Draw the demo's items (leaf, words, popularity) and the routes along which interests move between leaves.

Words, popularity and routes are drawn independently of each other, so that a text says what an item is about and
nothing about what is clicked next.

Shape legend: I items (sorted by leaf), F leaves, Y days.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.ingest.demo.scenario import Scenario
from pipeline.ingest.demo.vocabulary import CLOSERS, DESCRIPTIONS, OPENERS, TREE


@dataclass(frozen=True, kw_only=True)
class Items:
    """All items, sorted by leaf.

    names_I: raw ids, handed out at random so that they say nothing. leaf_I int64. tail_I bool: long-tail items.
    weight_YI float64: how often the feed shows each item on each day. seconds_I float64: the video's length.
    """

    names_I: np.ndarray
    leaf_I: np.ndarray
    tail_I: np.ndarray
    weight_YI: np.ndarray
    seconds_I: np.ndarray
    titles: list[str]
    descriptions: list[str]
    categories: list[str]


@dataclass(frozen=True)
class Routes:
    """The leaf to which an interest goes from each leaf, int64 [F].

    step_F stays inside the category, whose leaves form one ring; bridge_F leads outside of it.
    """

    step_F: np.ndarray
    bridge_F: np.ndarray


def make_items(scenario: Scenario, rng: np.random.Generator) -> Items:
    """Draw the catalogue."""
    count = scenario.items
    leaf_I = _leaves(scenario, rng)
    names_I = np.array([f"v{number:05d}" for number in rng.permutation(count)])
    tail_I = np.zeros(count, dtype=bool)
    tail_I[rng.choice(count, round(scenario.long_tail * count), replace=False)] = True
    tree = [
        (top, leaf, words.split())
        for top, leaves in list(TREE.items())[: scenario.categories]
        for leaf, words in list(leaves.items())[: scenario.leaves_used]
    ]
    texts = [_write(tree[leaf][2], rng) for leaf in leaf_I]
    return Items(
        names_I=names_I,
        leaf_I=leaf_I,
        tail_I=tail_I,
        weight_YI=_popularity(scenario, tail_I, rng),
        seconds_I=np.exp(rng.normal(np.log(25), 0.5, count)).clip(6, 90),
        titles=[title for title, _ in texts],
        descriptions=[description for _, description in texts],
        categories=[f"{tree[leaf][0]} > {tree[leaf][1]}" for leaf in leaf_I],
    )


def make_routes(scenario: Scenario, rng: np.random.Generator) -> Routes:
    """Draw the routes from leaf to leaf."""
    category_F = np.arange(scenario.leaf_count) // scenario.leaves_used
    step_F = np.empty_like(category_F)
    bridge_F = np.empty_like(category_F)
    for category in range(scenario.categories):
        ring = rng.permutation(np.flatnonzero(category_F == category))
        step_F[ring] = np.roll(ring, -1)
        bridge_F[ring] = rng.choice(np.flatnonzero(category_F != category), len(ring))
    return Routes(step_F, bridge_F)


def _leaves(scenario: Scenario, rng: np.random.Generator) -> np.ndarray:
    """Draw the leaf of every item, int64 [I], sorted: one item for each leaf, the others spread unevenly."""
    count = scenario.leaf_count
    share_F = rng.dirichlet(np.full(count, 20.0))
    return np.repeat(np.arange(count), 1 + rng.multinomial(scenario.items - count, share_F))


def _popularity(scenario: Scenario, tail_I: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw the popularity of each item on each day, float64 [Y, I]: a base, with one bell-shaped peak in time."""
    base_I = np.exp(rng.normal(0, scenario.popularity_spread, scenario.items))
    base_I *= np.where(tail_I, scenario.long_tail_weight, 1.0)
    peak_I = rng.uniform(0, scenario.days, scenario.items)
    distance_YI = (np.arange(scenario.days)[:, None] - peak_I) / scenario.trend_days
    weight_YI: np.ndarray = base_I * (1 + scenario.trend_boost * np.exp(-(distance_YI**2)))
    return weight_YI


def _write(words: list[str], rng: np.random.Generator) -> tuple[str, str]:
    """Write a title and a description from the leaf's words, without using a word twice."""
    first, second, *rest = (words[i] for i in rng.permutation(len(words))[:5])
    opener = OPENERS[rng.integers(len(OPENERS))]
    closer = CLOSERS[rng.integers(len(CLOSERS))]
    title = (f"{opener} {first} {closer}", f"{first.capitalize()} and {second} {closer}", f"{opener} {first} {second}")[
        rng.integers(3)
    ]
    description = DESCRIPTIONS[rng.integers(len(DESCRIPTIONS))].format(*rest)
    return title, description[0].upper() + description[1:]
