"""skipgr remembers the latest score of every token, and writes a journal of what each epoch skipped.

Shape legend: I items of the catalogue, W windows, L levels; local: M interactions of the splits, flat, R interactions
that have a score, E levels that are scored, U users, F = (M + 1) * L entries of the store, n any numbers.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.strategies.base import TableRows, TrainingPlan
from pipeline.strategies.skipgr.rules import UNSCORED, Decisions

BINS = 20  # bins of the entropy histograms


class ScoreStore:
    """A `ScoreStore` holds the latest score of each (interaction, level) on the device; steps write into it.

    Slot m holds the L scores of interaction m; one more slot, the dummy, takes scores to discard.

    Args:
        sum_: sums a tensor over all processes. Between two merges at most one process writes to a slot.
    """

    def __init__(self, interactions: int, levels: int, device: torch.device, sum_: Callable[[Tensor], Tensor]):
        self.interactions = interactions
        self.levels = levels
        self.sum = sum_
        self.scores_F = torch.full(((interactions + 1) * levels,), UNSCORED, device=device)
        self._merged_F = self.scores_F.clone()  # the scores at the last merge, the same on all processes

    @property
    def dummy_slot(self) -> int:
        """Return the slot for scores to discard."""
        return self.interactions

    def unscored(self) -> np.ndarray:
        """Return the scores of a run that has none yet, float32 [M, L]."""
        return np.full((self.interactions, self.levels), UNSCORED, np.float32)

    def write(self, slots_LW: Tensor, scores_LW: Tensor) -> None:
        """Store a score of each level in a slot, without waiting for the device."""
        # L 3, level 1, slots 0 and 2 -> entries 1 and 7
        entries_LW = slots_LW * self.levels + torch.arange(len(slots_LW), device=slots_LW.device)[:, None]
        self.scores_F.index_copy_(0, entries_LW.flatten(), scores_LW.flatten())

    def merge(self) -> np.ndarray:
        """Give every process the scores that the others wrote; return them on the host, float32 [M, L]."""
        # Discarded scores must not travel.
        self.scores_F[self.dummy_slot * self.levels :] = UNSCORED
        # At most one process has a new score in an entry, so that the sum over processes is that score.
        # merged 5 5 -1; process A has 5 2 -1, process B 3 5 -1 -> sums 3 2 0, new 1 1 0 -> scores 3 2 -1 on both
        new_F = self.scores_F != self._merged_F
        sums_2F = self.sum(torch.stack([torch.where(new_F, self.scores_F, 0.0), new_F.float()]))
        self.scores_F.copy_(torch.where(sums_2F[1] > 0, sums_2F[0], self._merged_F))
        self._merged_F.copy_(self.scores_F)
        return self.scores_F.cpu().numpy().reshape(-1, self.levels)[:-1].copy()

    def load(self, scores_ML: Tensor) -> None:
        """Take over the scores that `merge` returned."""
        for entries_F in (self.scores_F, self._merged_F):
            entries_F[: self.dummy_slot * self.levels] = scores_ML.flatten().to(entries_F.device)


class Journal:
    """Record one row per epoch, histograms of the scores that it decided by, and what was skipped over all epochs.

    Args:
        widths: codes of each level that is scored; no entropy is above log(width).
    """

    def __init__(self, plan: TrainingPlan, widths: tuple[int, ...], levels: int):
        self.widths = widths
        self.levels = levels
        # The position of each interaction in its user's sequence, and the interactions that training may use.
        # lengths 3, 2 -> positions 0 1 2 0 1; training parts of 1 and 2 -> 1 0 0 1 1
        lengths_U = np.diff(plan.first_U, append=len(plan.items_M))
        position_M = np.arange(len(plan.items_M)) - np.repeat(plan.first_U, lengths_U)
        trains_M = position_M < np.repeat(plan.end_U - plan.first_U, lengths_U)
        counts_I = np.bincount(plan.items_M, trains_M)
        # Each interaction's bins, by powers of two: 1, 2 to 3, 4 to 7 ... interactions of its item, or items before it
        self._bins = {"popularity": _log2(counts_I)[plan.items_M], "history": _log2(position_M)}
        self.seconds = 0.0  # spent on decisions and on this journal
        self._begun: tuple[int, np.ndarray, Decisions, bool] | None = None  # the epoch that has no row yet
        self._rows: list[dict[str, float]] = []
        self.histograms: list[dict[str, float]] = []
        self.by_level = np.zeros((2, levels), np.int64)  # tokens that could be skipped; tokens that were skipped
        # Per bin: interactions, their skipped tokens, and interactions of skipped sequences
        self.by_bin = {name: np.zeros((3, bin_M.max() + 1), np.int64) for name, bin_M in self._bins.items()}

    def begin_epoch(self, epoch: int, scores_ML: np.ndarray, decisions: Decisions, rescores: bool) -> None:
        """Take an epoch's decisions; its row is opened after its first step, beside which a GPU works."""
        self._open()
        self._begun = epoch, scores_ML, decisions, rescores

    @property
    def rows(self) -> list[dict[str, float]]:
        """Return a row for each epoch."""
        self._open()
        return self._rows

    def _open(self) -> None:
        """Open the row of the epoch that has begun, unless it is open."""
        if self._begun is not None:
            began = time.perf_counter()
            begun, self._begun = self._begun, None
            self._open_row(*begun)
            self.seconds += time.perf_counter() - began

    def _open_row(self, epoch: int, scores_ML: np.ndarray, decisions: Decisions, rescores: bool) -> None:
        """Open the row of an epoch from its decisions, and add them to the sums over epochs."""
        # Flat positions: of interactions that have a score, of skipped tokens per level, of targets of skipped
        # sequences. skip 10, 11, 00 -> skipped tokens at 0 1 and at 1, counts 2 1
        index_R = np.flatnonzero(decisions.scored_M)
        skipped = [np.flatnonzero(decisions.skip_ML[:, level]) for level in range(self.levels)]
        gone = np.flatnonzero(decisions.sequence_weights_M == 0)
        counts_L = np.array([len(positions) for positions in skipped])
        scored = len(self.widths)
        # Shares are of the scored interactions; `end_step` adds to the counts below.
        self._rows.append(
            {
                "pass": epoch,
                "sequences_skipped": _share(len(gone), len(index_R)),
                "tokens_skipped": _share(counts_L[:scored].sum(), scored * len(index_R)),
                "rescored": float(rescores),
                **{f"tokens_skipped_{level + 1}": _share(count, len(index_R)) for level, count in enumerate(counts_L)},
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
        # The sums over all epochs that decided: by level, and by the bins of popularity and history.
        self._histograms(epoch, scores_ML[index_R])
        self.by_level += np.stack([np.full(self.levels, len(index_R)), counts_L])
        for name, bin_M in self._bins.items():
            for row, positions in zip(
                self.by_bin[name], (index_R, np.concatenate(skipped[:scored]), gone), strict=True
            ):
                row += np.bincount(bin_M[positions], minlength=len(row))

    def _histograms(self, epoch: int, scores_RL: np.ndarray) -> None:
        """Count the scores of each level in BINS bins between 0 and the largest entropy, log(width)."""
        for level, width in enumerate(self.widths):
            top = float(np.log(width)) or 1.0
            bin_R = np.minimum((scores_RL[:, level] * (BINS / top)).astype(np.int64), BINS - 1)
            self.histograms += [
                {"pass": epoch, "level": level + 1, "from": top * i / BINS, "tokens": int(count)}
                for i, count in enumerate(np.bincount(bin_R, minlength=BINS))
            ]

    def end_step(self, **counts: float) -> None:
        """Add the counts of what a step computed to the epoch's row."""
        for name, count in counts.items():
            self.rows[-1][name] += count

    def tables(self) -> dict[str, TableRows]:
        """Return the tables of `Report.tables`, and `entropy`, `by_popularity` and `by_history`.

        Popularity counts the item's interactions for training, history the items before the interaction.
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
        """Return what a resumed run needs, all but `seconds`."""
        return {
            "rows": self.rows,
            "histograms": self.histograms,
            "by_level": torch.from_numpy(self.by_level),
            "by_bin": {name: torch.from_numpy(counts) for name, counts in self.by_bin.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._begun = None
        self._rows = state["rows"]
        self.histograms = state["histograms"]
        self.by_level = state["by_level"].cpu().numpy()
        self.by_bin = {name: counts.cpu().numpy() for name, counts in state["by_bin"].items()}


def _log2(counts_n: np.ndarray) -> np.ndarray:
    """Return floor(log2), int64; 0 for 0. Counts 0 1 2 3 4 -> 0 0 1 1 2"""
    exponents_n: np.ndarray = np.frexp(np.maximum(counts_n, 1))[1].astype(np.int64)
    return exponents_n - 1


def _number(value: float) -> float:
    """Return a number that a table can hold: 0 for nan (nothing was decided) and -inf (no score is skipped)."""
    return float(value) if np.isfinite(value) else 0.0


def _share(part: int, whole: int) -> float:
    return float(part / whole) if whole else 0.0
