"""Set quality against cost: what each arm of a comparison took, and who is on the frontier.

An arm is on the frontier when nobody is cheaper and better: no other arm has at least its recall@10 in at most its
training seconds, and is ahead in one of the two. Seconds are measured, so they compare runs of one machine only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.metrics import recall_at
from pipeline.results.arms import Arm
from pipeline.results.frontier_points import Point, on_frontier
from pipeline.results.predictions import Predictions
from pipeline.results.runs import Run

# Column of the table -> unit of its heading, format, digits
COSTS = {
    "train_seconds": ("training s", "{:,.1f}"),
    "windows_per_second": ("windows/s", "{:,.0f}"),
    "encoder_tokens": ("M encoder tokens", "{:,.1f}"),
    "teraflop": ("TFLOP", "{:,.1f}"),
    "peak_memory_gib": ("GiB", "{:,.2f}"),
    "users_per_second": ("users/s decoded", "{:,.0f}"),
    "exposures_per_second": ("exposures/s", "{:,.0f}"),
}
BEYOND = {
    "dense_recall_at_10": ("dense recall@10", "{:.4f}"),
    "coverage_at_10": ("coverage", "{:.3f}"),
    "long_tail_share_at_10": ("long tail", "{:.3f}"),
    "novelty_at_10": ("novelty, bits", "{:.2f}"),
}


@dataclass(frozen=True)
class Standing:
    """A standing is one line of the table of costs.

    recall: mean recall@10 of the runs, or AUC where `predicts`. figures: means over the runs of COSTS and BEYOND; one
    that a run does not have is missing. frontier: None where the training seconds are not known.
    """

    arm: Arm
    recall: float
    figures: Mapping[str, float]
    frontier: bool | None

    @property
    def predicts(self) -> bool:
        """Return whether the runs predict actions and rank no items."""
        return isinstance(self.arm.runs[0].ranks, Predictions)


def standings(arms: Sequence[Arm]) -> list[Standing]:
    """Return the line of each arm; the arms must have one protocol."""
    recalls = [float(np.mean([score_of(run) for run in arm.runs])) for arm in arms]
    figures = [_means(arm) for arm in arms]
    points = [
        Point(arm.name, recall, found["train_seconds"])
        for arm, recall, found in zip(arms, recalls, figures, strict=True)
        if "train_seconds" in found
    ]
    ahead = dict(zip([point.name for point in points], on_frontier(points), strict=True))
    return [
        Standing(arm, recall, found, ahead.get(arm.name))
        for arm, recall, found in zip(arms, recalls, figures, strict=True)
    ]


def score_of(run: Run) -> float:
    """Return the recall@10 of a run, or of one that predicts actions its AUC; 0.5 where no label has both answers."""
    if isinstance(run.ranks, Predictions):
        return 0.5 if run.ranks.auc is None else run.ranks.auc
    return recall_at(run.ranks.users["rank"].to_numpy(), 10)


def figures_of(run: Run) -> dict[str, float]:
    """Return the costs of a run, and what its top 10 is like, as far as they are known."""
    known = run.figures
    found = {name: known[name] for name in (*COSTS, *BEYOND) if name in known}
    if "tokens_trained" in known:
        per_step = known.get("tokens_per_step") or 1.0
        left = known.get("tokens_per_step_after_pruning", per_step) / per_step
        found["encoder_tokens"] = known["tokens_trained"] * left / 1e6
    if "flops_per_window" in known and "windows_trained" in known:
        found["teraflop"] = known["flops_per_window"] * known["windows_trained"] / 1e12
    return found


def _means(arm: Arm) -> dict[str, float]:
    found = [figures_of(run) for run in arm.runs]
    return {
        name: float(np.mean([figures[name] for figures in found]))
        for name in (*COSTS, *BEYOND)
        if all(name in figures for figures in found)
    }
