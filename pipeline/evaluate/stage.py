"""Stage evaluate makes test metrics with intervals from a trained generator and the held-out items.

The metrics come from reports/ranks.parquet, which `compare` reads too: two runs are compared user by user without
generating anything again. reports/metrics.json has the few that a table of experiments shows, reports/details.json all
others. Under torchrun the processes share the users.

Shape legend: U test users, K items of a ranking, R resamples.
"""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch

from pipeline.artifacts import (
    CLOCK,
    GENERATOR,
    INTERACTIONS,
    REPORTS,
    SPLITS,
    Splits,
    read_json,
    read_parquet,
    write_json,
)
from pipeline.decoding.ranking import Ranking, rank_targets
from pipeline.distributed import World, joined
from pipeline.errors import UserError
from pipeline.evaluate.beyond import beyond_hits, calibration
from pipeline.evaluate.breakdown import by_bins, write_csv
from pipeline.evaluate.config import EvaluateConfig
from pipeline.generator import Generator, load_generator
from pipeline.machine import make_repeatable, pick_device, share_of_threads
from pipeline.manifest import sealed, unsealed
from pipeline.metric_names import BASELINES, HEADLINES, MAIN_METRICS, METRICS, row_labels
from pipeline.metrics import gains, recall_at, summarise
from pipeline.printing import say, shown
from pipeline.progress import Progress
from pipeline.results.bootstrap import interval, resampled_means
from pipeline.results.ranks import (
    DETAILS_FILE,
    METRICS_FILE,
    RANKS_FILE,
    Ranks,
    check_fit,
    origin_of,
    ranks_frame,
    split_words,
)
from pipeline.strategies.registry import settings_types
from pipeline.views.counting import COUNTING, Baselines, Counting, baselines

# Files whose checksums details.json lists: those of this stage, and the one of train that they rest on
SEALED = (RANKS_FILE, METRICS_FILE, "by_history.csv", "by_popularity.csv", "frontier.csv", "timings.json")


class MachineView(Protocol):
    """`MachineView` declares the keys of `train:` that say how the machine is used."""

    @property
    def device(self) -> str: ...

    @property
    def deterministic(self) -> bool: ...

    @property
    def threads(self) -> int: ...


class EvaluateParams(Protocol):
    """`EvaluateParams` declares what this stage reads of params.yaml."""

    @property
    def seed(self) -> int: ...

    @property
    def evaluate(self) -> EvaluateConfig: ...

    @property
    def train(self) -> MachineView: ...


def run(
    params: EvaluateParams,
    *,
    splits: Path = SPLITS,
    generator: Path = GENERATOR,
    counting: Path = COUNTING,
    reports: Path = REPORTS,
    items: Path = INTERACTIONS / "items.parquet",
) -> dict[str, float]:
    """Rank every test user's item and write ranks.parquet, metrics.json, details.json and the two breakdowns.

    Returns:
        What metrics.json and details.json hold. Under torchrun only the first process goes on after ranking; the
        others return {}.

    Raises:
        UserError: an input is missing or damaged, the model was trained on other splits, or no user has a test item.
    """
    # 1. Read the inputs, and check that the model was trained on these splits.
    config = params.evaluate
    held_out = Splits.read(splits)
    timings = _timings(reports / "timings.json")
    device = pick_device(params.train.device)
    make_repeatable(device, params.train.deterministic)
    torch.set_num_threads(params.train.threads or share_of_threads())
    loaded = load_generator(generator, device)
    check_fit(loaded, generator, held_out, splits)
    pairs = Counting.read(counting)
    pairs.check_fit(counting, splits)
    # 2. Rank by counting, which says whether the items of the history leave the model's ranking too.
    counted = baselines(pairs, held_out, filter_seen=config.filter_seen is True)
    drop_seen = counted.drop_seen["cooccurrence"] if config.filter_seen == "auto" else config.filter_seen
    # 3. Rank the test items: every process its share of the users.
    with joined(device) as world:
        began = time.perf_counter()
        ranking = _rank(config, loaded, held_out, device, world, filter_seen=drop_seen)
        seconds = time.perf_counter() - began
    if not world.leads:
        return {}
    # 4. Put model and baselines side by side, one row per user.
    targets_U = held_out.items_N[ranking.positions_U]
    counts_I = pairs.counts_I
    users = _side_by_side(ranking, counted, held_out, counts_I)
    # 5. Compute the metrics from these rows and from what is shown, and write everything.
    over_items = loaded.model.config.over_items
    first_code_I = None if over_items else loaded.catalogue.codes_IL[:, 0].cpu().numpy()
    figures = {
        **evaluation_metrics(
            users, drop_seen, ranking.invalid_share, samples=config.bootstrap_samples, seed=params.seed
        ),
        **{f"{name}_seen_dropped": int(dropped) for name, dropped in counted.drop_seen.items()},
        "directed_backward_weight": counted.backward,
        **beyond_hits(ranking.top_UK, counts_I, targets_U, first_code_I, _categories(items)),
        **calibration(ranking.mass_U, ranking.ranks_U),
        **timings,
        "evaluate_seconds": seconds,
        "users_per_second": len(users) / seconds,
    }
    metrics = {name: figures[name] for name in HEADLINES if name in figures}
    details = {name: value for name, value in figures.items() if name not in metrics}
    origin = origin_of(
        generator,
        splits,
        loaded.config,
        sections=settings_types(),
        protocol=split_words(held_out.summary),
        beam=config.beam,
        decoding=config.decoding,
        filter_seen=drop_seen,
    )
    Ranks(users, origin).write(reports / RANKS_FILE)
    write_csv(reports / "by_history.csv", by_bins(users, "history_length"))
    write_csv(reports / "by_popularity.csv", by_bins(users, "target_popularity"))
    write_json(reports / METRICS_FILE, metrics)
    write_csv(reports / "frontier.csv", _point(metrics, loaded.config))
    write_json(reports / DETAILS_FILE, sealed(details, reports, SEALED))  # last: it lists the others
    say(table(figures, config, loaded.config["strategy"], over_items))
    if drop_seen:
        _say_repeats(held_out, ranking.positions_U)
    return {**metrics, **details}


