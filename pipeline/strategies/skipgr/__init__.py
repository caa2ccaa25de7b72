"""skipgr skips tokens and sequences that the model is already sure of (strategy.py names the paper)."""

from typing import TYPE_CHECKING

from pipeline.backbones.config import WITH_ENCODER
from pipeline.strategies.skipgr.config import SkipgrConfig
from pipeline.strategies.spec import ParamsView, StrategySpec

if TYPE_CHECKING:
    from pipeline.strategies.base import EvalRule, NetworkTraits, Sampler, TrainingPlan


def _sampler(settings: SkipgrConfig, plan: "TrainingPlan", traits: "NetworkTraits") -> "Sampler":
    from pipeline.strategies.base import Sampler
    from pipeline.strategies.skipgr.strategy import SkippingSampler

    skips = settings.skips_tokens or settings.skips_sequences
    return SkippingSampler(settings, plan, traits) if skips else Sampler()


def _eval_rule(settings: SkipgrConfig, traits: "NetworkTraits") -> "EvalRule | None":
    from pipeline.strategies.skipgr.strategy import eval_rule

    return eval_rule(settings, traits)


def _check(settings: SkipgrConfig, params: ParamsView, others: tuple[str, ...]) -> None:
    if params.train.targets == "all" and (settings.skips_inputs or settings.sequence_unit == "window"):
        raise ValueError(
            "with train.targets all the items of a history are targets too: set skipgr.apply_to=loss "
            "and skipgr.sequence_unit=user"
        )
    if params.train.task == "ranking" and settings.skips_inputs:
        raise ValueError(
            f"skipgr.apply_to {settings.apply_to} leaves tokens out of histories by the entropy of codes, and "
            "train.task ranking scores actions: set skipgr.apply_to=loss"
        )
    levels = params.quantize.levels + (settings.include_digit and params.quantize.collisions == "digit")
    what = "quantize.levels, and the digit where skipgr.include_digit says so"
    if params.backbone.over_items:
        levels, what = 1, f"backbone {params.backbone.name} predicts whole items"
    if params.train.task == "ranking":
        levels, what = len(params.ingest.actions), "train.task ranking scores each column of ingest.actions"
    if settings.level_ratios and len(settings.level_ratios) != levels:
        kind = "column" if params.train.task == "ranking" else "level"
        scored = f"{levels} {kind}s that are scored" if levels > 1 else f"the one {kind} that is scored"
        raise ValueError(
            f"skipgr.level_ratios has {len(settings.level_ratios)} entries for {scored} ({what}): set "
            f"skipgr.level_ratios=[], by which skipgr.token_ratio counts for each {kind}, or a ratio for each"
        )
    if settings.skips_inputs and settings.input_unit == "token":
        _check_single_tokens(settings, params, others)


def _check_single_tokens(settings: SkipgrConfig, params: ParamsView, others: tuple[str, ...]) -> None:
    """Refuse to skip single tokens of a history if the strategy, the network or the batches count it by items."""
    if others:
        raise ValueError(
            f"strategy {params.strategy}: {others[0]} counts a history by items, so skipgr may not skip "
            f"single tokens of it (skipgr.apply_to {settings.apply_to}, skipgr.input_unit token): "
            "set skipgr.input_unit=item, or skipgr.apply_to=loss"
        )
    if params.backbone.name not in WITH_ENCODER:
        raise ValueError(
            f"skipgr.input_unit token needs an encoder, and backbone {params.backbone.name} has none: "
            "set skipgr.input_unit=item, or skipgr.apply_to=loss"
        )
    if params.train.batching == "padded":
        raise ValueError(
            "skipgr.input_unit token drops tokens that padding would fill again: set "
            "train.batching=packed, skipgr.input_unit=item, or skipgr.apply_to=loss"
        )


SPEC = StrategySpec(
    name="skipgr",
    summary="tokens and sequences that the model is already sure of are skipped",
    settings=SkipgrConfig,
    sampler=_sampler,
    eval_rule=_eval_rule,
    check=_check,
    composes_with=frozenset({"rastp", "intrr"}),
)
