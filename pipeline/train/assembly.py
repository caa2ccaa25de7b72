"""From a recipe to a `Trainer`: network, batches, sampler and validation, each made once and handed to the next."""

from typing import Any

import numpy as np
import torch

from pipeline.artifacts import Sids, Splits
from pipeline.catalogue import Catalogue
from pipeline.distributed import World
from pipeline.errors import UserError
from pipeline.strategies.base import Course, Strategy, Traits
from pipeline.train.recipe import Recipe
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.collate import Collator
from pipeline.training.feed import Feed
from pipeline.training.loop import Trainer
from pipeline.training.optimizer_step import records
from pipeline.training.steps import samples_per_step
from pipeline.training.validation import Validation
from pipeline.training.windows import Passes


def trainer_of(
    recipe: Recipe,
    splits: Splits,
    sids: Sids,
    device: torch.device,
    *,
    checkpoints: Checkpoints,
    world: World,
    resume: dict[str, Any] | None,
) -> Trainer:
    """Put together everything that trains.

    Args:
        resume: what a checkpoint of an interrupted run holds.

    Raises:
        UserError: there is nothing to train on, or nobody to validate on.
    """
    catalogue = Catalogue(sids.codes_IL, sids.widths, sids.digit).to(device)
    network = recipe.chosen.network(recipe.pad_to)
    torch.manual_seed(recipe.seed)
    model = network.build(recipe.backbone, catalogue)
    network.start_from(model, sids.codebooks)
    collator = recipe.collator(splits, catalogue.codes_IL, network)
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