def _say_repeats(splits: Splits, positions: np.ndarray) -> None:
    """Print how many of these targets no ranking without seen items holds, where there are any."""
    if lost := is_repeat(splits, positions).mean():
        say(
            f"{lost:.1%} of the test targets are repeats of an item of their history, and no ranking holds those: "
            "evaluate.filter_seen=false ranks them",
        )


def _side_by_side(ranking: Ranking, counted: Baselines, splits: Splits, counts_I: np.ndarray) -> pd.DataFrame:
    """Return the rows of ranks.parquet."""
    assert ranking.other is not None
    targets_U = splits.items_N[ranking.positions_U]
    return ranks_frame(
        user_id=ranking.users_U,
        item_id=targets_U,
        rank=ranking.ranks_U,
        bucket_rank=ranking.bucket_ranks_U,
        history_length=ranking.lengths_U,
        target_popularity=counts_I[targets_U],
        tie=splits.has_tie(ranking.positions_U),
        popularity_rank=counted.popularity_U,
        cooccurrence_rank=counted.cooccurrence_U,
        directed_rank=counted.directed_U,
        other_rank=ranking.other.ranks_U,
    )


def _point(metrics: dict[str, float], config: dict[str, Any]) -> pd.DataFrame:
    """Return the one row of frontier.csv, of which `dvc plots diff` draws one point per run."""
    model = f"{config['strategy']} {config['backbone']['name']}"
    return pd.DataFrame(
        [{"model": model, "train_seconds": metrics["train_seconds"], "recall_at_10": metrics["recall_at_10"]}]
    )


def _categories(items: Path) -> np.ndarray | None:
    """Return a number for each item's category, -1 for an item without; None where no item has one."""
    frame = read_parquet(items) if items.exists() else pd.DataFrame()
    if "categories" not in frame or frame["categories"].isna().all():
        return None
    codes_I: np.ndarray = frame["categories"].factorize()[0]
    return codes_I


def _timings(path: Path) -> dict[str, float]:
    """Return what training measured. Raises UserError where the file is missing, or not as train wrote it."""
    measured = unsealed(path, read_json(path, train_seconds=(int, float)), "train")
    timings = {name: value for name, value in measured.items() if name not in CLOCK}
    if wrong := [name for name, value in timings.items() if not isinstance(value, int | float)]:
        raise UserError(
            f"{path}: {shown(wrong[0])} is no number",
            "the file was damaged or edited",
            "run `dvc checkout`, or `dvc repro` to make it anew",
        )
    return timings


def is_repeat(splits: Splits, positions: np.ndarray) -> np.ndarray:
    """Tell at which of these flat indices stands an item that its history holds too, bool."""
    starts = np.asarray(splits.offsets)[np.searchsorted(splits.offsets, positions, side="right") - 1]
    lengths = np.minimum(positions - starts, splits.max_history)
    items = np.asarray(splits.items_N)
    repeats = np.zeros(len(positions), bool)
    for back in range(1, int(lengths.max(initial=0)) + 1):
        repeats |= (back <= lengths) & (items[positions - np.minimum(back, lengths)] == items[positions])
    return repeats


