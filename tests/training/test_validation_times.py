"""When validation comes: every so many steps, or as the cost of training, counted position by position, says."""

import numpy as np
import pytest

from pipeline.training.validation_times import ValidationTimes


def slow_cost(lengths: list[int], per_item: int, levels: int, beam: int) -> int:
    """Positions that one validation sends through the network, user by user."""
    total = 0
    for items in lengths:
        total += items * per_item + levels  # the loss: the history, and a position for each code of the target
        total += items * per_item  # the ranking
        total += sum(1 if level == 0 else beam for level in range(levels))
    return total


@pytest.mark.parametrize("seed", range(5))
def test_a_validation_costs_the_positions_of_its_users(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 20, 30).tolist()
    per_item, levels, beam = (int(number) for number in rng.integers(1, 12, 3))
    times = ValidationTimes(every="auto", users=30, positions=sum(lengths) * per_item, levels=levels, beam=beam)
    assert times.cost == slow_cost(lengths, per_item, levels, beam)


def run(times: ValidationTimes, steps: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """The steps that a validation follows, and how many `left` foresees before the first step and after each."""
    positions = windows = since = 0
    validated, foreseen = [], []
    for step, (tokens, count) in enumerate(steps, 1):
        positions += tokens
        windows += count
        cost = times.trained(positions, windows)
        if times.due(step, cost - since):
            validated.append(step)
            since = cost
        foreseen.append(times.left(step, len(steps), cost, cost - since))
    return validated, foreseen


def test_training_between_two_validations_costs_nine_of_them() -> None:
    rng = np.random.default_rng(1)
    steps = [(int(rng.integers(300, 420)), int(rng.integers(10, 16))) for _ in range(4000)]
    times = ValidationTimes(every="auto", users=90, positions=4000, levels=4, beam=10)
    validated, _ = run(times, steps)
    costs = np.array([3 * (tokens + windows * 4) for tokens, windows in steps])
    bounds = [0, *validated]
    for first, last in zip(bounds, validated, strict=False):
        assert costs[first:last].sum() >= 9 * times.cost > costs[first : last - 1].sum()
    share = len(validated) * times.cost / (len(validated) * times.cost + costs[: validated[-1]].sum())
    assert 0.095 < share <= 0.1


def test_equal_steps_have_equal_validations_and_all_of_them_are_foreseen() -> None:
    for every in ("auto", 7):
        times = ValidationTimes(every=every, users=5, positions=200, levels=3, beam=10)
        validated, foreseen = run(times, [(100, 4)] * 300)
        assert len(set(np.diff([0, *validated]))) == 1
        for step in (1, 20, 150, 299):
            to_come = sum(number > step for number in validated) + (validated[-1] != 300)  # the last weights too
            assert foreseen[step - 1] == to_come


def test_by_windows_a_validation_follows_the_step_that_passes_each_multiple() -> None:
    rng = np.random.default_rng(3)
    for every in (50, 7, 333):
        times = ValidationTimes(every=every, by_windows=True, users=5, positions=200, levels=3, beam=10)
        before, validated = 0, []
        for step, count in enumerate(rng.integers(1, 40, 200).tolist(), 1):
            if times.due(step, 10**12, (before, before + count)):
                validated.append(step)
            multiples = [number for number in range(before + 1, before + count + 1) if number % every == 0]
            assert (validated[-1:] == [step]) == bool(multiples)
            before += count
        assert times.left(0, before, 0, 0) >= len(validated) if every > 40 else validated
