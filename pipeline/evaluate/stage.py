"""Stage evaluate makes test metrics with intervals from a trained generator and the held-out items.

The metrics come from reports/ranks.parquet, which `compare` reads too: two runs are compared user by user without
generating anything again. reports/metrics.json has the few that a table of experiments shows, reports/details.json all
others. Under torchrun the processes share the users.

Shape legend: U test users, K items of a ranking, R resamples.
"""

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
    fingerprint,
    read_json,
    write_json,
)
from pipeline.distributed import joined
from pipeline.errors import UserError
from pipeline.evaluate.actions import action_figures, predict_exposures, say_actions, write_predictions
from pipeline.evaluate.beyond import beyond_hits, calibration
from pipeline.evaluate.breakdown import by_bins, write_csv
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.exposures import means_figures
from pipeline.evaluate.figures import evaluation_metrics, fused_figures
from pipeline.evaluate.ranked import Ranked, rank_all
from pipeline.evaluate.sample import Evaluated
from pipeline.evaluate.table import table
from pipeline.generator import Generator, load_generator, load_retriever
from pipeline.item_table import ItemTable
from pipeline.machine import make_repeatable, pick_device, set_threads, share_of_threads
from pipeline.manifest import sealed, unsealed
from pipeline.metric_names import DENSE_INDEX, DENSE_REPORT, DENSE_TRAINING, HEADLINES, RANKINGS
from pipeline.printing import say, shown
from pipeline.results.predictions import Predictions
from pipeline.results.ranks import (
    DETAILS_FILE,
    METRICS_FILE,
    RANKS_FILE,
    Origin,
    Ranks,
    check_fit,
    model_hash,
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
    fusion: Path | None = None,
) -> dict[str, float]:
    """Rank every test user's item and write ranks.parquet, metrics.json, details.json and the two breakdowns.

    Args:
        splits: the folder of the splits.
        generator: the folder of the model.
        counting: the folder of the counts.
        reports: the folder to write into; it has timings.json and dense.json.
        items: items.parquet, for categories.
        dense: the folder of the dense retriever; None: `dense` beside the generator. It may be missing.
        fusion: the folder for the weights of the views; None: `fusion` beside the generator.

    Returns:
        What metrics.json and details.json hold. Under torchrun only the first process goes on after ranking; the
        others return {}.

    Raises:
        UserError: an input is missing or damaged, the model was trained on other splits, or no user has a test item.
    """
    # 1. Read the inputs, and check that the model was trained on these splits.
    config, whole = params.evaluate, Splits.read(splits)
    evaluated = Evaluated.of(whole, config.users)
    held_out = evaluated.splits
    timings = _timings(reports / "timings.json")
    device = _device(params.train)
    loaded = load_generator(generator, device)
    check_fit(loaded, generator, whole, splits)
    dense, fusion = dense or generator.parent / "dense", fusion or generator.parent / "fusion"
    if not loaded.ranks_items:
        return _run_actions(params, loaded, whole, timings, (splits, generator, reports, fusion))
    pairs = Counting.of(counting, splits)
    retriever = _retriever(dense, config.ranking, device, whole, splits)
    # 2. Rank by counting, which says whether the items of the history leave the model's ranking too.
    counted = baselines(pairs, held_out, filter_seen=config.filter_seen is True)
    drop_seen = counted.drop_seen["cooccurrence"] if config.filter_seen == "auto" else config.filter_seen
    # 3. Rank the test items by every system: every process its share of the users.
    folders = {"generator": generator, "counting": counting, **({"dense": dense} if retriever else {})}
    models = {view: model_hash(folder) for view, folder in folders.items()}
    with joined(device) as world:
        ranked = rank_all(config, loaded, retriever, (pairs, counted), held_out, world, models, drop_seen=drop_seen)
    if ranked.fused is None:
        return {}
    # 4. Put all systems side by side, one row per user.
    ranked.fused.weights.write(fusion)
    headline = ranked.headline(config.ranking)
    users = _side_by_side(config.ranking, ranked, counted, held_out, pairs.counts_I)
    means, table_of_means = means_figures(splits)
    # 5. Compute the metrics from these rows and from what is shown, and write everything.
    over_items = loaded.model.config.over_items
    first_code_I = None if over_items else loaded.catalogue.codes_IL[:, 0].cpu().numpy()
    draws = {"samples": config.bootstrap_samples, "seed": params.seed}
    figures = {
        **evaluation_metrics(users, drop_seen, headline.invalid_share, depth=_depth(config, over_items), **draws),
        **evaluated.figures,
        **_of_counting(counted),
        "ranking": RANKINGS.index(config.ranking),
        **fused_figures(users, ranked.fused, **draws),
        **beyond_hits(headline.top_UK, pairs.counts_I, users["item_id"].to_numpy(), first_code_I, _categories(items)),
        **calibration(headline.mass_U, headline.ranks_U),
        **means,
        **timings,
        **(_dense_timings(reports) | {"dense_evaluate_seconds": ranked.dense_seconds} if ranked.dense else {}),
        **{"evaluate_seconds": ranked.seconds, "users_per_second": len(users) / ranked.seconds},
    }
    metrics, details = _sorted(figures)
    origin = _origin(config, generator, splits, loaded, evaluated, drop_seen, models)
    _write(Ranks(users, origin), metrics, details, loaded, reports, with_dense=ranked.dense is not None)
    say(table(figures, config, loaded.config["strategy"], over_items))
    _say_more(table_of_means, held_out, headline.positions_U, drop_seen=drop_seen)
    return {**metrics, **details}


