"""The figures of the three papers, typed from their tables, and where ours of the same arms lie."""

from dataclasses import dataclass

BEST = "the best recipe"
EARLIER = "an earlier recipe"
SETTING = "the paper's setting"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A `Published` row is one of a paper's table, with the deviation over seeds where the paper gives it."""

    arm: str
    recall_5: str
    recall_10: str
    ndcg_10: str


@dataclass(frozen=True, kw_only=True)
class Ours:
    """`Ours` says where our rows of some arms lie.

    raw: in raw.jsonl, and not in a campaign. counts: the arms that the sentence tells of.
    """

    where: str
    group: str
    arms: tuple[str, ...]
    raw: bool = False
    counts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A `Cost` is what a paper says that its method saves, beside a row of raw.jsonl that measured the same here.

    row: kind and name of the row, and of `intrr speed` the histories. shown: the format of what it says.
    """

    claim: str
    published: str
    row: tuple[str, ...]
    shown: str


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A `Paper` holds its figures by dataset, and where ours lie."""

    name: str
    title: str
    source: str
    page: str
    table: str
    published: dict[str, list[Published]]
    ours: dict[str, list[Ours]]
    costs: list[Cost]
    notes: tuple[str, ...] = ()


def _published(*rows: tuple[str, str, str, str]) -> list[Published]:
    return [Published(arm=arm, recall_5=r5, recall_10=r10, ndcg_10=n10) for arm, r5, r10, n10 in rows]


