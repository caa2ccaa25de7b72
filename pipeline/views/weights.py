"""The weights of the fusion: chosen on validation alone, and written to models/fusion.

First each view is calibrated by itself: of TEMPERATURES the one that gives the validation targets of its lists the
highest likelihood. Then a small grid is tried: every combination of a weight of GRID per view, where the first view
that has a weight has 1, since only ratios matter. Each subset of the views is part of the grid, so that the best pairs
are found on the way. The best has the largest sum of recall@10 and NDCG@10; of equals the first tried, which has fewer
views and smaller weights. Nothing here is random, and the test part is never read.

Shape legend: W windows of one batch; local: J candidates of a window, S views, M items of the longest history.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts import read_json, write_json
from pipeline.errors import UserError
from pipeline.manifest import seal
from pipeline.metrics import ndcg_at, recall_at
from pipeline.views.fusion import EMPTY, Candidates, target_ranks_of

FUSION = Path("models/fusion")
FACTS = "fusion.json"
GRID = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # weights of a view
TEMPERATURES = tuple(float(2 ** (step / 4)) for step in range(-8, 9))  # 1/4 to 4


@dataclass(frozen=True)
class ValidBatch:
    """A batch of validation windows: their candidates, their targets, and the items that leave the ranking."""

    candidates: Candidates
    targets_W: Tensor
    seen_WM: Tensor


@dataclass(frozen=True)
class Trial:
    """A trial says what one combination of weights reaches on validation."""

    weights: tuple[float, ...]
    recall_at_10: float
    ndcg_at_10: float

    @property
    def views(self) -> tuple[int, ...]:
        """Return the numbers of the views that have a weight."""
        return tuple(number for number, weight in enumerate(self.weights) if weight)

    @property
    def worth(self) -> float:
        """Return what is to be large."""
        return self.recall_at_10 + self.ndcg_at_10


@dataclass(frozen=True, kw_only=True)
class FusionWeights:
    """`FusionWeights` holds models/fusion: how the views are weighed, and what that rests on.

    weights, temperatures: by view. backward: how much counting counts a pair in the other order. subsets: for each
    subset of the views, by names joined with `+`, the weights that are best on validation. entries: items of a list.
    trials: combinations of weights that were tried. valid_users, valid_recall_at_10, valid_ndcg_at_10: of the chosen
    combination. drop_seen: whether seen items left the ranking. models: content hash of each view's folder.
    """

    weights: dict[str, float]
    temperatures: dict[str, float]
    backward: float
    subsets: dict[str, dict[str, float]]
    entries: dict[str, int]
    margin: float
    smoothing: float
    drop_seen: bool
    trials: int
    valid_users: int
    valid_recall_at_10: float
    valid_ndcg_at_10: float
    models: dict[str, str]

    @property
    def views(self) -> tuple[str, ...]:
        """Return the names of the views that were fused, in their order."""
        return tuple(self.weights)

    def slopes(self, weights: Mapping[str, float] | None = None) -> Tensor:
        """Return what a view's gain is multiplied by, weight over temperature, float32 [S]."""
        chosen = self.weights if weights is None else weights
        return torch.tensor([chosen.get(view, 0.0) / self.temperatures[view] for view in self.views])

    def write(self, folder: Path = FUSION) -> None:
        """Write the folder; equal content gives equal bytes."""
        write_json(folder / FACTS, asdict(self))
        seal(folder, "evaluate")

    @classmethod
    def read(cls, folder: Path = FUSION) -> "FusionWeights":
        """Read the folder. Raises UserError where it is missing or damaged."""
        facts = read_json(folder / FACTS, weights=dict, temperatures=dict, subsets=dict, models=dict)
        try:
            fusion = cls(**facts)
            if not fusion.weights or set(fusion.weights) != set(fusion.temperatures):
                raise ValueError("its weights and temperatures are of different views")
            if not all(np.isfinite(fusion.slopes().numpy())):
                raise ValueError("its weights are no finite numbers")
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise UserError(
                f"{folder / FACTS} cannot be read: {error}",
                "it was damaged or edited, or another version wrote it",
                "run `dvc checkout`, or `dvc repro` to make it again",
            ) from None
        return fusion


