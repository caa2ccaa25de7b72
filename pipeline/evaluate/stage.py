"""Stage evaluate: a trained generator and the held-out items in, test metrics with intervals out.

Every metric of reports/metrics.json comes from reports/ranks.parquet, which `compare` reads too: two runs can be set
against each other user by user without generating anything again. Under torchrun the processes share the users.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import torch

from pipeline.artifacts import GENERATOR, REPORTS, SPLITS, Splits, read_json, write_json
from pipeline.decoding.ranking import Ranking, rank_targets
from pipeline.distributed import World, joined
from pipeline.errors import UserError
from pipeline.evaluate.breakdown import by_bins, write_csv
from pipeline.evaluate.config import EvaluateConfig
from pipeline.generator import Generator, load_generator
from pipeline.machine import make_repeatable, pick_device, share_of_threads
from pipeline.metrics import gains, ndcg_at, recall_at, summarise
from pipeline.progress import Progress
from pipeline.results.bootstrap import interval, resampled_means
from pipeline.results.counting import baselines, training_counts
from pipeline.results.ranks import METRICS_FILE, RANKS_FILE, Ranks, check_fit, origin_of, ranks_frame

INTERVALS = ("recall_at_10", "ndcg_at_10")


class MachineView(Protocol):
    """The keys of `train:` that say how the machine is used."""

    @property
    def device(self) -> str: ...

    @property
    def deterministic(self) -> bool: ...

    @property
    def threads(self) -> int: ...


class EvaluateParams(Protocol):
    """What this stage reads of params.yaml."""

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
        What metrics.json holds. Under torchrun the first process does what is left to do after ranking; others return
        nothing.

    Raises:
        UserError: an input is missing or damaged, the model was trained on other splits, or no user has a test item.
    """
    config, held_out, timings = params.evaluate, Splits.read(splits), read_json(reports / "timings.json")
    device = pick_device(params.train.device)
    make_repeatable(device, params.train.deterministic)
    torch.set_num_threads(params.train.threads or share_of_threads())
    loaded = load_generator(generator, device)
    check_fit(loaded, generator, held_out, splits)
    with joined(device) as world:
        ranking = _rank(config, loaded, held_out, device, world)
    if not world.leads:
        return {}
    counted = baselines(held_out, window=config.cooccurrence_window, filter_seen=config.filter_seen)
    users = ranks_frame(
        user_id=ranking.users_U,
        item_id=held_out.items_N[ranking.positions_U],
        rank=ranking.ranks_U,
        bucket_rank=ranking.bucket_ranks_U,
        history_length=ranking.lengths_U,
        target_popularity=training_counts(held_out)[held_out.items_N[ranking.positions_U]],
        tie=held_out.has_tie(ranking.positions_U),
        popularity_rank=counted.popularity_U,
        cooccurrence_rank=counted.cooccurrence_U,
    )
    metrics = (
        evaluation_metrics(users, ranking.invalid_share, samples=config.bootstrap_samples, seed=params.seed) | timings
    )
    origin = origin_of(
        generator, splits, loaded.config, beam=config.beam, decoding=config.decoding, filter_seen=config.filter_seen
    )
    Ranks(users, origin).write(reports / RANKS_FILE)
    write_csv(reports / "by_history.csv", by_bins(users, "history_length"))
    write_csv(reports / "by_popularity.csv", by_bins(users, "target_popularity"))
    write_json(reports / METRICS_FILE, metrics)
    print(table(metrics, config, loaded.config["strategy"], counted.drop_seen), flush=True)
    return metrics


