"""The frontier holds whom nobody beats in recall and seconds; the costs are means over what the runs say."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_runs import ranks_of

from pipeline.results.arms import Arm
from pipeline.results.frontier import standings
from pipeline.results.frontier_points import Point, frontier_svg, on_frontier
from pipeline.results.runs import Run

POINTS = st.lists(st.builds(Point, st.just("a"), st.sampled_from([0.1, 0.2, 0.3]), st.sampled_from([1.0, 2.0, 3.0])))


@given(points=POINTS)
def test_nobody_is_cheaper_and_better_than_a_point_on_the_frontier(points: list[Point]) -> None:
    for point, ahead in zip(points, on_frontier(points), strict=True):
        beaten = any(
            (other.recall > point.recall and other.seconds <= point.seconds)
            or (other.recall >= point.recall and other.seconds < point.seconds)
            for other in points
        )
        assert ahead is not beaten


def arm(name: str, hits: int, **figures: float) -> Arm:
    ranks = ranks_of(np.array([1] * hits + [0] * (10 - hits)), strategy=name)
    return Arm(name, (Run(name, ranks, figures),))


def test_costs_stand_beside_quality_and_missing_ones_are_missing() -> None:
    costs = {"tokens_trained": 4e6, "tokens_per_step": 100.0, "flops_per_window": 2e9, "windows_trained": 5_000.0}
    full, rastp, bare = standings(
        [
            arm("full", 3, train_seconds=50.0, **costs),
            arm("rastp", 2, train_seconds=60.0, **costs, tokens_per_step_after_pruning=50.0),
            arm("bare", 9),
        ]
    )
    assert (full.frontier, rastp.frontier, bare.frontier) == (True, False, None)
    assert (full.figures["encoder_tokens"], rastp.figures["encoder_tokens"]) == (4.0, 2.0)
    assert full.figures["teraflop"] == pytest.approx(10.0)
    assert full.recall == pytest.approx(0.3)
    assert bare.figures == {}


def test_equal_points_are_drawn_alike_and_every_name_is_there() -> None:
    points = [Point("full <t5>", 0.2, 30.0), Point("rastp", 0.1, 40.0)]
    drawn = frontier_svg(points, {"co-occurrence": 0.15})
    assert drawn == frontier_svg(points[::-1], {"co-occurrence": 0.15})
    for name in ("full &lt;t5&gt;", "rastp", "co-occurrence"):
        assert f">{name}<" in drawn


def test_names_of_close_points_do_not_lie_on_each_other() -> None:
    points = [Point("a point with a name", 0.2, 30.0), Point("another one", 0.2001, 30.2), Point("a third", 0.1, 60.0)]
    drawn = frontier_svg(points, {"co-occurrence": 0.12})
    found = re.findall(r'x="([\d.]+)" y="([\d.]+)"[^>]*>(a point|another)', drawn)
    (x, y, _), (other_x, other_y, _) = found
    assert abs(float(y) - float(other_y)) > 9 or abs(float(x) - float(other_x)) > 9 * 5