def fit(
    batches: Sequence[ValidBatch], views: Sequence[str], *, drop_seen: bool
) -> tuple[dict[str, float], list[Trial]]:
    """Return the temperature of each view, and all trials, in the order in which they were made.

    Args:
        batches: of validation, users without a history left out.
        drop_seen: whether the items of the history leave the ranking.
    """
    temperatures = {view: _temperature(batches, number) for number, view in enumerate(views)}
    cooled = torch.tensor([1 / temperatures[view] for view in views])
    found = [_Found.of(batch, drop_seen) for batch in batches]
    trials = []
    for weights in _combinations(len(views)):
        slopes = cooled * torch.tensor(weights)
        ranks = np.concatenate([batch.ranks(slopes) for batch in found]) if found else np.zeros(0)
        trials.append(Trial(weights, recall_at(ranks, 10), ndcg_at(ranks, 10)))
    return temperatures, trials


def best(trials: Sequence[Trial], views: Sequence[int] | None = None) -> Trial:
    """Return the best trial; views: the best of those that use exactly these.

    Where no trial finds any target, the best is the one in which each view counts 1.
    """
    fitting = [trial for trial in trials if views is None or trial.views == tuple(views)]
    if not any(trial.worth for trial in fitting):
        return next(trial for trial in fitting if set(trial.weights) <= {0, 1} and trial.views == fitting[-1].views)
    return max(fitting, key=lambda trial: trial.worth)


def by_subset(trials: Sequence[Trial], views: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the best weights of each subset of the views."""
    found: dict[str, dict[str, float]] = {}
    for size in range(1, len(views) + 1):
        for chosen in itertools.combinations(range(len(views)), size):
            weights = best(trials, chosen).weights
            found["+".join(views[number] for number in chosen)] = {views[number]: weights[number] for number in chosen}
    return found


def _combinations(views: int) -> list[tuple[float, ...]]:
    """Return weights, few views first: the first view that has a weight has 1."""
    found = []
    for weights in itertools.product(GRID, repeat=views):
        used = [weight for weight in weights if weight]
        if used and used[0] == 1:
            found.append(weights)
    return sorted(found, key=lambda weights: (sum(weight > 0 for weight in weights), weights))


@dataclass(frozen=True)
class _Found:
    """A `_Found` holds what all trials share: the windows of a batch whose target is a candidate, without seen items.

    windows: of the batch. rows: which of them are left, int64.
    """

    windows: int
    rows: np.ndarray
    candidates: Candidates
    targets: Tensor

    @classmethod
    def of(cls, batch: ValidBatch, drop_seen: bool) -> "_Found":
        """Leave out what no weights rank."""
        items_WJ = batch.candidates.items_WJ
        if drop_seen:
            items_WJ = items_WJ.masked_fill(in_history(items_WJ, batch.seen_WM), EMPTY)
        rows = (items_WJ == batch.targets_W[:, None]).any(1).nonzero()[:, 0]
        left = Candidates(items_WJ[rows], batch.candidates.gains_WJS[rows])
        return cls(len(items_WJ), rows.cpu().numpy(), left, batch.targets_W[rows])

    def ranks(self, slopes_S: Tensor) -> np.ndarray:
        """Return the rank of each target of the batch, 0 where it is no candidate or was dropped as seen."""
        ranks = np.zeros(self.windows, np.int64)
        scores_WJ = self.candidates.scores(slopes_S.to(self.candidates.gains_WJS.device))
        ranks[self.rows] = target_ranks_of(self.candidates.items_WJ, scores_WJ, self.targets).cpu().numpy()
        return ranks


def in_history(items_WJ: Tensor, seen_WM: Tensor) -> Tensor:
    """Return which candidates are items of the row's history, bool [W, J]."""
    return (items_WJ[:, :, None] == seen_WM[:, None, :]).any(-1)


def _temperature(batches: Sequence[ValidBatch], view: int) -> float:
    """Return the temperature by which the view's lists, as a softmax, make the targets likeliest; 1 without targets."""
    inverse_T = torch.tensor([1 / temperature for temperature in TEMPERATURES])
    total_T = torch.zeros(len(TEMPERATURES), dtype=torch.float64)
    for batch in batches:
        gains_WJ = batch.candidates.gains_WJS[..., view]
        gain_W = (gains_WJ * (batch.candidates.items_WJ == batch.targets_W[:, None])).sum(1)
        rows = gain_W > 0  # the view lists the target: a listed item is above the floor
        entries = gains_WJ[rows].masked_fill(gains_WJ[rows] <= 0, float("-inf"))
        for number, slope in enumerate(inverse_T.tolist()):
            loss_W = torch.logsumexp(entries * slope, 1) - gain_W[rows] * slope
            total_T[number] += float(loss_W.double().sum())
    if not total_T.any():
        return 1.0
    return TEMPERATURES[int(total_T.argmin())]
