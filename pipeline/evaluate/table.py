"""Lay out the table that evaluate prints: the systems side by side, and lines that say how the numbers were made."""

from pipeline.evaluate.config import EvaluateConfig
from pipeline.metric_names import DEEP_METRICS, how_ranked, row_labels


def table(metrics: dict[str, float], config: EvaluateConfig, strategy: str, over_items: bool = False) -> str:
    """Return the printed table: the model by both rules for seen items and the baselines, with and without ties.

    Args:
        over_items: the model scores items themselves, all of them, and no Semantic IDs.
    """
    ties = metrics["noties_users"] < metrics["users"]
    parts = {"": f"{'sample of' if 'users_in_all' in metrics else 'all'} {metrics['users']:,} users"} | (
        {"noties_": f"no tie: {metrics['noties_users']:,} users"} if ties else {}
    )
    labels = row_labels(metrics, strategy)
    first = max(map(len, labels.values())) + 2
    lines = [
        " " * first + "".join(f"{words:>24}" for words in parts.values()),
        " " * first + "".join(f"{'recall@10':>14}{'ndcg@10':>10}" for _ in parts),
    ]
    # A line per system: recall and NDCG on all users, then on those without a tie.
    for prefix, label in labels.items():
        cells = [metrics[f"{part}{prefix}{name}_at_10"] for part in parts for name in ("recall", "ndcg")]
        lines.append(f"{label:{first}}" + "".join(f"{cell:{(14, 10)[i % 2]}.4f}" for i, cell in enumerate(cells)))
    # Lines that say how the numbers were made.
    low, high = metrics["recall_at_10_low"], metrics["recall_at_10_high"]
    search = how_ranked(config.ranking, beam=config.beam, decoding=config.decoding, over_items=over_items)
    beam = not over_items and config.ranking in ("generator", "fused")
    by_counting = ", as counting does on validation" if config.filter_seen == "auto" else ""
    of_sids = f", {metrics['bucket_recall_at_10']:.4f} by bucket, {metrics['invalid_rate']:.2%} invalid SIDs"
    lines.append(
        f"{labels['']}{by_counting}: {search}; recall@10 in {low:.4f} to {high:.4f} (95%)" + (of_sids if beam else "")
    )
    if "users_in_all" in metrics:
        lines.append(
            f"a sample of {metrics['users']:,} of {metrics['users_in_all']:,} test users (evaluate.users); the "
            "interval is for all of them"
        )
    if deep := [name for name in DEEP_METRICS if name in metrics]:
        lines.append("deeper: " + ", ".join(f"{name.replace('_at_', '@')} {metrics[name]:.4f}" for name in deep))
    lines.append(
        f"first ten: {metrics['coverage_at_10']:.1%} of the catalogue shown, {metrics['long_tail_share_at_10']:.1%} of "
        f"the long tail (targets: {metrics['long_tail_share_of_targets']:.1%}); its scores promise a recall@10 of "
        f"{metrics['expected_recall_at_10']:.4f}"
    )
    return "\n".join(lines)
