"""Stage train: SIDs and splits in, a trained generator and its loss curve out.

Runs in one process, or in several under `torchrun --nproc-per-node N -m pipeline train`; then the first one writes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import torch

from pipeline.artifacts import (
    GENERATOR,
    INTERACTIONS,
    REPORTS,
    SCRATCH,
    SIDS,
    SPLITS,
    Interactions,
    Sids,
    Splits,
    fingerprint,
    read_parquet,
)
from pipeline.catalogue import Catalogue
from pipeline.distributed import World, joined
from pipeline.errors import UserError
from pipeline.generator import save_generator
from pipeline.machine import make_repeatable, pick_device, share_of_threads
from pipeline.strategies.base import Course, Strategy, Traits
from pipeline.train.flops import flops_per_window
from pipeline.train.kept_tokens import survey
from pipeline.train.outputs import timings_of, write_reports
from pipeline.train.recipe import Recipe, TrainParams
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.collate import Collator
from pipeline.training.feed import Feed
from pipeline.training.loop import State, Trainer
from pipeline.training.optimizer_step import records
from pipeline.training.steps import samples_per_step
from pipeline.training.validation import Validation
from pipeline.training.windows import Passes

if TYPE_CHECKING:
    from pipeline.backbones import Backbone


def run(
    params: TrainParams,
    *,
    interactions: Path = INTERACTIONS,
    sids: Path = SIDS,
    splits: Path = SPLITS,
    output: Path = GENERATOR,
    reports: Path = REPORTS,
    scratch: Path = SCRATCH,
) -> dict[str, Any]:
    """Train by `params` and write models/generator, and to reports/: timings.json, history.csv, kept_by_level.csv,
    kept_by_position.csv, passes.csv and skipped/.

    Returns:
        What timings.json holds.

    Raises:
        UserError: an input is missing or does not fit the others, the loss diverges, a checkpoint is damaged, or the
            disk is full.
    """
    held, read_sids = Splits.read(splits), Sids.read(sids)
    recipe = Recipe.of(params, held, read_sids)
    inputs = {"sids": fingerprint(sids / "sids.parquet"), "splits": fingerprint(splits)}
    checkpoints = Checkpoints(scratch, fingerprint(recipe.influences(), inputs))
    device = pick_device(recipe.config.device)
    make_repeatable(device, recipe.config.deterministic)
    resume = checkpoints.load(device)
    _set_threads(recipe, resume)
    with joined(device) as world:
        catalogue = Catalogue(read_sids.codes_IL, read_sids.widths, read_sids.digit).to(device)
        trainer = _trainer(recipe, held, catalogue, read_sids.codebooks, checkpoints, world, resume)
        if world.leads:
            _announce(trainer, device)
        state = trainer.run()
        kept = survey(trainer.evaluated, trainer.validation.batches, held.max_history, world)
        report, eval_skips = trainer.strategy.sampler.report, trainer.strategy.sampler.eval_skips()
        learned = report.learned()
        flops = flops_per_window(recipe, held, read_sids, trainer.feed.first_windows())
        timings = timings_of(trainer, state, device, flops) | kept.figures() | report.figures()
        if world.leads:
            model, items = cast("Backbone", trainer.evaluated), _named(read_parquet(Interactions(interactions).items))
            save_generator(output, model, catalogue, items, recipe.model_config(inputs), eval_skips)
            tables = report.tables(state.pass_index + 1, catalogue.levels)
            write_reports(reports, timings, state.history, kept, tables, learned)
            checkpoints.delete()
            _conclude(recipe, state, timings)
    return timings


def _set_threads(recipe: Recipe, resume: Mapping[str, Any] | None) -> None:
    """As many threads as the user says, or as the work keeps busy. Sums depend on how many threads add them, so a
    resumed run keeps the number that it began with.
    """
    numbers = recipe.config.batch_tokens // recipe.config.accumulate * recipe.backbone.d_model
    torch.set_num_threads(recipe.config.threads or (resume["threads"] if resume else share_of_threads(numbers)))


def _trainer(
    recipe: Recipe,
    splits: Splits,
    catalogue: Catalogue,
    codebooks: Mapping[str, np.ndarray],
    checkpoints: Checkpoints,
    world: World,
    resume: dict[str, Any] | None,
) -> Trainer:
    """Everything that trains, put together."""
    network = recipe.chosen.network(recipe.pad_to)
    torch.manual_seed(recipe.seed)
    model = network.build(recipe.backbone, catalogue)
    network.start_from(model, codebooks)
    times_N = np.asarray(splits.timestamps_N) if recipe.backbone.wants_times else None
    collator = Collator(
        np.asarray(splits.items_N),
        catalogue.codes_IL,
        times_N=times_N,
        pad_to=recipe.pad_to,
        longest=splits.max_history,
        all_targets=recipe.all_targets,
        weigh_items=network.items,
    )
    feed = _feed(recipe, splits, collator, world)
    traits = Traits.of(network, recipe.backbone, catalogue)
    strategy = Strategy(network, recipe.chosen.sampler(_course(recipe, splits, feed, world), traits))
    return Trainer(
        recipe.config,
        recipe.seed,
        model=model,
        strategy=strategy,
        feed=feed,
        validation=_validation(recipe, splits, strategy, catalogue, world),
        checkpoints=checkpoints,
        world=world,
        resume=resume,
    )


def _feed(recipe: Recipe, splits: Splits, collator: Collator, world: World) -> Feed:
    """Raises UserError where there is nothing to train on."""
    passes = Passes(splits, recipe.config.windows, recipe.seed)
    if not len(passes):
        raise UserError(
            "there is nothing to train on",
            "no user has two interactions in the training part, so no target has a history",
            "lower ingest.k_core's filter or choose an earlier split",
        )
    return Feed(
        passes,
        collator,
        world,
        budget=recipe.budget,
        tokens_per_item=recipe.tokens_per_item,
        accumulate=recipe.config.accumulate,
        fill=records(recipe.config, collator.codes_IL.device),
    )


def _validation(recipe: Recipe, splits: Splits, strategy: Strategy, catalogue: Catalogue, world: World) -> Validation:
    """Raises UserError where nobody has a validation target."""
    times = recipe.backbone.wants_times
    validation = Validation(splits, strategy, catalogue, world, beam=recipe.config.beam, times=times)
    if not validation.windows:
        raise UserError(
            "no user has a validation target with a history",
            "the best checkpoint is chosen on validation",
            "split the log so that some users have interactions both before and in the validation period",
        )
    return validation


def _course(recipe: Recipe, splits: Splits, feed: Feed, world: World) -> Course:
    """What a sampler may know of the run."""
    config, windows = recipe.config, len(feed.passes)
    return Course(
        items_N=np.asarray(splits.items_N),
        first_U=np.asarray(splits.offsets[:-1]),
        end_U=np.asarray(splits.train_end),
        windows=windows,
        samples_per_step=samples_per_step(feed.passes, feed.budget, feed.tokens_per_item, recipe.all_targets),
        passes=config.max_windows / windows,
        one_per_target=config.windows != "all",
        all_targets=recipe.all_targets,
        once=config.windows == "sequences",
        max_history=splits.max_history,
        seed=recipe.seed,
        device=feed.device,
        sum=world.sum,
    )


def _announce(trainer: Trainer, device: torch.device) -> None:
    parameters = sum(p.numel() for p in trainer.model.parameters())
    where = f"on {device.type}" + (f", {torch.get_num_threads()} threads" if device.type == "cpu" else "")
    processes = f", {trainer.world.size} processes" if trainer.world.size > 1 else ""
    resumed = f", resumed at step {trainer.state.step}" if trainer.state.step else ""
    print(
        f"train: {parameters:,} parameters, {len(trainer.feed.passes):,} windows a pass, {where}{processes}{resumed}",
        flush=True,
    )


def _conclude(recipe: Recipe, state: State, timings: Mapping[str, Any]) -> None:
    targets = f" of {state.samples / state.windows:.1f} targets" if recipe.all_targets else ""
    print(
        f"train: best at step {state.best_step} of {state.step}, {recipe.config.select} "
        f"{abs(state.best_score):.4f} on validation, {timings['windows_per_second']:,.0f} windows/s{targets}"
    )


def _named(items: pd.DataFrame) -> pd.DataFrame:
    """item_id, raw_id and, where the dataset has it, title."""
    return items[[column for column in ("item_id", "raw_id", "title") if column in items]]
