"""Make the tables of the networks over items: figures by both rules for seen items, and paired differences.

An arm comes from the campaign of benchmarks/campaigns/5-items.yaml, whose groups have a network each. docs/actions.md
shows an arm without a result there by its rows of docs/results/raw.jsonl, unless these are superseded.

Shape legend: S seeds, U test users, M metrics.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from benchmarks.campaign_rows import Results
from benchmarks.measured import SAMPLES, Measured, Row
from benchmarks.results_tables import DEEP_FIGURES
from pipeline.metrics import gains
from pipeline.results.arms import protocol_of
from pipeline.results.bootstrap import interval
from pipeline.results.compare import two_level
from pipeline.results.ranks import Ranks
from pipeline.results.runs import Run, read_run

GROUP = "GR and SASRec, one recipe"
DATA = {
    "amazon-beauty": "Amazon Beauty",
    "amazon-sports": "Amazon Sports",
    "movielens-latest-small": "MovieLens latest-small",
}
NETWORKS = ("sasrec", "gr", "gr-large")
STRATEGIES = ("full", "skipgr")
SHORT = ("recall_at_10", "recall_at_200", "ndcg_at_10")  # of the differences in docs/actions.md
RULES = ("dropped", "included")  # for seen items
# (network, strategy) -> the one that it is compared with
PAIRS = {
    ("gr", "full"): ("sasrec", "full"),
    ("gr-large", "full"): ("gr", "full"),
    **{(network, "skipgr"): (network, "full") for network in NETWORKS},
}
Pair = tuple[Row, dict[int, tuple[Run, Run]]]  # what a difference is called, and the runs of both sides by seed
BEGIN = "<!-- made by python -m benchmarks.results: {} -->\n"
END = "<!-- end -->"


def network_of(one: Measured) -> str:
    """Return the name of the arm's network."""
    return one.group.removeprefix(f"{GROUP}: ")


def listed(arms: Iterable[Measured]) -> list[Measured]:
    """Return the arms of these tables in their order: data, network, strategy. Their rows are in the order of seeds."""
    of_seeds = [replace(one, rows=sorted(one.rows, key=lambda row: row["seed"])) for one in arms]
    found = {(one.data, network_of(one), one.arm): one for one in of_seeds}
    names = [(data, network, strategy) for data in DATA for network in NETWORKS for strategy in STRATEGIES]
    return [found[name] for name in names if name in found]


def figure_rows(arms: Iterable[Measured]) -> list[Row]:
    """Return two rows of docs/results.md for each arm, one for each rule for seen items; one where it has no run."""
    rows: list[Row] = []
    for one in listed(arms):
        common = {"kind": "items of a campaign", "data": one.data, "arm": f"{network_of(one)}, {one.arm}"}
        if not one.rows:
            blank: Row = dict.fromkeys((*DEEP_FIGURES, "seen", "best_step"))
            rows.append({**common, **blank, "seeds": "missing"})
        for rule in RULES if one.rows else ():
            figures = {name: _spread(one, f"seen_{rule}_{name}") for name in DEEP_FIGURES}
            steps = " / ".join(f"{row['best_step']:,}" for row in one.rows)
            rows.append({**common, **figures, "seeds": _seeds(one), "seen": rule, "best_step": steps, **_origin([one])})
    return rows


def paired_rows(arms: Iterable[Measured], results: Results) -> list[Row]:
    """Return a row for each difference of two arms and each rule, over the seeds that both have ranks of.

    Two arms that were tested in another way are not compared. The differences of one dataset that have the same seeds
    and were tested alike are resampled together, with the same users for all of them.
    """
    known = {(one.data, network_of(one), one.arm): one for one in listed(arms)}
    read = cache(lambda key: read_run(str(results.ranks(key))))
    rows: list[Row] = []
    for data in DATA:
        pairs: list[Pair] = []
        for names, against in PAIRS.items():
            both = [known[data, *side] for side in (against, names) if (data, *side) in known]
            runs = _common_runs(both, results, read) if len(both) == 2 else {}
            if len({protocol_of(run) for pair in runs.values() for run in pair}) == 1:  # more: tested in other ways
                pairs.append(({"data": data, "difference": _words(names, against), **_origin(both)}, runs))
        groups: dict[tuple[object, ...], list[Pair]] = {}
        for one in pairs:
            (protocol,) = {protocol_of(run) for pair in one[1].values() for run in pair}
            groups.setdefault((protocol, *one[1]), []).append(one)
        found = [row for alike in groups.values() for row in _differences_of(alike)]
        rows += [row for about, _ in pairs for row in found if row["difference"] == about["difference"]]
    return rows


