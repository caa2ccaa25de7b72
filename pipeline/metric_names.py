"""Name the metrics, without computing any: settings are checked against the names before numpy is loaded."""

# The one list of metrics: metrics.json, the history of training, the scoreboard and the comparison all follow it.
METRICS = ("recall_at_5", "recall_at_10", "ndcg_at_5", "ndcg_at_10", "mrr_at_10")
# Those with an interval, with the baselines beside them, and counted again over users without a tie.
MAIN_METRICS = ("recall_at_10", "ndcg_at_10")
LARGEST_K = max(int(metric.rsplit("_at_", 1)[1]) for metric in METRICS)  # a narrower beam would count too few hits
