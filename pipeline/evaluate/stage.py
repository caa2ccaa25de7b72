"""Stage evaluate makes test metrics with intervals from a trained generator and the held-out items.

Every metric of reports/metrics.json comes from reports/ranks.parquet, which `compare` reads too: two runs are compared
user by user without generating anything again. Under torchrun the processes share the users.

Shape legend: U test users, R resamples.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import torch

from pipeline.artifacts import CLOCK, GENERATOR, REPORTS, SPLITS, Splits, read_json, write_json
from pipeline.decoding.ranking import Ranking, rank_targets
from pipeline.distributed import World, joined
from pipeline.errors import UserError
from pipeline.evaluate.breakdown import by_bins, write_csv
from pipeline.evaluate.config import EvaluateConfig
from pipeline.generator import Generator, load_generator
from pipeline.machine import make_repeatable, pick_device, share_of_threads
from pipeline.manifest import without_checksum
from pipeline.metric_names import MAIN_METRICS
from pipeline.metrics import gains, recall_at, summarise
from pipeline.printing import say, shown
from pipeline.progress import Progress
from pipeline.results.bootstrap import interval, resampled_means
from pipeline.results.counting import baselines, training_counts
from pipeline.results.ranks import METRICS_FILE, RANKS_FILE, Ranks, check_fit, origin_of, ranks_frame, split_words


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
    params: EvaluateParams, *, splits: Path = SPLITS, generator: Path = GENERATOR, reports: Path = REPORTS
) -> dict[str, float]:
    """Rank every test user's item and write ranks.parquet, metrics.json and the two breakdowns.

    Returns:
        What metrics.json holds. Under torchrun only the first process goes on after ranking; the others return {}.

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
    # 2. Rank the test items: every process its share of the users.
    with joined(device) as world:
        ranking = _rank(config, loaded, held_out, device, world)
    if not world.leads:
        return {}
    # 3. Put model and baselines side by side, one row per user.
    counted = baselines(held_out, window=config.cooccurrence_window, filter_seen=config.filter_seen)
    targets_U = held_out.items_N[ranking.positions_U]
    users = ranks_frame(
        user_id=ranking.users_U,
        item_id=targets_U,
        rank=ranking.ranks_U,
        bucket_rank=ranking.bucket_ranks_U,
        history_length=ranking.lengths_U,
        target_popularity=training_counts(held_out)[targets_U],
        tie=held_out.has_tie(ranking.positions_U),
        popularity_rank=counted.popularity_U,
        cooccurrence_rank=counted.cooccurrence_U,
    )
    # 4. Compute the metrics from these rows and write everything; timings.json becomes part of metrics.json.
    metrics = (
        evaluation_metrics(users, ranking.invalid_share, samples=config.bootstrap_samples, seed=params.seed) | timings
    )
    origin = origin_of(
        generator,
        splits,
        loaded.config,
        protocol=split_words(held_out.summary),
        beam=config.beam,
        decoding=config.decoding,
        filter_seen=config.filter_seen,
    )
    Ranks(users, origin).write(reports / RANKS_FILE)
    write_csv(reports / "by_history.csv", by_bins(users, "history_length"))
    write_csv(reports / "by_popularity.csv", by_bins(users, "target_popularity"))
    write_json(reports / METRICS_FILE, metrics)
    over_items = loaded.model.config.over_items
    say(table(metrics, config, loaded.config["strategy"], counted.drop_seen, over_items))
    if config.filter_seen and (lost := is_repeat(held_out, ranking.positions_U).mean()):
        say(
            f"{lost:.1%} of the test targets are repeats of an item of their history, and no ranking holds those: "
            "evaluate.filter_seen=false ranks them",
        )
    return metrics


def _timings(path: Path) -> dict[str, float]:
    """Return what training measured. Raises UserError where the file is missing, or not as train wrote it."""
    measured = without_checksum(path, read_json(path, train_seconds=(int, float)))
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


