"""What skipgr remembers: the latest scores of every token, and a journal of what each pass skipped.

Shape legend: N interactions of the splits, flat, L code levels, E levels that are scored, W windows, B
bins, F = (N + 1) * L.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.strategies.base import TableRows, TrainingPlan
from pipeline.strategies.skipgr.rules import UNSCORED, Decisions

BINS = 20  # of the entropy histograms


class ScoreStore:
    """The latest score of each (interaction, level), on the device that trains; written within a step.

    Args:
        sum_: of a tensor over all processes. Between two merges each slot is written by one of them at most.
    """

    def __init__(self, interactions: int, levels: int, device: torch.device, sum_: Callable[[Tensor], Tensor]):
        self.interactions, self.levels, self.sum = interactions, levels, sum_
        self.scores_F = torch.full(((interactions + 1) * levels,), UNSCORED, device=device)
        self._merged_F = self.scores_F.clone()  # what all processes know

    @property
    def dummy_slot(self) -> int:
        """The slot of what is not to be kept."""
        return self.interactions

    def unscored(self) -> np.ndarray:
        """Scores of a run that has none yet, float32 [N, L]."""
        return np.full((self.interactions, self.levels), UNSCORED, np.float32)

    def write(self, level: int, slots_W: Tensor, scores_W: Tensor) -> None:
        """Keep scores of a level. Waits for nothing."""
        self.scores_F.index_copy_(0, slots_W * self.levels + level, scores_W)

    def merge(self) -> np.ndarray:
        """Every process takes over what the others wrote; the scores on the host, float32 [N, L]."""
        self.scores_F[self.dummy_slot * self.levels :] = UNSCORED
        new_F = self.scores_F != self._merged_F
        sums_2F = self.sum(torch.stack([torch.where(new_F, self.scores_F, 0.0), new_F.float()]))
        self.scores_F.copy_(torch.where(sums_2F[1] > 0, sums_2F[0], self._merged_F))
        self._merged_F.copy_(self.scores_F)
        return self.scores_F.cpu().numpy().reshape(-1, self.levels)[:-1].copy()

    def load(self, scores_NL: Tensor) -> None:
        """Take over what `merge` gave."""
        for held_F in (self.scores_F, self._merged_F):
            held_F[: self.dummy_slot * self.levels] = scores_NL.flatten().to(held_F.device)


class Journal:
    """One row per pass, histograms of the scores that its decisions rest on, and who was skipped, over all passes.

    Args:
        widths: codes of each level that is scored; no entropy is above log(width).
    """

    def __init__(self, plan: TrainingPlan, widths: tuple[int, ...], levels: int):
        self.widths, self.levels = widths, levels
        lengths_U = np.diff(plan.first_U, append=len(plan.items_N))
        position_N = np.arange(len(plan.items_N)) - np.repeat(plan.first_U, lengths_U)
        trains_N = position_N < np.repeat(plan.end_U - plan.first_U, lengths_U)
        counts_I = np.bincount(plan.items_N, trains_N)
        # Bins by powers of two: 1, 2 to 3, 4 to 7 ...
        self._bins = {"popularity": _log2(counts_I)[plan.items_N], "history": _log2(position_N)}
        self.seconds = 0.0  # spent on decisions
        self.rows: list[dict[str, float]] = []
        self.histograms: list[dict[str, float]] = []
        self.by_level = np.zeros((2, levels), np.int64)  # tokens that could be skipped, and were
        # Interactions in each bin, tokens of them that were skipped, and interactions of skipped sequences
        self.by_bin = {name: np.zeros((3, bin_N.max() + 1), np.int64) for name, bin_N in self._bins.items()}

    def begin_epoch(self, epoch: int, scores_NL: np.ndarray, decisions: Decisions, rescores: bool) -> None:
        """Open the row of a pass, from its decisions."""
        # Positions: of all that has a score, of skipped tokens by level, of the targets of skipped sequences
        index_M = np.flatnonzero(decisions.scored_N)
        skipped = [np.flatnonzero(decisions.skip_NL[:, level]) for level in range(self.levels)]
        gone = np.flatnonzero(decisions.sequence_weights_N == 0)
        counts_L, scored = np.array([len(positions) for positions in skipped]), len(self.widths)
        self.rows.append(
            {
                "pass": epoch,
                "sequences_skipped": _share(len(gone), len(index_M)),
                "tokens_skipped": _share(counts_L[:scored].sum(), scored * len(index_M)),
                "rescored": float(rescores),
                **{f"tokens_skipped_{level + 1}": _share(count, len(index_M)) for level, count in enumerate(counts_L)},
                **{f"threshold_{level + 1}": _number(t) for level, t in enumerate(decisions.thresholds_E)},
                "mean": _number(decisions.mean),
                "ratio": _number(decisions.ratio),
                "windows": 0,
                "weight_sum": 0.0,
                "encoder_tokens": 0,
                "decoder_tokens": 0,
                "target_tokens": 0,
            }
        )
        if not decisions.decided:
            return
        self._histograms(epoch, scores_NL[index_M])
        self.by_level += np.stack([np.full(self.levels, len(index_M)), counts_L])
        for name, bin_N in self._bins.items():
            for row, positions in zip(
                self.by_bin[name], (index_M, np.concatenate(skipped[:scored]), gone), strict=True
            ):
                row += np.bincount(bin_N[positions], minlength=len(row))

    def _histograms(self, epoch: int, scores_ML: np.ndarray) -> None:
        for level, width in enumerate(self.widths):
            top = float(np.log(width)) or 1.0
            bin_M = np.minimum((scores_ML[:, level] * (BINS / top)).astype(np.int64), BINS - 1)
            self.histograms += [
                {"pass": epoch, "level": level + 1, "from": top * i / BINS, "tokens": int(count)}
                for i, count in enumerate(np.bincount(bin_M, minlength=BINS))
            ]

    def end_step(self, **counts: float) -> None:
        """Add to the row of the pass what was really computed."""
        for name, count in counts.items():
            self.rows[-1][name] += count

    def tables(self) -> dict[str, TableRows]:
        """As `Report.tables`; also `entropy`, `by_popularity` (of the item, in training) and `by_history` (items
        before the interaction).
        """
        tables: dict[str, TableRows] = {
            "passes": [dict(row) for row in self.rows],
            "by_level": [
                {"level": f"level {level + 1}", "skipped": _share(skipped, count)}
                for level, (count, skipped) in enumerate(self.by_level.T)
            ],
        }
        if self.histograms:
            tables["entropy"] = [dict(row) for row in self.histograms]
        for name, by_bin in self.by_bin.items():
            tables[f"by_{name}"] = [
                {
                    "bin": f"{2**i} to {2 ** (i + 1) - 1}" if i else "1",
                    "interactions": int(count),
                    "tokens_skipped": _share(tokens, count * len(self.widths)),
                    "sequences_skipped": _share(gone, count),
                }
                for i, (count, tokens, gone) in enumerate(by_bin.T)
            ]
        return tables

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "histograms": self.histograms,
            "by_level": torch.from_numpy(self.by_level),
            "by_bin": {name: torch.from_numpy(counts) for name, counts in self.by_bin.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self.histograms = state["rows"], state["histograms"]
        self.by_level = state["by_level"].cpu().numpy()
        self.by_bin = {name: counts.cpu().numpy() for name, counts in state["by_bin"].items()}


def _log2(counts_n: np.ndarray) -> np.ndarray:
    """floor(log2), int64; 0 of 0."""
    return np.frexp(np.maximum(counts_n, 1))[1].astype(np.int64) - 1


def _number(value: float) -> float:
    """0 where nothing was decided, or nothing lies below: a table holds numbers."""
    return float(value) if np.isfinite(value) else 0.0


def _share(part: int, whole: int) -> float:
    return float(part / whole) if whole else 0.0