def evaluation_metrics(users: pd.DataFrame, invalid_share: float, *, samples: int, seed: int) -> dict[str, float]:
    """All metrics of one evaluation, by flat names; `noties_`: only users whose target has its timestamp alone."""
    rank = users["rank"].to_numpy()
    metrics: dict[str, float] = {**summarise(rank), "invalid_rate": invalid_share, "users": len(users)}
    drawn = resampled_means(np.stack([gains(name, rank) for name in INTERVALS], axis=1), samples, seed)
    for name, low, high in zip(INTERVALS, *interval(drawn), strict=True):
        metrics |= {f"{name}_low": round(float(low), 6), f"{name}_high": round(float(high), 6)}
    metrics |= _beside(users)
    apart = users[~users["tie"].to_numpy()]
    metrics |= {"tie_share": float(users["tie"].mean()), "noties_users": len(apart)}
    without_ties = {**summarise(apart["rank"].to_numpy()), **_beside(apart)}
    return metrics | {f"noties_{name}": value for name, value in without_ties.items()}


def _beside(users: pd.DataFrame) -> dict[str, float]:
    """Bucket hits of the model and the figures of the baselines."""
    figures = {"bucket_recall_at_10": recall_at(users["bucket_rank"].to_numpy(), 10)}
    for name in ("popularity", "cooccurrence"):
        ranks_U = users[f"{name}_rank"].to_numpy()
        figures |= {f"{name}_recall_at_10": recall_at(ranks_U, 10), f"{name}_ndcg_at_10": ndcg_at(ranks_U, 10)}
    return figures


def table(metrics: dict[str, float], config: EvaluateConfig, strategy: str, dropped: dict[str, bool]) -> str:
    """The model beside the baselines, on all users and on those without a tie, and how the numbers were made."""
    words = {True: "dropped", False: "kept"}
    lines = [
        f"{'':24}{'all ' + format(metrics['users'], ',') + ' users':>22}"
        f"{'no tie: ' + format(metrics['noties_users'], ',') + ' users':>24}",
        f"{'':24}{'recall@10':>12}{'ndcg@10':>10}{'recall@10':>14}{'ndcg@10':>10}",
    ]
    for label, prefix in ((strategy, ""), ("co-occurrence", "cooccurrence_"), ("popularity", "popularity_")):
        cells = [metrics[f"{part}{prefix}{name}_at_10"] for part in ("", "noties_") for name in ("recall", "ndcg")]
        lines.append(f"{label:24}{cells[0]:12.4f}{cells[1]:10.4f}{cells[2]:14.4f}{cells[3]:10.4f}")
    low, high = metrics["recall_at_10_low"], metrics["recall_at_10_high"]
    seen = f"seen items {words[config.filter_seen]}"
    search = "every item scored" if config.decoding == "exact" else f"beam {config.beam}, {config.decoding}"
    lines.append(
        f"{strategy}: {search}, {seen}; recall@10 in {low:.4f} to {high:.4f} (95%), "
        f"{metrics['bucket_recall_at_10']:.4f} by bucket, {metrics['invalid_rate']:.2%} invalid SIDs"
    )
    lines.append(
        f"counting: seen items {words[dropped['cooccurrence']]} (co-occurrence), "
        f"{words[dropped['popularity']]} (popularity)" + ("" if config.filter_seen else ", as helps on validation")
    )
    return "\n".join(lines)


def _rank(config: EvaluateConfig, generator: Generator, splits: Splits, device: torch.device, world: World) -> Ranking:
    """All test users, each ranked by one of the processes."""
    users_U, positions_U = splits.targets("test")
    if not len(users_U):
        raise UserError(
            "no user has a test item",
            "there is nothing to evaluate on",
            "choose an earlier split.test_from, or bring a log with longer histories",
        )
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
    ranks_U, bucket_ranks_U, lengths_U = (
        world.gather(values_U, len(users_U), device)
        for values_U in (ranking.ranks_U, ranking.bucket_ranks_U, ranking.lengths_U)
    )
    invalid, generated = world.sum(torch.tensor([ranking.invalid, ranking.generated], device=device)).tolist()
    return Ranking(users_U, positions_U, ranks_U, bucket_ranks_U, lengths_U, invalid, generated)
