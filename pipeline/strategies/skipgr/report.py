"""What skipgr tells of a run: its tables, the scores that it learned, and shares over the passes that skipped.

Shape legend: N interactions of the splits, flat, L code levels.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.strategies.base import Report, TableRows
from pipeline.strategies.skipgr.rules import Rules
from pipeline.strategies.skipgr.store import Journal, ScoreStore


@dataclass(frozen=True)
class SkippingReport(Report):
    """Reads what a run wrote down."""

    rules: Rules
    store: ScoreStore
    journal: Journal

    def tables(self, epochs: int, levels: int) -> dict[str, TableRows]:
        """As `Report.tables`, and the journal's others."""
        return self.journal.tables()

    def learned(self) -> dict[str, np.ndarray]:
        """`scores`: float32 [N, L] by flat position in the splits, -1 where there is none."""
        return {"scores": self.store.merge()}

    def figures(self) -> dict[str, float]:
        """Shares over the passes that skipped, and what was computed in all."""
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
