"""Metrics stand in sections, the main ones first, and nothing stands twice."""

from pipeline.results.sections import curve_metrics, final_metrics

METRICS = {
    "users": 90,
    "mrr_at_10": 0.1,
    "recall_at_10": 0.2,
    "recall_at_10_low": 0.1,
    "ndcg_at_10": 0.15,
    "popularity_recall_at_10": 0.05,
    "tie_share": 0.0,
    "noties_recall_at_10": 0.2,
    "train_seconds": 5.0,
    "best_step": 40,
}
TIMINGS = {
    "train_seconds": 5.0,
    "compile_seconds": 0.0,
    "windows_per_second": 8.0,
    "samples_per_second": 8.0,
    "windows_trained": 40,
    "samples_trained": 80,
    "keep_rate": 1.0,
    "skipped_share": 0.25,
}


def test_each_metric_is_in_its_section_and_the_main_ones_come_first() -> None:
    assert list(final_metrics(METRICS, TIMINGS)) == [
        "test/recall_at_10",
        "test/ndcg_at_10",
        "test/mrr_at_10",
        "test/users",
        "test/recall_at_10_low",
        "test/tie_share",
        "baseline/popularity_recall_at_10",
        "cost/train_seconds",
        "cost/windows_per_second",
        "cost/windows_trained",
        "cost/samples_trained",
        "cost/skipped_share",
        "train/best_step",
    ]


def test_what_is_counted_without_ties_is_told_where_there_are_ties() -> None:
    told = final_metrics(METRICS | {"tie_share": 0.5, "noties_popularity_recall_at_10": 0.01}, {})
    assert {"test/noties_recall_at_10", "baseline/noties_popularity_recall_at_10"} <= set(told)


def test_a_curve_begins_with_recall() -> None:
    row = {"step": 5, "windows": 9, "train_loss": 2.0, "valid_loss": 3.0, "ndcg_at_5": 0.1, "recall_at_10": 0.4}
    assert curve_metrics(row) == {
        "valid/recall_at_10": 0.4,
        "valid/ndcg_at_5": 0.1,
        "train/windows": 9,
        "train/loss": 2.0,
        "valid/loss": 3.0,
    }
    assert next(iter(curve_metrics(row))) == "valid/recall_at_10"