PAPERS = [
    Paper(
        name="skipgr",
        title="SkipGR",
        source='"SkipGR", submission 3069 to ICLR 2026, withdrawn',
        page="../skipgr.md",
        table="Tables 1 and 4",
        published={
            "amazon-beauty": _published(
                ("GRID, the baseline", "0.0429", "0.0639", "0.0353"),
                ("+ SkipGR", "0.0441", "0.0639", "0.0362"),
                ("+ token skip alone", "0.0431", "0.0635", "0.0358"),
                ("+ sequence skip alone", "0.0421", "0.0630", "0.0352"),
            ),
            "amazon-sports": _published(
                ("GRID, the baseline", "0.0239", "0.0363", "0.0194"), ("+ SkipGR", "0.0245", "0.0371", "0.0205")
            ),
        },
        ours={
            "amazon-beauty": [
                Ours(
                    where=SETTING,
                    group="SkipGR's setting",
                    arms=("full", "skipgr-paper", "skipgr-token", "skipgr-sequence"),
                    counts=("skipgr-paper",),
                ),
                Ours(
                    where=BEST,
                    group="beauty-fast",
                    arms=(
                        *("full", "skipgr", "skipgr, 28 epochs annealed", "skipgr, 30% of windows"),
                        *("random, 30% of windows", "InfoBatch, 30% of windows", "full, 12.75 M windows"),
                        *("skipgr, a tenth of each level", "skipgr, steps filled up", "rastp+skipgr", "intrr+skipgr"),
                    ),
                    counts=("skipgr", "skipgr, 28 epochs annealed"),
                ),
                Ours(
                    where=EARLIER,
                    group="beauty-fast, several runs on one GPU",
                    arms=("full", "skipgr"),
                    raw=True,
                    counts=("skipgr",),
                ),
                Ours(where="3.5 M windows", group="the same, 3.5 M windows", arms=("full", "skipgr"), raw=True),
            ],
            "amazon-sports": [
                Ours(
                    where=BEST,
                    group="beauty-fast, on Sports",
                    arms=("full", "skipgr", "rastp+skipgr", "intrr+skipgr"),
                    counts=("skipgr",),
                ),
                Ours(
                    where=EARLIER,
                    group="beauty-fast, on Sports",
                    arms=("full", "skipgr"),
                    raw=True,
                    counts=("skipgr",),
                ),
            ],
        },
        costs=[
            Cost(
                claim="a tenth of the tokens, r = 0.3 for sequences, against `full`",
                published="none here; 1.1 to 1.3 times as fast to the baseline's AUC on 10 B private tokens",
                row=("skipgr speed", "both, r 0.3"),
                shown="{speedup} an epoch, of {flops} of the arithmetic",
            ),
            Cost(
                claim="sequences alone, r = 0.3",
                published="none",
                row=("skipgr speed", "sequences, r 0.3"),
                shown="{speedup} an epoch, of {flops} of the arithmetic",
            ),
            Cost(
                claim="InfoBatch's rule, r = 0.5",
                published="none",
                row=("skipgr speed", "InfoBatch, r 0.5"),
                shown="{speedup} an epoch, of {flops} of the arithmetic",
            ),
        ],
        notes=(
            "The paper's row of all of SkipGR has other item vectors (Qwen2.5-VL) and another quantizer (SimVQ) than",
            "its baseline. Ours have residual k-means on MiniLM vectors on both sides.",
        ),
    ),
    Paper(
        name="rastp",
        title="RASTP",
        source='Zhan, Fu, Lv, Zhang, "RASTP: Representation-Aware Semantic Token Pruning", 2025',
        page="../rastp.md",
        table="Table 2",
        published={
            "amazon-beauty": _published(
                ("without RASTP", "0.0426 ± 0.0013", "0.0645 ± 0.0019", "0.0353 ± 0.0013"),
                ("with RASTP", "0.0441 ± 0.0010", "0.0656 ± 0.0011", "0.0358 ± 0.0010"),
            ),
            "amazon-sports": _published(
                ("without RASTP", "0.0196 ± 0.0007", "0.0289 ± 0.0008", "0.0158 ± 0.0005"),
                ("with RASTP", "0.0187 ± 0.0007", "0.0278 ± 0.0014", "0.0153 ± 0.0008"),
            ),
        },
        ours={
            "amazon-beauty": [
                Ours(
                    where=SETTING,
                    group="RASTP's setting, 4 M windows",
                    arms=(
                        *("full", "rastp-paper", "rastp-paper, l2", "rastp-paper, average pooling"),
                        *("rastp-paper, max pooling", "rastp-paper, after block 1", "rastp-paper, after block 3"),
                    ),
                    counts=("rastp-paper",),
                ),
                Ours(
                    where=f"{SETTING}, unconstrained beam of 10",
                    group="RASTP's setting, 4 M windows, unconstrained beam of 10",
                    arms=("full", "rastp-released"),
                    counts=("rastp-released",),
                ),
                Ours(
                    where=BEST,
                    group="beauty-fast",
                    arms=(
                        "full",
                        "rastp",
                        "rastp, last item kept",
                        "rastp, 1/3 after block 1",
                        "rastp, 1/2 after block 1",
                        "rastp-paper, 40 tokens of a history",
                        "rastp+skipgr",
                    ),
                    counts=("rastp",),
                ),
                Ours(
                    where=EARLIER,
                    group="beauty-fast, several runs on one GPU",
                    arms=("full", "rastp"),
                    raw=True,
                    counts=("rastp",),
                ),
                Ours(
                    where="3.5 M windows",
                    group="the same, 3.5 M windows",
                    arms=("full", "rastp", "rastp-released"),
                    raw=True,
                ),
            ],
            "amazon-sports": [
                Ours(
                    where=BEST,
                    group="beauty-fast, on Sports",
                    arms=("full", "rastp", "rastp+skipgr"),
                    counts=("rastp",),
                ),
                Ours(
                    where=EARLIER,
                    group="beauty-fast, on Sports",
                    arms=("full", "rastp"),
                    raw=True,
                    counts=("rastp",),
                ),
            ],
        },
        costs=[
            Cost(
                claim="a third kept after block 2",
                published="26.7% less training time, on padded batches (A100)",
                row=("rastp speed", "packed rastp 1/3 after 2"),
                shown="{saved} of a packed step, where its products alone allow {limit}",
            ),
            Cost(
                claim="a third kept after block 1",
                published="38.2% less training time, on padded batches (A100)",
                row=("rastp speed", "packed rastp 1/3 after 1"),
                shown="{saved} of a packed step, where its products alone allow {limit}",
            ),
            Cost(
                claim="no padding, nothing pruned",
                published="none",
                row=("rastp speed", "packed full"),
                shown="{against_padded} of a padded step",
            ),
        ],
        notes=(
            "The published rule keeps 40 of 120 positions, which is 70% of the real tokens of its training windows:",
            "the arm `rastp-paper`. The arm `rastp-released` counts separators too: 50 of 150. The arm `rastp` keeps a",
            "third of the real tokens, a claim of ours. In the paper's setting the budget is 4 M windows, a fifth of",
            "what preset `tiger` has.",
        ),
    ),
    Paper(
        name="intrr",
        title="IntRR",
        source='Wang, Xu, Deng, Yan, Liu, Chu, "IntRR: A Framework for Integrating SID Redistribution and Length '
        'Reduction", 2026',
        page="../intrr.md",
        table="Tables 1 and 4, residual k-means",
        published={
            "amazon-beauty": _published(
                ("Transformer", "0.0374", "0.0553", "0.0311"),
                ("Transformer + IntRR", "0.0462", "0.0640", "0.0384"),
                ("HSTU", "0.0302", "0.0469", "0.0248"),
                ("HSTU + IntRR", "0.0423", "0.0612", "0.0353"),
                ("Transformer + IntRR, without redistribution", "0.0377", "0.0542", "0.0312"),
                ("Transformer + IntRR, without alignment", "0.0414", "0.0587", "0.0341"),
            ),
            "amazon-sports": _published(
                ("Transformer", "0.0164", "0.0256", "0.0135"),
                ("Transformer + IntRR", "0.0185", "0.0291", "0.0163"),
                ("HSTU", "0.0162", "0.0225", "0.0127"),
                ("HSTU + IntRR", "0.0162", "0.0252", "0.0139"),
            ),
        },
        ours={
            "amazon-beauty": [
                Ours(where=SETTING, group="IntRR's setting", arms=("full", "intrr-sac"), counts=("intrr-sac",)),
                Ours(where=f"{SETTING}, HSTU", group="IntRR's setting, HSTU", arms=("full", "intrr-sac")),
                Ours(
                    where=BEST,
                    group="beauty-fast",
                    arms=(
                        *("full", "intrr", "intrr, content", "intrr, no redistribution"),
                        *("intrr, hard codes, quantizer's codebooks, occurrences", "intrr, ties by state x vector"),
                        "intrr+skipgr",
                    ),
                    counts=("intrr",),
                ),
                Ours(
                    where=f"{BEST}, decoder",
                    group="beauty-fast, backbone decoder",
                    arms=("full", "intrr"),
                    counts=("intrr",),
                ),
                Ours(where=EARLIER, group="beauty-fast", arms=("full", "intrr"), raw=True, counts=("intrr",)),
                Ours(
                    where=f"{EARLIER}, decoder",
                    group="beauty-fast, backbone decoder",
                    arms=("full", "intrr"),
                    raw=True,
                ),
            ],
            "amazon-sports": [
                Ours(
                    where=BEST,
                    group="beauty-fast, on Sports",
                    arms=("full", "intrr", "intrr+skipgr"),
                    counts=("intrr",),
                ),
                Ours(
                    where=EARLIER,
                    group="beauty-fast, on Sports",
                    arms=("full", "intrr"),
                    raw=True,
                    counts=("intrr",),
                ),
            ],
        },
        costs=[
            Cost(
                claim="samples a second, Transformer, 30 items",
                published="1.75 times (24,381.0 to 42,666.7; one L20)",
                row=("intrr speed", "decoder intrr", "30 items"),
                shown="{gain} ({samples_per_second:,} samples/s), memory of a step {of_full} of full's",
            ),
            Cost(
                claim="samples a second, HSTU, 30 items",
                published="1.36 times (34,133.3 to 46,545.5; one L20)",
                row=("intrr speed", "hstu intrr", "30 items"),
                shown="{gain} ({samples_per_second:,} samples/s), memory of a step {of_full} of full's",
            ),
            Cost(
                claim="samples a second, Transformer, Beauty's windows",
                published="none",
                row=("intrr speed", "decoder intrr", "Beauty"),
                shown="{gain} ({samples_per_second:,} samples/s), memory of a step {of_full} of full's",
            ),
        ],
    ),
]
