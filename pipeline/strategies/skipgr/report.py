"""skipgr reports a run by its tables, the scores that it learned, and shares over the epochs that skipped.

Shape legend: L levels; local: M interactions of the splits, flat.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.strategies.base import Report, TableRows
from pipeline.strategies.skipgr.rules import Rules
from pipeline.strategies.skipgr.store import Journal, ScoreStore


@dataclass(frozen=True)
class SkippingReport(Report):
    """Report a run from its journal and its scores."""

    rules: Rules
    store: ScoreStore
    journal: Journal

    def tables(self, epochs: int, levels: int) -> dict[str, TableRows]:
        """Return the tables of `Report.tables`, and the journal's further ones."""
        return self.journal.tables()

    def learned(self) -> dict[str, np.ndarray]:
        """Return `scores`: float32 [M, L] by flat position in the splits, -1 where there is no score."""
        return {"scores": self.store.merge()}

    def figures(self) -> dict[str, float]:
        """Return the shares that were skipped, over the epochs that skipped, and the sums of what was computed."""
        rows = self.journal.rows
        deciding = [row for row in rows if self.rules.skips_in(int(row["pass"]))]
        shares = {
            name: sum(row[name] for row in deciding) / max(len(deciding), 1)
            for name in ("sequences_skipped", "tokens_skipped")
        }
        return {
            **shares,
            "decoder_tokens_trained": sum(row["decoder_tokens"] for row in rows),
            "target_tokens_trained": sum(row["target_tokens"] for row in rows),
            "bookkeeping_seconds": self.journal.seconds,
        }

    def remarks(self, by_patience: bool) -> list[str]:
        """Return lines where nothing was skipped, or where the epochs without skipping at the end did not come."""
        config = self.rules.config
        rows = self.journal.rows
        lines = []
        if not any(self.rules.skips_in(int(row["pass"])) for row in rows):
            lines.append(
                f"no epoch skipped anything: epochs of the run: {len(rows)}; skipping begins with epoch "
                f"{config.first_skipping_epoch}, counted from 0 (skipgr.first_skipping_epoch), and the last "
                f"{config.anneal_epochs} skip nothing (skipgr.anneal_epochs)"
            )
        elif by_patience and config.anneal_epochs and self.rules.skips_in(int(rows[-1]["pass"])):
            lines.append(
                f"patience ended training before the {config.anneal_epochs} epochs without skipping "
                "(skipgr.anneal_epochs): raise train.patience to have them"
            )
        return lines