def _common_runs(sides: Sequence[Measured], results: Results, read: Callable[[str], Run]) -> dict[int, tuple[Run, Run]]:
    """Return the runs of both sides for each seed that both have ranks of, by ascending seed."""
    keys = [{row["seed"]: row["key"] for row in one.rows if results.ranks(row["key"]).exists()} for one in sides]
    return {seed: (read(keys[0][seed]), read(keys[1][seed])) for seed in sorted(keys[0].keys() & keys[1].keys())}


def _differences_of(pairs: Sequence[Pair]) -> list[Row]:
    """Return two rows for each pair of arms, which have runs of the same seeds: its difference by each rule.

    A difference is the second side minus the first one, with its 95% interval over users and seeds.
    """
    seeds = [*pairs[0][1]]
    columns = [(about, runs, rule) for about, runs in pairs for rule in RULES]
    # The columns of both sides are the figures of the first pair by each rule, then those of the next pair.
    sides_SUM = [
        np.stack([np.hstack([_gains(runs[seed][side], rule) for _, runs, rule in columns]) for seed in seeds])
        for side in (0, 1)
    ]
    _, change_RM = two_level(*sides_SUM, paired=True, samples=SAMPLES, seed=0)
    low_M, high_M = interval(change_RM)
    means_M = sides_SUM[1].mean((0, 1)) - sides_SUM[0].mean((0, 1))
    common = {
        "kind": "items paired of a campaign",
        "seed": ", ".join(map(str, seeds)),
        "command": f"two_level of pipeline/results/compare.py, {SAMPLES:,} resamples, on docs/results/ranks",
    }
    rows = []
    for number, (about, _, rule) in enumerate(columns):
        own = enumerate(DEEP_FIGURES, number * len(DEEP_FIGURES))
        figures = {
            name: {"difference": float(means_M[m]), "low": float(low_M[m]), "high": float(high_M[m])} for m, name in own
        }
        rows.append({**about, **common, "seen": rule, **figures})
    return rows


def _gains(run: Run, rule: str) -> np.ndarray:
    """Return each user's gains of `DEEP_FIGURES` by one rule for seen items, float64 [U, M]."""
    assert isinstance(run.ranks, Ranks)
    column = "rank" if run.ranks.origin.filter_seen == (rule == "dropped") else "other_rank"
    ranks_U = run.ranks.users[column].to_numpy()
    return np.stack([gains(name, ranks_U) for name in DEEP_FIGURES], axis=1)


def _words(names: tuple[str, str], against: tuple[str, str]) -> str:
    """Return a difference as raw.jsonl names it, such as `gr - sasrec, full` and `skipgr - full, gr`."""
    if names[0] == against[0]:
        return f"{names[1]} - {against[1]}, {names[0]}"
    return f"{names[0]} - {against[0]}, {names[1]}"


def _seeds(one: Measured) -> str:
    """Return the seeds that were run, and of how many a campaign wants if more."""
    seeds = ", ".join(str(row["seed"]) for row in one.rows)
    return f"{seeds} ({one.seeds})" if one.wanted > len(one.rows) else seeds


def _spread(one: Measured, key: str) -> str:
    """Return the mean over the seeds, with the lowest and highest in brackets if there are several."""
    mean = one.mean(key)
    if mean is None:
        return "missing"
    values = [row[key] for row in one.rows]
    return f"{mean:.4f}" + (f" ({min(values):.4f} to {max(values):.4f})" if len(values) > 1 else "")