def _run_actions(
    params: EvaluateParams,
    loaded: Generator,
    whole: Splits,
    timings: dict[str, float],
    folders: tuple[Path, Path, Path, Path],
) -> dict[str, float]:
    """Evaluate a model that predicts actions, and write the same files; errors are those of `run`.

    Args:
        folders: splits, generator, reports and fusion.
    """
    config = params.evaluate
    splits, generator, reports, fusion = folders
    with joined(_device(params.train)) as world:
        found = predict_exposures(config, loaded, whole, splits, world)
    if found is None:
        return {}
    frame, labels, facts = found
    sample = f", a sample of {facts['users']:,} users" if "users_in_all" in facts else ""
    origin = origin_of(
        generator,
        splits,
        loaded.config,
        sections=settings_types(),
        protocol=f"exposures divided by time{sample}",
        beam=config.beam,
        decoding=config.decoding,
        filter_seen=False,
    )
    predictions = Predictions(frame, origin, labels)
    figures = {
        **action_figures(predictions, samples=config.bootstrap_samples, seed=params.seed),
        **facts,
        **timings,
    }
    metrics, details = _sorted(figures)
    write_predictions(predictions, reports / RANKS_FILE, fusion, _point(metrics, loaded.config))
    write_json(reports / METRICS_FILE, metrics)
    write_json(reports / DETAILS_FILE, sealed(details, reports, SEALED))
    say_actions(predictions, figures, loaded.config["strategy"])
    return {**metrics, **details}


