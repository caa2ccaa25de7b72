"""Show what each view says of the items that a model with fused views recommends, for `explain`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.artifacts import GENERATOR, INTERACTIONS, REPORTS, SPLITS
from pipeline.errors import UserError
from pipeline.evaluate.recommend import BEAM, model_and_history, names_of
from pipeline.evaluate.typed_history import Entry
from pipeline.printing import shown
from pipeline.results.ranks import answers_by, drops_seen
from pipeline.views.fuser import history_rows
from pipeline.views.fusion import best_first
from pipeline.views.served import served_by


@dataclass(frozen=True)
class ViewShares:
    """An item that is recommended has a score above that of an item which no view lists.

    shares: for each view, its part of that score; the parts sum to 1, and a view that does not list the item has 0.
    """

    item: str
    title: str
    score: float
    shares: dict[str, float]


def view_shares(
    *,
    user: str | None = None,
    history: Sequence[Entry] | None = None,
    k: int = 10,
    interactions: Path = INTERACTIONS,
    splits: Path = SPLITS,
    generator: Path = GENERATOR,
    reports: Path = REPORTS,
) -> list[ViewShares]:
    """Return the first k items that the fused views recommend, best first, with each view's share.

    Arguments and errors are those of `recommend`.

    Raises:
        UserError: the model answers by another ranking than the fused views.
    """
    loaded, known = model_and_history(
        user, history, interactions=interactions, splits=splits, generator=generator, reports=reports
    )
    ranking = answers_by(reports)
    if ranking != "fused":
        raise UserError(
            f"the model answers by the ranking {ranking}, not by fused views",
            "an item has no shares of several views then",
            "evaluate with evaluate.ranking=fused: `dvc exp run -S evaluate.ranking=fused`",
        )
    served = served_by(loaded, generator, ranking)
    assert served.weights is not None
    offsets, drop = np.array([0, len(known.items)]), drops_seen(reports)
    seen = len(known.items) if drop else 0
    _, candidates = served.candidates(
        known.items,
        offsets,
        beam=max(k, BEAM),
        drop_seen=seen,
        times=known.times,
        actions=known.actions,
        kept=known.kept,
    )
    slopes_S = served.weights.slopes()
    seen_WM = history_rows(known.items, offsets, "cpu") if drop else None
    items_WJ, scores_WJ = best_first(candidates.items_WJ, candidates.scores(slopes_S), seen_WM)
    rows = []
    for item, score in zip(items_WJ[0, :k].tolist(), scores_WJ[0, :k].tolist(), strict=True):
        if item < 0:
            break
        parts_S = candidates.gains_WJS[0, candidates.items_WJ[0] == item][0] * slopes_S
        shares = (parts_S / max(score, 1e-12)).tolist()
        (named,) = names_of(loaded, [item])
        rows.append(ViewShares(*named, score, dict(zip(served.weights.views, shares, strict=True))))
    return rows


def shares_text(rows: Sequence[ViewShares]) -> str:
    """Return a table with one line per recommended item."""
    if not rows:
        return "no item is left to recommend"
    name = max(len(shown(row.item)) for row in rows)
    views = [*rows[0].shares]
    lines = ["score above that of an item which no view lists, and each view's share of it"]
    lines.append(f"  {'':{name}}  {'score':>7}" + "".join(f"  {view:>9}" for view in views))
    for row in rows:
        cells = "".join(f"  {row.shares[view]:>9.0%}" for view in views)
        lines.append(f"  {shown(row.item):{name}}  {row.score:7.3f}{cells}  {shown(row.title)}".rstrip())
    return "\n".join(lines)