def evaluation_metrics(users: pd.DataFrame, invalid_share: float, *, samples: int, seed: int) -> dict[str, float]:
    """Return all metrics of one evaluation by flat names.

    Names that begin with `noties_` are over the users whose target shares its timestamp with no earlier interaction.
    """
    ranks_U = users["rank"].to_numpy()
    metrics: dict[str, float] = {**summarise(ranks_U), "invalid_rate": invalid_share, "users": len(users)}
    # A column of gains per metric, resampled together: recall_at_10 -> recall_at_10_low, recall_at_10_high
    drawn = resampled_means(np.stack([gains(name, ranks_U) for name in MAIN_METRICS], axis=1), samples, seed)
    for name, low, high in zip(MAIN_METRICS, *interval(drawn), strict=True):
        metrics |= {f"{name}_low": round(float(low), 6), f"{name}_high": round(float(high), 6)}
    metrics |= _baseline_metrics(users)
    # The same without ties, where only the order of the raw file may say which item came last.
    apart = users[~users["tie"].to_numpy()]
    metrics |= {"tie_share": float(users["tie"].mean()), "noties_users": len(apart)}
    without_ties = {**summarise(apart["rank"].to_numpy()), **_baseline_metrics(apart)}
    return metrics | {f"noties_{name}": value for name, value in without_ties.items()}


def _baseline_metrics(users: pd.DataFrame) -> dict[str, float]:
    """Return the metrics of the baselines, and the model's recall of the right codes (`bucket_recall_at_10`)."""
    figures = {"bucket_recall_at_10": recall_at(users["bucket_rank"].to_numpy(), 10)}
    for name in ("popularity", "cooccurrence"):
        summary = summarise(users[f"{name}_rank"].to_numpy(), MAIN_METRICS)
        figures |= {f"{name}_{metric}": value for metric, value in summary.items()}
    return figures


def table(
    metrics: dict[str, float],
    config: EvaluateConfig,
    strategy: str,
    dropped: dict[str, bool],
    over_items: bool = False,
) -> str:
    """Return the printed table: the model and the baselines, on all users and on those without a tie.

    Args:
        dropped: for each baseline, whether the items of the history left its ranking.
        over_items: the model scores items themselves, all of them, and no Semantic IDs.
    """
    words = {True: "dropped", False: "included"}
    lines = [
        f"{'':24}{'all ' + format(metrics['users'], ',') + ' users':>22}"
        f"{'no tie: ' + format(metrics['noties_users'], ',') + ' users':>24}",
        f"{'':24}{'recall@10':>12}{'ndcg@10':>10}{'recall@10':>14}{'ndcg@10':>10}",
    ]
    # A line per system: recall and NDCG on all users, then on those without a tie.
    for label, prefix in ((strategy, ""), ("co-occurrence", "cooccurrence_"), ("popularity", "popularity_")):
        cells = [metrics[f"{part}{prefix}{name}_at_10"] for part in ("", "noties_") for name in ("recall", "ndcg")]
        lines.append(f"{label:24}{cells[0]:12.4f}{cells[1]:10.4f}{cells[2]:14.4f}{cells[3]:10.4f}")
    # Two lines that say how the numbers were made.
    low, high = metrics["recall_at_10_low"], metrics["recall_at_10_high"]
    seen = f"seen items {words[config.filter_seen]}"
    exact = config.decoding == "exact" or over_items
    search = "every item scored" if exact else f"beam {config.beam}, {config.decoding}"
    of_sids = f", {metrics['bucket_recall_at_10']:.4f} by bucket, {metrics['invalid_rate']:.2%} invalid SIDs"
    lines.append(
        f"{strategy}: {search}, {seen}; recall@10 in {low:.4f} to {high:.4f} (95%)" + ("" if over_items else of_sids)
    )
    lines.append(
        f"counting: seen items {words[dropped['cooccurrence']]} (co-occurrence), "
        f"{words[dropped['popularity']]} (popularity)" + ("" if config.filter_seen else ", as helps on validation")
    )
    return "\n".join(lines)


def _rank(config: EvaluateConfig, generator: Generator, splits: Splits, device: torch.device, world: World) -> Ranking:
    """Rank all test users, each in one of the processes; every process returns the whole ranking."""
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
            filter_seen=config.filter_seen,
            users=users_of_process_U,
            batch_users=config.batch_users,
            progress=progress,
            eval_skips=generator.eval_skips,
        )
    # 2. Gather the rows of all processes, in user order, and add up their counts.
    ranks_U, bucket_ranks_U, lengths_U = (
        world.gather(values_U, len(users_U), device)
        for values_U in (ranking.ranks_U, ranking.bucket_ranks_U, ranking.lengths_U)
    )
    invalid, generated = world.sum(torch.tensor([ranking.invalid, ranking.generated], device=device)).tolist()
    return Ranking(
        users_U=users_U,
        positions_U=positions_U,
        ranks_U=ranks_U,
        bucket_ranks_U=bucket_ranks_U,
        lengths_U=lengths_U,
        invalid=invalid,
        generated=generated,
    )
