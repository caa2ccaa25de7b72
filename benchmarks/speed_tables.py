"""The tables of docs/results.md on speed: training, pruning and skipping, several GPUs, decoding.

results_tables.py says what a table is, and puts these between its own.
"""

SPEED: list[tuple[str, str, str, dict[str, str]]] = [
    (
        "### Training speed of GR",
        "Histories of up to 200 items with lengths like MovieLens-1M's, sampled softmax of 128, bfloat16, AdamW. "
        "*ours*: the backbone gr, packed; *compiled*, *eager*: the same network over padded histories, by torch alone "
        "([actions.md](actions.md#training-speed) says how far these rows go).",
        "gr speed",
        {
            "network": "{shape}",
            "windows of a step": "{size:,}",
            "row": "{arm}",
            "items/s": "{items_per_second:,.0f} ({low:,.0f} to {high:,.0f})",
            "GiB": "{peak_memory_gib:.2f}",
            "loss": "{first_loss:.2f} -> {last_loss:.2f}",
        },
    ),
    (
        "## Training speed",
        "The windows are those of GRID's sampler (snap-research/GRID; mean history 8.5 items); the network has the "
        "shape of TIGER (Rajput et al. 2023) with separators. GRID's own code, measured elsewhere on the same kind of "
        "GPU and not re-runnable here, trains 6.7 k to 8.2 k windows/s at 417 a step and 11.8 k at 4,096. fed: each "
        "batch is made while the step before runs.",
        "training speed",
        {
            "row": "{row}",
            "windows/s": "{windows_per_second:,.0f}",
            "M tokens/s": "{mtokens_per_second:.2f}",
            "TFLOP/s": "{tflops:.0f}",
            "of peak": "{share_of_peak:.1%}",
            "GiB": "{peak_memory_gib:.2f}",
        },
    ),
    (
        "### Beside stock parts",
        "The same windows, alternately in one process, without a profiler: medians, with the lowest and the highest of "
        "the repeats. All rows have TIGER's shape, bfloat16, dropout, Adam and `torch.compile`; `benchmarks/stock.py` "
        "says how they were built. An arm's lowest rate is its first repeat where it compiles again for new shapes, as "
        "FlexAttention does.",
        "stock speed",
        {
            "a step": "{size:,}",
            "row": "{row}",
            "windows/s": "{windows_per_second:,.0f} ({low:,.0f} to {high:,.0f})",
            "of peak": "{share_of_peak:.1%}",
            "GiB": "{peak_memory_gib:.2f}",
            "loss": "{first_loss:.2f} -> {last_loss:.2f}",
        },
    ),
    (
        "### Changes of a step",
        "The code before and after a change, by turns on one machine, without a profiler. Rates are the mean of two "
        "processes, or the median of repeats in one process; in brackets the lowest and the highest.",
        "step change",
        {
            "change": "{change}",
            "a step": "{step}",
            "windows/s before": "{before:,.0f} ({before_low:,} and {before_high:,})",
            "after": "{after:,.0f} ({after_low:,} and {after_high:,})",
            "gain": "{gain:.1%}",
            "GiB": "{gib_before:.2f} -> {gib_after:.2f}",
        },
    ),
    (
        "### Where a step's time goes",
        "Milliseconds of kernels, by kind. Some run side by side, so that a row adds up to more than the time in which "
        "the GPU is busy. compiled: norms, residuals, dropout and casts, by torch.compile.",
        "step profile",
        {
            "a step": "{step}",
            "attention, backward": "{attention_backward:.2f}",
            "forward": "{attention_forward:.2f}",
            "feed-forward's kernel": "{feed_forward:.2f}",
            "other products": "{products:.2f}",
            "compiled": "{compiled:.2f}",
            "optimizer and average": "{optimizer:.2f}",
            "rest": "{rest:.2f}",
            "busy": "{busy:.2f}",
            "kernels": "{kernels}",
            "commit": "{commit}",
        },
    ),
    (
        "### Attention by class of lengths",
        "Milliseconds of the self-attention of one encoder layer, each class of lengths (tokens) launched alone; and "
        "of backward without a position bias and its gradient, and without dropout.",
        "attention time",
        {
            "tokens": "{lengths}",
            "forward": "{forward:.3f}",
            "backward": "{backward:.3f}",
            "no bias": "{without_bias}",
            "no dropout": "{without_dropout}",
        },
    ),
    (
        "### The order of launches",
        "Milliseconds of the same attention with all classes side by side, when the launch of the shortest comes first "
        "(before) or that of the longest (after).",
        "launch order",
        {
            "windows": "{size:,}",
            "forward": "{forward_before:.3f} -> {forward_after:.3f}",
            "backward": "{backward_before:.3f} -> {backward_after:.3f}",
        },
    ),
    (
        "### What pruning saves",
        "Time of a step of 4,096 windows; `benchmarks/rastp.py` explains the rows. saved: against packed full. limit: "
        "what the matrix products alone would save.",
        "rastp speed",
        {
            "windows": "{windows}",
            "row": "{row}",
            "ms": "{ms:.1f}",
            "saved": "{saved}",
            "limit": "{limit}",
            "against padded full": "{against_padded}",
            "GiB": "{peak_memory_gib:.2f}",
        },
    ),
    (
        "### What skipping saves",
        "Time of an epoch over Beauty; `benchmarks/skipgr.py` explains the columns.",
        "skipgr speed",
        {
            "row": "{row}",
            "sequences": "{sequences}",
            "tokens": "{tokens}",
            "FLOPs": "{flops}",
            "seconds": "{seconds}",
            "speed-up": "{speedup}",
            "bookkeeping": "{bookkeeping}",
        },
    ),
    (
        "### One token per item",
        "IntRR's Table 2, measured here: 512 samples a step, one target each; `benchmarks/intrr.py` explains the rows.",
        "intrr speed",
        {
            "histories": "{histories}",
            "row": "{row}",
            "samples/s": "{samples_per_second:,.0f}",
            "gain": "{gain}",
            "GiB of a step": "{step_gib:.3f}",
            "of full": "{of_full}",
        },
    ),
    (
        "### More GPUs: a step of 17,600 positions",
        "`preset beauty-fast`: training with one process per GPU, gradients exchanged after the backward pass.",
        "scaling",
        {
            "GPUs": "{gpus}",
            "positions a step": "{batch_tokens:,}",
            "windows/s": "{windows_per_second:,.0f}",
        },
    ),
    (
        "### More GPUs",
        "One process per GPU, each row's one GPU in the same run. Training: preset `beauty-fast`, gradients exchanged "
        "while the backward pass runs. Evaluation: Beauty's test users. Encoding: Beauty's lengths by an encoder of "
        "Flan-T5-XL's shape with random weights. *waits*: share of the time in which an exchange runs on a GPU and "
        "no other kernel does, the largest of all GPUs, from a profile in processes of its own.",
        "gpus",
        {
            "what": "{what}",
            "GPUs": "{gpus}",
            "positions a GPU": "{positions_a_gpu:,}",
            "a second": "{rate:,.0f} {unit}",
            "against one GPU": "{speedup:.2f} times",
            "waits": "{waiting:.1%}",
        },
    ),
    (
        "## Decoding speed",
        "The network has the shape of TIGER, the histories are Beauty's. GRID's own code, unconstrained, decodes 1.3 k "
        "users/s at beam 50 and batch 256, and takes 24 ms at beam 10 and batch 8.",
        "decoding",
        {
            "batch": "{batch}",
            "beam": "{beam}",
            "search": "{decoding}",
            "precision": "{precision}",
            "ms a batch": "{ms:.2f}",
            "users/s": "{users_per_second:,.0f}",
        },
    ),
    (
        "### Recommendations for all users",
        "Wall time of the whole command, the start of Python included. first: the first run of a beam width on a "
        "machine, which compiles its kernels.",
        "batch recommendations",
        {
            "users": "{users:,}",
            "beam": "{beam}",
            "seen items": "{seen}",
            "run": "{run}",
            "seconds": "{seconds:.1f}",
        },
    ),
    (
        "### One token per item, decoding",
        "IntRR's Table 3, measured here: ms a batch, by beam width. full reads 32 items (SAC) or 8 (SSL), intrr 32.",
        "intrr latency",
        {
            "network": "{network}",
            "batch": "{batch}",
            "row": "{row}",
            **{f"{beam}": f"{{beam_{beam}:.2f}}" for beam in (10, 15, 20, 25, 30, 50)},
        },
    ),
]