def _sorted(figures: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Return what metrics.json and what details.json holds."""
    metrics = {name: figures[name] for name in HEADLINES if name in figures}
    return metrics, {name: value for name, value in figures.items() if name not in metrics}


def _of_counting(counted: Baselines) -> dict[str, float]:
    """Return what validation chose for the baselines that count."""
    dropped = {f"{name}_seen_dropped": int(dropped) for name, dropped in counted.drop_seen.items()}
    return {**dropped, "directed_backward_weight": counted.backward}


def _depth(config: EvaluateConfig, over_items: bool) -> int:
    """Return how many items of an exact ranking are looked at; 0: the headline's ranking is a search's, or fused."""
    exact = config.ranking == "generator" and (over_items or config.decoding == "exact")
    return config.beam if exact else 0


def _device(machine: MachineView) -> torch.device:
    """Return the device, and set the process up for it."""
    device = pick_device(machine.device)
    make_repeatable(device, machine.deterministic)
    set_threads(machine.threads, share_of_threads())
    return device


def _write(
    ranks: Ranks,
    metrics: dict[str, float],
    details: dict[str, float],
    loaded: Generator,
    reports: Path,
    *,
    with_dense: bool,
) -> None:
    """Write the files of reports/; details.json, which lists the others, comes last."""
    ranks.write(reports / RANKS_FILE)
    write_csv(reports / "by_history.csv", by_bins(ranks.users, "history_length"))
    write_csv(reports / "by_popularity.csv", by_bins(ranks.users, "target_popularity"))
    write_json(reports / METRICS_FILE, metrics)
    write_csv(reports / "frontier.csv", pd.DataFrame([_point(metrics, loaded.config)]))
    listed = (*SEALED, DENSE_REPORT) if with_dense and (reports / DENSE_REPORT).exists() else SEALED
    write_json(reports / DETAILS_FILE, sealed(details, reports, listed))


def _say_more(means: str, splits: Splits, positions: np.ndarray, *, drop_seen: bool) -> None:
    """Print how many of these targets no ranking without seen items holds, and the table of exposures, if any."""
    if means:
        say(means)
    if drop_seen and (lost := is_repeat(splits, positions).mean()):
        say(
            f"{lost:.1%} of the test targets are repeats of an item of their history, and no ranking holds those: "
            "evaluate.filter_seen=false ranks them",
        )


def _retriever(folder: Path, ranking: str, device: torch.device, held_out: Splits, splits: Path) -> Generator | None:
    """Load the dense retriever and check that it was trained on these splits; None where there is none.

    Raises:
        UserError: it was trained on other splits, or there is none and `evaluate.ranking` names it.
    """
    retriever = load_retriever(folder, device) if folder.exists() else None
    if retriever:
        check_fit(retriever, folder, held_out, splits)
    elif ranking == "dense":
        raise UserError(
            "evaluate.ranking is dense, and there is no dense retriever",
            f"{folder} is not there, or dense.enabled was false when it was made",
            "set dense.enabled=true and run `dvc repro`, or choose another evaluate.ranking",
        )
    return retriever


def _origin(
    config: EvaluateConfig,
    generator: Path,
    splits: Path,
    loaded: Generator,
    evaluated: Evaluated,
    drop_seen: bool,
    models: dict[str, str],
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
        ranking=config.ranking,
        views="" if config.ranking == "generator" else fingerprint(models),
    )


def _side_by_side(
    ranking: str, ranked: Ranked, counted: Baselines, splits: Splits, counts_I: np.ndarray
) -> pd.DataFrame:
    """Return the rows of ranks.parquet."""
    headline = ranked.headline(ranking)
    systems = {"dense": ranked.dense, "fused": ranked.fused.ranking if ranked.fused else None}
    if ranking != "generator":
        systems["generator"] = ranked.generator
    beside: dict[str, np.ndarray] = {}
    for name, system in systems.items():
        if system is not None and system.other is not None:
            beside |= {f"{name}_rank": system.ranks_U, f"{name}_other_rank": system.other.ranks_U}
    if ranked.fused is not None and ranked.fused.exact_U is not None:
        beside["exact_rank"] = ranked.fused.exact_U
    assert headline.other is not None
    targets_U = splits.items_N[headline.positions_U]
    return ranks_frame(
        user_id=headline.users_U,
        item_id=targets_U,
        rank=headline.ranks_U,
        bucket_rank=headline.bucket_ranks_U,
        history_length=headline.lengths_U,
        target_popularity=counts_I[targets_U],
        tie=splits.has_tie(headline.positions_U),
        popularity_rank=counted.popularity_U,
        cooccurrence_rank=counted.cooccurrence_U,
        directed_rank=counted.directed_U,
        other_rank=headline.other.ranks_U,
        **beside,
    )


def _point(metrics: dict[str, float], config: dict[str, Any]) -> dict[str, Any]:
    """Return the one row of frontier.csv, of which `dvc plots diff` draws one point per run."""
    names = ("train_seconds", *(name for name in ("recall_at_10", "auc") if name in metrics))
    return {"model": f"{config['strategy']} {config['backbone']['name']}", **{name: metrics[name] for name in names}}


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
    return {
        name: measured[name] for name in (*DENSE_TRAINING, *DENSE_INDEX) if isinstance(measured.get(name), int | float)
    }


def is_repeat(splits: Splits, positions: np.ndarray) -> np.ndarray:
    """Tell at which of these flat indices stands an item that its history holds too, bool."""
    starts = np.asarray(splits.offsets)[np.searchsorted(splits.offsets, positions, side="right") - 1]
    lengths = np.minimum(positions - starts, splits.max_history)
    items = np.asarray(splits.items_N)
    repeats = np.zeros(len(positions), bool)
    for back in range(1, int(lengths.max(initial=0)) + 1):
        repeats |= (back <= lengths) & (items[positions - np.minimum(back, lengths)] == items[positions])
    return repeats
