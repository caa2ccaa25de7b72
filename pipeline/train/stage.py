"""Stage train makes a trained generator and its loss curve from Semantic IDs (or content vectors) and splits.

The stage runs in one process, or in several under `torchrun --nproc-per-node N -m pipeline train`, of which the first
one writes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.artifacts import (
    EMBEDDINGS,
    GENERATOR,
    INTERACTIONS,
    REPORTS,
    SCRATCH,
    SIDS,
    SPLITS,
    Interactions,
    Splits,
    fingerprint,
)
from pipeline.distributed import joined
from pipeline.exposures import Exposures
from pipeline.generator import save_generator
from pipeline.item_table import ItemTable
from pipeline.strategies.registry import choose_strategies
from pipeline.train.kept_tokens import count_kept_tokens
from pipeline.train.outputs import write_reports
from pipeline.training.assembly import set_up, trainer_of
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.code import checkpoint_name, code_fingerprint, name_other_code
from pipeline.training.flops import flops_per_window
from pipeline.training.names import COLUMNS, ItemNames, read_items, read_names, read_sequences
from pipeline.training.observer import Observer
from pipeline.training.recipe import RecipeSettings, TrainingRecipe
from pipeline.training.summary import announce, conclude, timings_of


class TrainParams(RecipeSettings, Protocol):
    """`TrainParams` declares what this stage reads of params.yaml: what its recipe is computed from."""


def run(  # noqa: PLR0913 - the files and what watches, all by keyword
    params: TrainParams,
    *,
    interactions: Path = INTERACTIONS,
    embeddings: Path = EMBEDDINGS,
    sids: Path = SIDS,
    splits: Path = SPLITS,
    output: Path = GENERATOR,
    reports: Path = REPORTS,
    scratch: Path = SCRATCH,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Train by `params` and write models/generator and reports/.

    The files of reports/ are timings.json, history.csv, kept_by_level.csv, kept_by_position.csv, passes.csv and
    skipped/.

    Args:
        observer: learns of the start and of each validation; under torchrun, that of the first process counts.

    Returns:
        What timings.json holds.

    Raises:
        UserError: an input is missing or does not fit the others, the loss diverges, a checkpoint is damaged, or the
            disk is full.
    """
    # 1. Read the inputs, and name the checkpoint of an interrupted run with the same parameters, inputs and code.
    held, exposures = read_sequences(params.train.task, splits)
    chosen = choose_strategies(params.strategy, params.strategies)
    names = read_names(params.backbone, held, sids, embeddings, chosen.content_key)
    recipe = TrainingRecipe.of(params, held, names.sids)
    inputs = {**names.inputs, "splits": fingerprint(splits)}
    items = read_items(Interactions(interactions).items, len(names.sids.codes_IL))
    run_name = checkpoint_name(fingerprint(recipe.influences(), inputs), code_fingerprint("train"))
    checkpoints = Checkpoints(scratch, run_name)
    # 2. Train, while no other process trains the same.
    with checkpoints.alone(output):
        files = Files(items, output, reports)
        return _train(recipe, (held, exposures), names, inputs, checkpoints, files, observer)


@dataclass(frozen=True)
class Files:
    """These files are written once training is over, with the names of the items."""

    items: ItemTable  # of which item_id, raw_id and title are read when the model is written
    output: Path  # models/generator
    reports: Path


def _train(
    recipe: TrainingRecipe,
    sequences: tuple[Splits, Exposures | None],
    names: ItemNames,
    inputs: Mapping[str, str],
    checkpoints: Checkpoints,
    files: Files,
    observer: Observer | None,
) -> dict[str, Any]:
    """Train from the checkpoint on, if there is one, and write the model and the reports."""
    device, resume = set_up(recipe, checkpoints)
    splits, exposures = sequences
    # 1. Train, then measure the model of the best weights on every process.
    with joined(device) as world:
        trainer = trainer_of(
            recipe,
            splits,
            names,
            device,
            checkpoints=checkpoints,
            world=world,
            resume=resume,
            exposures=exposures,
        )
        if world.leads:
            trainer.observer = observer
            name_other_code(checkpoints.folder, "train")
            announce(trainer, names.line)
        state = trainer.run()
        kept = count_kept_tokens(trainer.evaluated, trainer.validation.batches(), splits.max_history, world)
        report = trainer.strategy.sampler.report
        eval_skips = trainer.strategy.sampler.eval_skips()  # this and `learned` are exchanges of all processes
        learned = report.learned()
        catalogue = trainer.validation.catalogue
        on_cpu = catalogue if device.type == "cpu" else names.catalogue()
        flops = flops_per_window(recipe, splits, on_cpu, trainer.loader.first_windows())
        timings = timings_of(trainer, flops) | kept.figures() | report.figures()
        # 2. The first process writes.
        if world.leads:
            model_config = recipe.model_config(inputs)
            save_generator(
                files.output, trainer.evaluated, catalogue, files.items.blocks(COLUMNS), model_config, eval_skips
            )
            tables = report.tables(state.epoch + 1, len(recipe.network().target_widths(catalogue)))
            write_reports(files.reports, timings, state.history, kept, tables, learned)
            checkpoints.delete()
            conclude(trainer, timings)
    return timings
