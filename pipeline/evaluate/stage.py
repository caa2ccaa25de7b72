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
    write_json,
)
from pipeline.decoding.ranking import Ranking, rank_targets
from pipeline.distributed import World, joined
from pipeline.errors import UserError
from pipeline.evaluate.beyond import beyond_hits, calibration
from pipeline.evaluate.breakdown import by_bins, write_csv
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.sample import Evaluated
from pipeline.evaluate.table import table
from pipeline.generator import Generator, load_generator, load_retriever
from pipeline.item_table import ItemTable
from pipeline.machine import make_repeatable, pick_device, share_of_threads
from pipeline.manifest import sealed, unsealed
from pipeline.metric_names import BASELINES, DENSE_REPORT, DENSE_TRAINING, HEADLINES, MAIN_METRICS, METRICS
from pipeline.metrics import gains, recall_at, summarise
from pipeline.printing import say, shown
from pipeline.progress import Progress
from pipeline.results.bootstrap import interval, resampled_means
from pipeline.results.ranks import (
    DETAILS_FILE,
    METRICS_FILE,
    RANKS_FILE,
    Origin,
    Ranks,
    check_fit,
    origin_of,
    ranks_frame,
    split_words,
)
from pipeline.strategies.registry import settings_types
from pipeline.views.counting import COUNTING, Baselines, Counting, baselines

# Files whose checksums details.json lists: those of this stage, and that of train on which they rest; with a retriever
# also that of dense
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
    dense: Path | None = None,
) -> dict[str, float]:
    """Rank every test user's item and write ranks.parquet, metrics.json, details.json and the two breakdowns.

    Args:
        dense: the folder of the dense retriever; None: `dense` beside the generator. It may be missing.

    Returns:
        What metrics.json and details.json hold. Under torchrun only the first process goes on after ranking; the
        others return {}.

    Raises:
        UserError: an input is missing or damaged, the model was trained on other splits, or no user has a test item.
    """
    # 1. Read the inputs, and check that the model was trained on these splits.
    config = params.evaluate
    whole = Splits.read(splits)
    evaluated = Evaluated.of(whole, config.users)
    held_out = evaluated.splits
    timings = _timings(reports / "timings.json")
    device = pick_device(params.train.device)
    make_repeatable(device, params.train.deterministic)
    torch.set_num_threads(params.train.threads or share_of_threads())
    loaded = load_generator(generator, device)
    check_fit(loaded, generator, whole, splits)
    retriever = _retriever(dense or generator.parent / "dense", device, whole, splits)
    pairs = Counting.read(counting)
    pairs.check_fit(counting, splits)
    # 2. Rank by counting, which says whether the items of the history leave the model's ranking too.
    counted = baselines(pairs, held_out, filter_seen=config.filter_seen is True)
    drop_seen = counted.drop_seen["cooccurrence"] if config.filter_seen == "auto" else config.filter_seen
    # 3. Rank the test items: every process its share of the users.
    with joined(device) as world:
        ranking, seconds = _rank(config, loaded, held_out, device, world, filter_seen=drop_seen)
        beside, dense_seconds = None, 0.0
        if retriever:
            beside, dense_seconds = _rank(config, retriever, held_out, device, world, filter_seen=drop_seen)
    if not world.leads:
        return {}
    # 4. Put model and baselines side by side, one row per user.
    users = _side_by_side(ranking, beside, counted, held_out, pairs.counts_I)
    # 5. Compute the metrics from these rows and from what is shown, and write everything.
    over_items = loaded.model.config.over_items
    first_code_I = None if over_items else loaded.catalogue.codes_IL[:, 0].cpu().numpy()
    figures = {
        **evaluation_metrics(
            users, drop_seen, ranking.invalid_share, samples=config.bootstrap_samples, seed=params.seed
        ),
        **evaluated.figures,
        **{f"{name}_seen_dropped": int(dropped) for name, dropped in counted.drop_seen.items()},
        "directed_backward_weight": counted.backward,
        **beyond_hits(ranking.top_UK, pairs.counts_I, users["item_id"].to_numpy(), first_code_I, _categories(items)),
        **calibration(ranking.mass_U, ranking.ranks_U),
        **timings,
        **(_dense_timings(reports) | {"dense_evaluate_seconds": dense_seconds} if beside else {}),
        "evaluate_seconds": seconds,
        "users_per_second": len(users) / seconds,
    }
    metrics = {name: figures[name] for name in HEADLINES if name in figures}
    details = {name: value for name, value in figures.items() if name not in metrics}
    origin = _origin(config, generator, splits, loaded, evaluated, drop_seen)
    Ranks(users, origin).write(reports / RANKS_FILE)
    write_csv(reports / "by_history.csv", by_bins(users, "history_length"))
    write_csv(reports / "by_popularity.csv", by_bins(users, "target_popularity"))
    write_json(reports / METRICS_FILE, metrics)
    write_csv(reports / "frontier.csv", _point(metrics, loaded.config))
    listed = (*SEALED, DENSE_REPORT) if beside and (reports / DENSE_REPORT).exists() else SEALED
    write_json(reports / DETAILS_FILE, sealed(details, reports, listed))  # last: it lists the others
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


