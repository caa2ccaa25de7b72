"""SkipGR's equations, written slowly: one interaction, one level, one user at a time, in Python numbers."""

import math
from fractions import Fraction


def entropy(probabilities: list[float]) -> float:
    """Eq. 11: the entropy, in nats."""
    return -sum(p * math.log(p) for p in probabilities if p > 0)


def lowest_share(scores: list[float], ratio: float, ties: list[int]) -> tuple[set[int], float]:
    """Eq. 12: (indices of the lowest scores, as many as come nearest to the ratio; the highest of these scores)."""
    count = math.floor(Fraction(ratio) * len(scores) + Fraction(1, 2))
    order = sorted(range(len(scores)), key=lambda index: (scores[index], ties[index]))
    return set(order[:count]), scores[order[count - 1]] if count else -math.inf


def sequence_of(position: int, first_of_users: list[int], unit: str) -> int:
    return position if unit == "window" else max(user for user, first in enumerate(first_of_users) if first <= position)


def mean_scores(scores: dict[int, list[float]], first_of_users: list[int], unit: str) -> dict[int, float]:
    """Eq. 15: sequence -> mean over its scored tokens. scores: per interaction, a list over levels."""
    tokens: dict[int, list[float]] = {}
    for position, levels in scores.items():
        tokens.setdefault(sequence_of(position, first_of_users, unit), []).extend(levels)
    return {sequence: sum(values) / len(values) for sequence, values in tokens.items()}


def below_mean(scores: dict[int, float]) -> set[int]:
    """Eq. 16: sequences that may be skipped, in exact arithmetic."""
    exact = {sequence: Fraction(score) for sequence, score in scores.items()}
    mean = sum(exact.values(), Fraction(0)) / len(exact)
    return {sequence for sequence, score in exact.items() if score < mean}
