"""Build a `Trainer` from a recipe: network, batches, sampler and validation, each made once and handed to the next."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pipeline.artifacts import Splits
from pipeline.catalogue import Catalogue
from pipeline.distributed import World
from pipeline.errors import UserError
from pipeline.exposures import Exposures
from pipeline.machine import make_repeatable, pick_device, set_threads, share_of_threads
from pipeline.strategies.base import NetworkTraits, Strategy, TrainingPlan
from pipeline.training.action_validation import ActionValidation
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.collate import Collator
from pipeline.training.loader import BatchLoader
from pipeline.training.loop import Trainer
from pipeline.training.names import ItemNames
from pipeline.training.optimizer_step import records
from pipeline.training.recipe import TrainingRecipe
from pipeline.training.steps import samples_per_step
from pipeline.training.validation import Validation
from pipeline.training.windows import Epochs


def trainer_of(
    recipe: TrainingRecipe,
    splits: Splits,
    names: ItemNames,
    device: torch.device,
    *,
    checkpoints: Checkpoints,
    world: World,
    resume: dict[str, Any] | None,
    exposures: Exposures | None = None,
) -> Trainer:
    """Build everything that trains.

    Args:
        splits: the sequences that windows are cut from: interactions, or exposures in their form.
        resume: what a checkpoint of an interrupted run holds; None: start from step 0.
        exposures: those of `splits`, where their actions are what is predicted.

    Raises:
        UserError: there is nothing to train on, or nobody to validate on.
    """
    catalogue = names.catalogue().to(device)
    network = recipe.network()
    torch.manual_seed(recipe.seed)
    model = network.build(recipe.backbone, catalogue)
    network.start_from(model, names.sids.codebooks)
    collator = recipe.collator(splits, catalogue.codes_IL, network)
    loader = _loader(recipe, splits, collator, world)
    traits = NetworkTraits.of(network, recipe.backbone, catalogue)
    strategy = Strategy(network, recipe.chosen.sampler(_plan(recipe, splits, loader, world), traits))
    loader.fill_steps = strategy.sampler.fills_steps
    validation: Validation | ActionValidation
    if exposures is None:
        validation = _validation(recipe, splits, strategy, catalogue, world)
    else:
        users = recipe.config.valid_users
        validation = ActionValidation(exposures, splits, catalogue, world, collator, users=users)
        validation.check(recipe.config.select)
    trainer = Trainer(
        recipe.config,
        recipe.seed,
        model=model,
        strategy=strategy,
        loader=loader,
        validation=validation,
        checkpoints=checkpoints,
        world=world,
        words=recipe.words,
    )
    if resume:
        trainer.restore(resume)
    return trainer


def set_up(recipe: TrainingRecipe, checkpoints: Checkpoints) -> tuple[torch.device, dict[str, Any] | None]:
    """Set this process up as the recipe says, and return its device and what the checkpoint holds, if there is one.

    Raises:
        UserError: the recipe wants a GPU that is not there, or the checkpoint is damaged.
    """
    device = pick_device(recipe.config.device, f"{recipe.words.stage}.device")
    make_repeatable(device, recipe.config.deterministic)
    resume = checkpoints.load(device)
    _set_threads(recipe, resume)
    return device, resume


def _set_threads(recipe: TrainingRecipe, resume: Mapping[str, Any] | None) -> None:
    """Set the number of threads: what the user says, or as many as the work can use.

    Rounding depends on how many threads add up a sum, so a resumed run takes the number that it began with.
    """
    numbers = recipe.config.batch_tokens // recipe.config.accumulate * recipe.backbone.d_model  # of one activation
    share = resume["threads"] if resume else share_of_threads(numbers)
    set_threads(recipe.config.threads, share, f"{recipe.words.stage}.threads")


def _loader(recipe: TrainingRecipe, splits: Splits, collator: Collator, world: World) -> BatchLoader:
    """Build the loader of batches. Raises UserError where there is nothing to train on."""
    epochs = Epochs(splits, recipe.config.windows, recipe.seed)
    if not len(epochs):
        raise UserError(
            "there is nothing to train on",
            f"no user has two {recipe.words_of_rows} in the training part, so no target has a history",
            "choose a later split.valid_from, or bring a log with longer histories",
        )
    return BatchLoader(
        epochs,
        collator,
        world,
        budget=recipe.budget,
        input_tokens_per_item=recipe.input_tokens_per_item,
        accumulate=recipe.config.accumulate,
        fill=records(recipe.config, collator.codes_IL.device),
    )


def _validation(
    recipe: TrainingRecipe, splits: Splits, strategy: Strategy, catalogue: Catalogue, world: World
) -> Validation:
    """Build the validation. Raises UserError where nobody has a validation target."""
    times = recipe.backbone.wants_times
    validation = Validation(
        splits, strategy, catalogue, world, beam=recipe.config.beam, users=recipe.config.valid_users, times=times
    )
    key = recipe.words.key("valid_users")
    if not validation.windows and validation.sampled:
        raise UserError(
            f"none of the {len(validation.users_U):,} users in the sample for validation has a target with a history",
            "validation chooses the best weights",
            f"{f'raise {key}' if key else 'split the log otherwise'}: {validation.users_in_all:,} users have a target",
        )
    if not validation.windows:
        raise UserError(
            "no user has a validation target with a history",
            "validation chooses the best weights",
            "split the log so that some users have interactions both before and in the validation period",
        )
    return validation


def _plan(recipe: TrainingRecipe, splits: Splits, loader: BatchLoader, world: World) -> TrainingPlan:
    """Describe the run to a sampler."""
    config = recipe.config
    windows = len(loader.epochs)
    return TrainingPlan(
        items_M=np.asarray(splits.items_N),
        first_U=np.asarray(splits.offsets[:-1]),
        end_U=np.asarray(splits.train_end),
        windows=windows,
        samples_per_step=samples_per_step(
            loader.epochs, loader.budget, loader.input_tokens_per_item, recipe.all_targets
        ),
        epochs=config.max_windows / windows,
        one_per_target=config.windows != "all",
        all_targets=recipe.all_targets,
        each_target_once=config.windows == "sequences",
        max_history=splits.max_history,
        seed=recipe.seed,
        device=loader.device,
        sum=world.sum,
    )
