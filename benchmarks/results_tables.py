"""The tables of docs/results.md: which runs belong to each, what stands above it, and the format of its columns.

The key `kind` of a row of docs/results/raw.jsonl names the row's table.
"""

from benchmarks.speed_tables import SPEED

STRATEGIES = ["full", "rastp", "skipgr", "intrr"]
SASREC = ["full", "ids alone", "skipgr", "full, 8,192 sampled negatives"]
# group of runs -> the dataset, and the runs that belong there
QUALITY = {
    "beauty-fast": ("amazon-beauty", ["full", "intrr"]),
    "beauty-fast, several runs on one GPU": ("amazon-beauty", ["full", "rastp", "skipgr"]),
    "beauty-fast, on Sports": ("amazon-sports", STRATEGIES),
    "beauty-fast, backbone decoder": ("amazon-beauty", ["full", "intrr"]),
    "beauty-fast, backbone hstu": ("amazon-beauty", ["full", "intrr"]),
    "beauty-sprint": ("amazon-beauty", ["full"]),
    "sasrec": ("amazon-beauty", SASREC),
    "sasrec, seen items dropped": ("amazon-beauty", SASREC),
    "sasrec on Sports": ("amazon-sports", ["full"]),
    "sasrec on Sports, seen items dropped": ("amazon-sports", ["full"]),
    "beauty-fast, IntRR's ablations": (
        "amazon-beauty",
        ["intrr", "no_teacher_forcing", "no_alignment", "no_redistribution", "no_sharing"],
    ),
    "beauty-fast as it was: 7 M windows, EMA 0.999": ("amazon-beauty", ["full"]),
    "the same, 3.5 M windows": ("amazon-beauty", ["full", "rastp", "rastp-released", "skipgr"]),
}
# Of the networks over items
DEEP_FIGURES = ("recall_at_10", "recall_at_50", "recall_at_200", "ndcg_at_10", "ndcg_at_200")
RECALLS = (0.04, 0.06, 0.08, 0.09, 0.10)  # whose times the page shows
# heading, what stands above the table, kind of its rows, column title -> format of the row
TABLES: list[tuple[str, str, str, dict[str, str]]] = [
    (
        "## The recipe, change by change",
        "Validation recall@10 on Amazon Beauty, beam 10, one seed. A row that begins with a dash names what differs "
        "from the last row without one. Several runs shared a GPU or a machine, so the table has no times. Two choices "
        "are older than the table and came from a study that had looked at test figures: one random start per user and "
        "end (`train.windows: random_start`), and positions by recency (`backbone.recency_items`).",
        "recipe",
        {"change": "{change}", "windows": "{windows}", "recall@10": "{recall:.4f}"},
    ),
    (
        "## Interactions in the Semantic IDs",
        "`quantize.interactions` on Amazon Beauty, preset beauty-fast, one seed ([quantizers.md](quantizers.md) says "
        "what the key does). Validation, beam 10, chose the share; test, beam 50, was read for it and for 0 alone. The "
        "interval of a recall covers users.",
        "interactions",
        {
            "share": "{share:g}",
            "validation recall@10": "{valid_recall_at_10:.4f}",
            "test recall@10": "{test}",
            "test ndcg@10": "{ndcg}",
            "without ties": "{noties}",
        },
    ),
    (
        "## Three views, and their fusion",
        "Test users, seen items dropped, presets beauty-best and sports-best ([fusion.md](fusion.md) says what the "
        "rows are; for each seed validation chose the weights in 146 trials, and test was read once). Figures are "
        "means over the seeds, with the lowest and highest seed in brackets. *fused over it*: recall@10 of the fused "
        "views minus that of the row, paired user by user, with its 95% interval. Over several seeds the interval "
        "covers resampled users and seeds; for a pair of views, whose ranks no file holds, it is made of the seeds' "
        "intervals over users and the spread of the seeds, as if all seeds erred together. *seen items kept*: "
        "recall@10 by the other rule.",
        "fusion",
        {
            "data": "{data}",
            "ranking": "{ranking}",
            "seeds": "{seeds}",
            "recall@5": "{recall_5:.4f}",
            "recall@10": "{recall:.4f}{spread}",
            "ndcg@10": "{ndcg:.4f}",
            "without ties": "{noties:.4f}",
            "seen items kept": "{kept:.4f}",
            "fused over it": "{against}",
        },
    ),
    (
        "### What the fusion costs",
        "Training seconds of generator and retriever; seconds of ranking all test users by the generator (beam 100), "
        "and those that each form of the fusion adds; milliseconds of ranking 256 users, medians of 45 batches: the "
        "generator alone, what each other part adds, and the whole against the generator.",
        "fusion cost",
        {
            "data": "{data}",
            "seed": "{seed}",
            "generator trains": "{train_seconds:.0f} s",
            "retriever trains": "{dense_train_seconds:.1f} s",
            "generator ranks": "{evaluate_seconds:.1f} s",
            "floored": "+{fused_seconds:.2f} s",
            "exact": "+{fused_exact_seconds:.2f} s",
            "256: generator": "{ms_256_generator:.1f} ms",
            "retriever": "{ms_256_dense:.1f}",
            "counting": "{ms_256_counting:.1f}",
            "union": "{ms_256_union:.1f}",
            "ratio": "{ms_256_ratio:.2f}",
        },
    ),
    (
        "## Settings of sasrec, as tried",
        "Validation on Amazon Beauty, seen items dropped, one seed; every run that ended is listed. The first round "
        "has preset sasrec's keys but d_model 256, inputs times 1, and the start of T5's layers; the second has inputs "
        "times 16; the third has layers that start with std 0.02, too. Several runs shared the GPU, so the table has "
        "no times. The best of the third round became the preset, and the test was read once.",
        "sasrec trial",
        {
            "round": "{round}",
            "change": "{change}",
            "recall@10": "{recall:.4f}",
            "ndcg@10": "{ndcg:.4f}",
            "best step": "{best_step:,}",
        },
    ),
    (
        "## GR and SASRec, one recipe",
        "Test users; [actions.md](actions.md#measured) says what the rows show. A script trained and ranked "
        "with the params of these commands, on prepared splits. *seen*: the rule for items of the history.",
        "items",
        {
            **{key: f"{{{key}}}" for key in ("data", "model", "strategy", "seed", "seen")},
            **{name.replace("_at_", "@"): f"{{{name}:.4f}}" for name in DEEP_FIGURES},
            "best step": "{best_step:,}",
        },
    ),
    (
        "### Their differences",
        "Paired user by user, seen items dropped, with 95% intervals over resampled users, and over seeds where a "
        "difference has several.",
        "items paired",
        {"data": "{data}", "difference": "{difference}", "seeds": "{seed}"}
        | {
            name.replace("_at_", "@"): f"{{{name}[difference]:+.4f}} ({{{name}[low]:+.4f}} to {{{name}[high]:+.4f}})"
            for name in DEEP_FIGURES
        },
    ),
    (
        "### Rows of the campaign",
        "The same arms as `benchmarks/campaigns/5-items.yaml` lists them: means over the seeds, with the lowest and "
        "highest in brackets. *best step*: of each seed.",
        "items of a campaign",
        {
            **{key: f"{{{key}}}" for key in ("data", "arm", "seeds", "seen")},
            **{name.replace("_at_", "@"): f"{{{name}}}" for name in DEEP_FIGURES},
            "best step": "{best_step}",
        },
    ),
    (
        "### Differences of the campaign's rows",
        "Paired user by user and seed by seed, with 95% intervals over resampled users and seeds; with one seed the "
        "interval covers users alone.",
        "items paired of a campaign",
        {"data": "{data}", "difference": "{difference}", "seeds": "{seed}", "seen": "{seen}"}
        | {
            name.replace("_at_", "@"): f"{{{name}[difference]:+.4f}} ({{{name}[low]:+.4f}} to {{{name}[high]:+.4f}})"
            for name in DEEP_FIGURES
        },
    ),
    (
        "## Predicted actions",
        "Test exposures of the demo, means over five labels and the label of clicks, with 95% intervals over resampled "
        "users ([actions.md](actions.md#ranking-exposures)). Preset ranking and the network, strategy and seed of the "
        "row, with `train.max_windows=20000` where the row says no other number; *codes alone*: without "
        "`backbone.item_rows`; *means*: the regression on item and user means.",
        "exposures",
        {
            **{key: f"{{{key}}}" for key in ("data", "model", "strategy", "seed")},
            "AUC": "{auc:.4f} ({auc_low:.4f} to {auc_high:.4f})",
            "GAUC": "{gauc:.4f}",
            "means, AUC": "{means_auc:.4f}",
            "clicks, AUC": "{auc_click_1:.4f} ({auc_click_1_low:.4f} to {auc_click_1_high:.4f})",
            "clicks, GAUC": "{gauc_click_1:.4f} ({gauc_click_1_low:.4f} to {gauc_click_1_high:.4f})",
            "means, clicks, AUC": "{means_auc_click_1:.4f}",
            "log loss": "{log_loss:.4f}",
            "best step": "{best_step:,}",
        },
    ),
    (
        "### Differences of predicted actions",
        "Paired user by user, with 95% intervals over resampled users, and over seeds where a side has several.",
        "exposures paired",
        {
            "data": "{data}",
            "difference": "{difference_of}",
            "seeds": "{seeds}",
            "figure": "{metric}",
            "value": "{difference:+.4f} ({low:+.4f} to {high:+.4f})",
            "verdict": "{verdict}",
        },
    ),
    *SPEED,
    (
        "## Quantizers",
        "[quantizers.md](quantizers.md) explains the columns.",
        "quantizer",
        {
            "data": "{data}",
            "method": "{row}",
            "colliding": "{collision_rate:.1%}",
            "largest group": "{largest_group}",
            "codes used": "{used_codes}",
            "perplexity": "{perplexity}",
            "error": "{relative_reconstruction_error:.3f}",
            "neighbours": "{neighbour_agreement}",
            "categories": "{category_agreement}",
            "CPU s": "{cpu_seconds:.0f}",
        },
    ),
    (
        "## Encoders",
        "The architectures have their published sizes and random weights.",
        "encoder",
        {"model": "{row}", "items/s": "{items_per_second:,.0f}", "of peak": "{share_of_peak:.1%}"},
    ),
    (
        "## Before and after the code was moved",
        "`benchmarks/compare_trees.py` compares the tree at commit ab439d4 with a later one. The first table compares "
        "the weights and the loss curve of 300 deterministic steps (skipgr: 355). old again: the old tree's losses "
        "against those of a second run of the old tree.",
        "trees identity",
        {
            "case": "{case}",
            "commit": "{commit}",
            "bytes": "{verdict}",
            "losses apart": "{losses_apart:.0e}",
            "old again": "{old_again}",
        },
    ),
    (
        "### What a step launches",
        "Counts over 80 steps of training, of kernels over 30 of these steps; old -> new. waits: how often the main "
        "thread waits for the GPU; it reads the losses every 20 steps.",
        "trees counts",
        {
            "case": "{case}",
            "commit": "{commit}",
            "recordings": "{old[recordings]} -> {new[recordings]}",
            "recompiled": "{old[recompiled]} -> {new[recompiled]}",
            "waits": "{old[waits]} -> {new[waits]}",
            "kernels": "{old[kernels]:,} -> {new[kernels]:,}",
        },
    ),
    (
        "### Speed",
        "Processes of the old and the new tree run by turns, alone on the GPU. The table has the median of each tree, "
        "and the ratio of the medians.",
        "trees speed",
        {
            "case": "{case}",
            "commit": "{commit}",
            "old, a second": "{old_rate:,.0f}",
            "new, a second": "{new_rate:,.0f}",
            "ratio": "{ratio:.3f}",
            "all readings, old; new": "{span}",
            "GiB": "{old_gib} -> {new_gib}",
        },
    ),
]