def _retriever(folder: Path, device: torch.device, held_out: Splits, splits: Path) -> Generator | None:
    """Load the dense retriever and check that it was trained on these splits; None where there is none."""
    retriever = load_retriever(folder, device) if folder.exists() else None
    if retriever:
        check_fit(retriever, folder, held_out, splits)
    return retriever


def _origin(
    config: EvaluateConfig, generator: Path, splits: Path, loaded: Generator, evaluated: Evaluated, drop_seen: bool
) -> Origin:
    """Return what made the ranks."""
    return origin_of(
        generator,
        splits,
        loaded.config,
        sections=settings_types(),
        protocol=split_words(evaluated.splits.summary) + evaluated.words,
        beam=config.beam,
        decoding=config.decoding,
        filter_seen=drop_seen,
    )


def _side_by_side(
    ranking: Ranking, dense: Ranking | None, counted: Baselines, splits: Splits, counts_I: np.ndarray
) -> pd.DataFrame:
    """Return the rows of ranks.parquet."""
    assert ranking.other is not None
    beside = {}
    if dense is not None and dense.other is not None:
        beside = {"dense_rank": dense.ranks_U, "dense_other_rank": dense.other.ranks_U}
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
        **beside,
    )


def _point(metrics: dict[str, float], config: dict[str, Any]) -> pd.DataFrame:
    """Return the one row of frontier.csv, of which `dvc plots diff` draws one point per run."""
    model = f"{config['strategy']} {config['backbone']['name']}"
    return pd.DataFrame(
        [{"model": model, "train_seconds": metrics["train_seconds"], "recall_at_10": metrics["recall_at_10"]}]
    )


def _categories(items: Path) -> np.ndarray | None:
    """Return a number for each item's category, -1 for an item without; None where no item has one."""
    return ItemTable(items).numbered("categories") if items.exists() else None


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


def _dense_timings(reports: Path) -> dict[str, float]:
    """Return what training the dense retriever measured; nothing where its report is not here."""
    path = reports / DENSE_REPORT
    measured = unsealed(path, read_json(path), "dense") if path.exists() else {}
    return {name: measured[name] for name in DENSE_TRAINING if isinstance(measured.get(name), int | float)}


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
    """Return the baselines' metrics, those of both networks by both rules, and the model's recall of right codes."""
    figures = {"bucket_recall_at_10": recall_at(users["bucket_rank"].to_numpy(), 10)}
    rules = ("seen_dropped", "seen_included")
    columns = {name: f"{name}_rank" for name in BASELINES}
    columns |= dict(zip(rules if drop_seen else rules[::-1], ("rank", "other_rank"), strict=True))
    if "dense_rank" in users:
        columns["dense"] = "dense_rank"
        dense_rules = [f"dense_{rule}" for rule in (rules if drop_seen else rules[::-1])]
        columns |= dict(zip(dense_rules, ("dense_rank", "dense_other_rank"), strict=True))
    for name, column in columns.items():
        summary = summarise(users[column].to_numpy(), names)
        figures |= {f"{name}_{metric}": value for metric, value in summary.items()}
    return figures


def _rank(
    config: EvaluateConfig,
    generator: Generator,
    splits: Splits,
    device: torch.device,
    world: World,
    *,
    filter_seen: bool,
) -> tuple[Ranking, float]:
    """Rank all test users by both rules, each in one of the processes; every process returns the whole ranking.

    The second value is the seconds that it took.
    """
    began = time.perf_counter()
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
    whole = replace(_gathered(ranking, users_U, positions_U, device, world), other=other)
    return whole, time.perf_counter() - began


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