def _origin(arms: Iterable[Measured]) -> Row:
    """Return where the rows of these arms come from, each word once."""
    rows = [row for one in arms for row in one.rows]
    return {key: ", ".join(sorted({row[key] for row in rows})) for key in ("hardware", "commit", "command")}


# ---------------------------------------------------------------------------------------------------- docs/actions.md


def actions_page(text: str, arms: Iterable[Measured], paired: Sequence[Row], raw: Sequence[Row]) -> str:
    """Return docs/actions.md with both tables made anew between their marks.

    Args:
        text: the page as it is.
        arms: those of the campaigns.
        paired: what `paired_rows` returned.
        raw: rows of raw.jsonl, which stand for what no campaign has.

    Raises:
        ValueError: the page lacks a mark.
    """
    shown = [one if one.rows else _of_raw(one, raw) for one in listed(arms)]
    for name, lines in (("figures", _figures(shown)), ("differences", _differences(paired, raw))):
        begin = BEGIN.format(name)
        before, _, rest = text.partition(begin)
        _, mark, after = rest.partition(END)
        if not mark:
            raise ValueError(f"the page lacks {begin.strip()} or {END}")
        text = f"{before}{begin}\n" + "\n".join(lines) + f"\n\n{mark}{after}"
    return text


def _of_raw(one: Measured, raw: Sequence[Row]) -> Measured:
    """Return the arm by its rows of raw.jsonl, a row for each seed with the figures of both rules."""
    by_seed: dict[str, Row] = {}
    for row in raw:
        same = (row.get("kind"), row.get("data"), row.get("model"), row.get("strategy"))
        if same == ("items", one.data, network_of(one), one.arm) and row["seen"] and not row.get("superseded"):
            found = by_seed.setdefault(row["seed"], {"seed": int(row["seed"])})
            found |= {f"seen_{row['seen']}_{name}": row[name] for name in DEEP_FIGURES}
    return Measured(group=one.group, arm=one.arm, data=one.data, rows=[*by_seed.values()])


def _figures(arms: Iterable[Measured]) -> Iterable[str]:
    """Yield the table of figures: by seen items dropped with the spread over seeds, then the mean by the other rule."""
    yield f"| data | network, strategy | seeds | {' | '.join(name.replace('_at_', '@') for name in DEEP_FIGURES)} |"
    yield "|---|---|---|" + "---|" * len(DEEP_FIGURES)
    for one in arms:
        cells = ["missing"] * len(DEEP_FIGURES)
        if one.rows:
            means = [one.mean(f"seen_included_{name}") for name in DEEP_FIGURES]
            included = ["missing" if mean is None else f"{mean:.4f}" for mean in means]
            pairs = zip(DEEP_FIGURES, included, strict=True)
            cells = [f"{_spread(one, f'seen_dropped_{name}')} / {other}" for name, other in pairs]
        seeds = _seeds(one) if one.rows else "missing"
        yield f"| {DATA[one.data]} | {network_of(one)}, {one.arm} | {seeds} | {' | '.join(cells)} |"


def _differences(paired: Sequence[Row], raw: Sequence[Row]) -> Iterable[str]:
    """Yield the table of differences with seen items dropped; one that has no ranks is left out."""
    yield f"| data | difference | seeds | {' | '.join(name.replace('_at_', '@') for name in SHORT)} |"
    yield "|---|---|---|" + "---|" * len(SHORT)
    older = [row for row in raw if row.get("kind") == "items paired" and not row.get("superseded")]
    newer = [row for row in paired if row["seen"] == "dropped"]
    found = {(row["data"], row["difference"]): row for row in [*older, *newer]}
    for data, title in DATA.items():
        for names, against in PAIRS.items():
            words = _words(names, against)
            if row := found.get((data, words)):
                cells = ["{difference:+.4f} ({low:+.4f} to {high:+.4f})".format(**row[name]) for name in SHORT]
                yield f"| {title} | {words} | {row['seed']} | {' | '.join(cells)} |"