def evaluation_metrics(
    users: pd.DataFrame, drop_seen: bool, invalid_share: float, *, samples: int, seed: int
) -> dict[str, float]:
    """Return the metrics that follow from the ranks, by flat names.

    Names that begin with `noties_` are over the users whose target shares its timestamp with no earlier interaction;
    they are missing where no target has a tie. `seen_dropped_` and `seen_included_` are the model's by either rule for
    seen items, whichever rule the other names follow (`seen_dropped`: 1 where they follow the first).
    """
    ranks_U = users["rank"].to_numpy()
    metrics: dict[str, float] = {**summarise(ranks_U), "invalid_rate": invalid_share, "users": len(users)}
    # A column of gains per metric, resampled together: recall_at_10 -> recall_at_10_low, recall_at_10_high
    drawn = resampled_means(np.stack([gains(name, ranks_U) for name in MAIN_METRICS], axis=1), samples, seed)
    for name, low, high in zip(MAIN_METRICS, *interval(drawn), strict=True):
        metrics |= {f"{name}_low": round(float(low), 6), f"{name}_high": round(float(high), 6)}
    metrics |= {"seen_dropped": int(drop_seen), **_side_metrics(users, drop_seen, METRICS)}
    # The same without ties, where only the order of the raw file may say which item came last.
    apart = users[~users["tie"].to_numpy()]
    metrics |= {"tie_share": float(users["tie"].mean()), "noties_users": len(apart)}
    if len(apart) == len(users):
        return metrics
    without_ties = {**summarise(apart["rank"].to_numpy()), **_side_metrics(apart, drop_seen, MAIN_METRICS)}
    return metrics | {f"noties_{name}": value for name, value in without_ties.items()}


def _side_metrics(users: pd.DataFrame, drop_seen: bool, names: Sequence[str]) -> dict[str, float]:
    """Return the baselines' metrics, the model's by both rules, and its recall of the right codes."""
    figures = {"bucket_recall_at_10": recall_at(users["bucket_rank"].to_numpy(), 10)}
    rules = ("seen_dropped", "seen_included")
    columns = {name: f"{name}_rank" for name in BASELINES}
    columns |= dict(zip(rules if drop_seen else rules[::-1], ("rank", "other_rank"), strict=True))
    for name, column in columns.items():
        summary = summarise(users[column].to_numpy(), names)
        figures |= {f"{name}_{metric}": value for metric, value in summary.items()}
    return figures


def table(metrics: dict[str, float], config: EvaluateConfig, strategy: str, over_items: bool = False) -> str:
    """Return the printed table: the model by both rules for seen items and the baselines, with and without ties.

    Args:
        over_items: the model scores items themselves, all of them, and no Semantic IDs.
    """
    ties = metrics["noties_users"] < metrics["users"]
    parts = {"": f"all {metrics['users']:,} users"} | (
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
    exact = config.decoding == "exact" or over_items
    search = "every item scored" if exact else f"beam {config.beam}, {config.decoding}"
    by_counting = ", as counting does on validation" if config.filter_seen == "auto" else ""
    of_sids = f", {metrics['bucket_recall_at_10']:.4f} by bucket, {metrics['invalid_rate']:.2%} invalid SIDs"
    lines.append(
        f"{labels['']}{by_counting}: {search}; recall@10 in {low:.4f} to {high:.4f} (95%)"
        + ("" if over_items else of_sids)
    )
    lines.append(
        f"first ten: {metrics['coverage_at_10']:.1%} of the catalogue shown, {metrics['long_tail_share_at_10']:.1%} of "
        f"the long tail (targets: {metrics['long_tail_share_of_targets']:.1%}); the beam promises a recall@10 of "
        f"{metrics['expected_recall_at_10']:.4f}"
    )
    return "\n".join(lines)


def _rank(
    config: EvaluateConfig,
    generator: Generator,
    splits: Splits,
    device: torch.device,
    world: World,
    *,
    filter_seen: bool,
) -> Ranking:
    """Rank all test users by both rules, each in one of the processes; every process returns the whole ranking."""
    users_U, positions_U = splits.targets("test")
    if not len(users_U):
        raise UserError(
            "no user has a test item",
            "there is nothing to evaluate on",
            "choose an earlier split.test_from, or bring a log with longer histories",
        )
    # 1. Rank this process's users. 2 processes and users 3 5 8 9: rank 0 takes 3 8, rank 1 takes 5 9.
    users_of_process_U = users_U[world.share]
    with Progress("evaluate", len(users_of_process_U), "users") if world.leads else nullcontext() as progress:
        ranking = rank_targets(
            generator.model,
            generator.catalogue,
            splits,
            "test",
            beam=config.beam,
            decoding=config.decoding,
            filter_seen=filter_seen,
            both_rules=True,
            users=users_of_process_U,
            batch_users=config.batch_users,
            progress=progress,
            eval_skips=generator.eval_skips,
        )
    # 2. Gather the rows of all processes, in user order, and add up their counts.
    other = ranking.other and _gathered(ranking.other, users_U, positions_U, device, world)
    return replace(_gathered(ranking, users_U, positions_U, device, world), other=other)


def _gathered(
    share: Ranking, users_U: np.ndarray, positions_U: np.ndarray, device: torch.device, world: World
) -> Ranking:
    """Return the rows of all processes."""

    def rows(values_U: np.ndarray) -> np.ndarray:
        return world.gather(values_U, len(users_U), device)

    invalid, generated = world.sum(torch.tensor([share.invalid, share.generated], device=device)).tolist()
    return Ranking(
        users_U=users_U,
        positions_U=positions_U,
        lengths_U=rows(share.lengths_U),
        ranks_U=rows(share.ranks_U),
        bucket_ranks_U=rows(share.bucket_ranks_U),
        top_UK=rows(share.top_UK),
        mass_U=rows(share.mass_U),
        invalid=invalid,
        generated=generated,
    )
