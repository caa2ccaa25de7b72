"""Name the metrics, without computing any: settings are checked against the names before numpy is loaded."""

from collections.abc import Mapping

# The one list of metrics: metrics.json, the history of training, the scoreboard and the comparison all follow it.
METRICS = ("recall_at_5", "recall_at_10", "ndcg_at_5", "ndcg_at_10", "mrr_at_10")
# Those with an interval, with the baselines beside them, and counted again over users without a tie.
MAIN_METRICS = ("recall_at_10", "ndcg_at_10")
# Those of SkipGR's and HSTU's tables, where every item is scored and evaluate.beam is as long as their K.
DEEP_METRICS = ("recall_at_50", "recall_at_200", "ndcg_at_200", "mrr_at_200")
LARGEST_K = max(int(metric.rsplit("_at_", 1)[1]) for metric in METRICS)  # a narrower beam would count too few hits
# Those of predicted actions (`train.task: ranking`), means over the labels, for the model and a regression on means
ACTION_METRICS = ("auc", "gauc", "wgauc", "log_loss", "calibration")
MEANS = "means"  # prefix of the regression's
MEANS_OF_ACTIONS = ("means_auc", "means_gauc", "means_log_loss")
# What metrics.json holds, in this order and as far as a run has it; everything else is in details.json.
HEADLINES = (
    *METRICS,
    *DEEP_METRICS,
    *ACTION_METRICS,
    *MEANS_OF_ACTIONS,
    "exposures",
    "train_seconds",
    "windows_per_second",
    "tokens_per_second",
    "windows_trained",
    "tokens_trained",
    "peak_memory_gib",
    "best_step",
    "parameters",
    "users",
    "users_in_all",
    "invalid_rate",
    "bucket_recall_at_10",
    "noties_recall_at_10",
    "popularity_recall_at_10",
    "popularity_ndcg_at_10",
    "cooccurrence_recall_at_10",
    "cooccurrence_ndcg_at_10",
    "dense_recall_at_10",
    "fused_recall_at_10",
)
# What `evaluate.ranking` may name: the system whose ranks are the headline, and by which a trained model answers
RANKINGS = ("generator", "dense", "counting", "fused")

# Backbones that read and predict items themselves, not their Semantic IDs, and rank by scoring each
OVER_ITEMS = ("sasrec", "gr")


def how_ranked(ranking: str, *, beam: float, decoding: str, over_items: bool) -> str:
    """Return how items were found, in words: only a generator over Semantic IDs has a beam.

    Args:
        ranking: one of `RANKINGS`.
        beam: evaluate.beam.
        decoding: evaluate.decoding.
        over_items: the generator predicts items themselves.
    """
    if ranking in ("counting", "dense"):
        return "pairs of items counted" if ranking == "counting" else "the dense retriever's nearest items"
    searched = "every item scored" if over_items or decoding == "exact" else f"beam {beam:g}, {decoding}"
    return f"{searched}, and the lists of the other views" if ranking == "fused" else searched


# Baselines that only count: prefix of their keys -> their name in tables
BASELINES = {
    "cooccurrence": "co-occurrence",
    "directed": "co-occurrence by direction",
    "popularity": "popularity",
}
# Prefix of the dense retriever's metrics. They follow the rule for seen items that the model's headline follows.
DENSE = "dense"
DENSE_REPORT = "dense.json"  # in reports/
# What reports/dense.json says of the retriever's training, in details.json too.
DENSE_TRAINING = (
    "dense_train_seconds",
    "dense_compile_seconds",
    "dense_valid_seconds",
    "dense_wall_seconds",
    "dense_windows_per_second",
    "dense_peak_memory_gib",
    "dense_steps",
    "dense_best_step",
    "dense_valid_recall_at_10",
    "dense_windows_trained",
    "dense_parameters",
    "dense_content",
)
# Where the retriever has an index: the share of the exact first items that it finds, and how it looks for them.
DENSE_INDEX = ("dense_index_recall_at_10", "dense_index_recall_at_200", "dense_index_groups", "dense_index_probes")
# Figures of an evaluation and of timings.json that are measured (seconds, bytes, speeds) and so differ from run to run
MEASURED = frozenset(
    {
        "train_seconds",
        "compile_seconds",
        "valid_seconds",
        "wall_seconds",
        "windows_per_second",
        "samples_per_second",
        "tokens_per_second",
        "flops_per_second",
        "share_of_peak",
        "peak_memory_gib",
        "encode_seconds_before_pruning",
        "encode_seconds_after_pruning",
        "bookkeeping_seconds",
        "dense_train_seconds",
        "dense_compile_seconds",
        "dense_valid_seconds",
        "dense_wall_seconds",
        "dense_windows_per_second",
        "dense_peak_memory_gib",
        "dense_evaluate_seconds",
        "evaluate_seconds",
        "fused_seconds",
        "fused_exact_seconds",
        "users_per_second",
        "exposures_per_second",
    }
)


def row_labels(metrics: Mapping[str, float], strategy: str) -> dict[str, str]:
    """Return prefix -> label of the rows of a table: the headline by both rules for seen items, then the other systems.

    Every label names the rule for seen items. `metrics`: of metrics.json and details.json.
    """
    words = {1: "seen dropped", 0: "seen included"}
    dropped = int(metrics["seen_dropped"])
    other = {1: "seen_included_", 0: "seen_dropped_"}[dropped]
    names = {
        "generator": strategy,
        "dense": "dense retriever",
        "counting": "co-occurrence",
        "fused": "fused views",
        "fused_exact": "fused, generator exact",
    }
    headline = names[RANKINGS[int(metrics.get("ranking", 0))]]
    labels = {"": f"{headline}, {words[dropped]}", other: f"{headline}, {words[1 - dropped]}"}
    for system in ("fused", "fused_exact", "generator", "dense"):
        if f"{system}_recall_at_10" in metrics and names[system] != headline:
            labels[f"{system}_"] = f"{names[system]}, {words[dropped]}"
    for name, label in BASELINES.items():
        labels[f"{name}_"] = f"{label}, {words[int(metrics[f'{name}_seen_dropped'])]}"
    return labels
