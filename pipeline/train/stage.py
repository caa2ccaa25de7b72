"""Stage 5: SIDs and splits in, a trained generator and its loss curve out. The files of training are touched here only.

Runs in one process, or in several under `torchrun --nproc-per-node N -m pipeline train`; then the first one writes.
"""

import csv
import dataclasses
import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline import __version__
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
    write_bytes,
    write_json,
    write_tensors,
)
from pipeline.catalogue import Catalogue
from pipeline.distributed import World, joined
from pipeline.errors import UserError
from pipeline.generator import save_generator
from pipeline.machine import make_repeatable, peak_flops, peak_memory_gib, pick_device, share_of_threads
from pipeline.strategies import build_strategy
from pipeline.strategies.base import Course, Rows
from pipeline.strategies.config import settings_of, tokens_per_item
from pipeline.train.flops import flops_per_window
from pipeline.train.kept_tokens import survey
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.feed import Feed
from pipeline.training.loop import State, Trainer
from pipeline.training.steps import samples_per_step
from pipeline.training.validation import Validation
from pipeline.training.windows import Passes

if TYPE_CHECKING:
    from pipeline.config import Params

# These change how fast or how safely a run goes, not what it learns, so a checkpoint outlives a change of them.
NO_INFLUENCE = ("threads", "checkpoint_every")


def run(
    params: "Params",
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
    config, read_splits, read_sids = params.train, Splits.read(splits), Sids.read(sids)
    _check(params, read_splits, read_sids)
    inputs = {"sids": fingerprint(sids / "sids.parquet"), "splits": fingerprint(splits)}
    checkpoints = Checkpoints(scratch, fingerprint(_influences(params), inputs))
    device = pick_device(config.device)
    make_repeatable(device, config.deterministic)
    resume = checkpoints.load(device)
    # Sums depend on how many threads add them, so a resumed run keeps the number that it began with.
    numbers = config.batch_tokens // config.accumulate * params.backbone.d_model
    torch.set_num_threads(config.threads or (resume["threads"] if resume else share_of_threads(numbers)))
    with joined(device) as world:
        catalogue = Catalogue(read_sids.codes_IL, read_sids.widths, read_sids.digit).to(device)
        trainer = _trainer(params, read_splits, catalogue, read_sids.codebooks, checkpoints, world, resume)
        if world.leads:
            _announce(trainer, device, world)
        state = trainer.run()
        kept = survey(trainer.evaluated, trainer.validation.batches, read_splits.max_history, world)
        learned, unseen = trainer.strategy.learned(), trainer.strategy.unseen()
        flops = flops_per_window(
            params, _sections(params), read_splits, read_sids, trainer.feed.first_windows(), trainer.feed.pad_to
        )
        timings = _timings(trainer, state, device, flops) | kept.figures() | trainer.strategy.figures()
        if world.leads:
            items = read_parquet(Interactions(interactions).items)
            extra = {
                "strategy": params.strategy,
                **_settings(params),
                "pad_to": trainer.feed.pad_to,
                "max_history": read_splits.max_history,
                "seed": params.seed,
                "dataset": params.dataset,
                "train": _influences(params)["train"],
                "fingerprints": inputs,
            }
            save_generator(output, trainer.evaluated, catalogue, _named(items), extra, unseen)
            write_json(reports / "timings.json", timings)
            write_bytes(reports / "history.csv", _csv(state.history))
            write_bytes(reports / "kept_by_level.csv", _csv(kept.by_level()))
            write_bytes(reports / "kept_by_position.csv", _csv(kept.by_position()))
            _write_skipped(reports, trainer.strategy.tables(state.pass_index + 1, catalogue.levels), learned)
            checkpoints.delete()
            print(
                f"train: best at step {state.best_step} of {state.step}, {config.select} "
                f"{abs(state.best_score):.4f} on validation, {timings['windows_per_second']:,.0f} windows/s"
                + (f" of {state.samples / state.windows:.1f} targets" if config.targets == "all" else "")
            )
    return timings


def _trainer(
    params: "Params",
    splits: Splits,
    catalogue: Catalogue,
    codebooks: Mapping[str, np.ndarray],
    checkpoints: Checkpoints,
    world: World,
    resume: dict[str, Any] | None,
) -> Trainer:
    config, pad_to = params.train, _pad_to(params, splits, catalogue.levels)
    strategy = build_strategy(params.strategy, _sections(params), pad_to)
    torch.manual_seed(params.seed)
    model = strategy.build_model(params.backbone, catalogue)
    strategy.start_from(model, codebooks)
    passes = Passes(splits, config.windows, params.seed)
    if not len(passes):
        raise UserError(
            "there is nothing to train on",
            "no user has two interactions in the training part, so no target has a history",
            "lower ingest.k_core's filter or choose an earlier split",
        )
    per_item = tokens_per_item(params.strategy, catalogue.levels, params.backbone.separators)
    # The budget counts whole Semantic IDs, so that a step has the same windows under every strategy.
    budget = config.batch_tokens * per_item // _tokens_per_item(params, catalogue.levels)
    feed = Feed(
        passes,
        np.asarray(splits.items_N),
        catalogue.codes_IL,
        dataclasses.replace(config, batch_tokens=budget),
        world,
        per_item,
        pad_to,
        np.asarray(splits.timestamps_N) if params.backbone.wants_times else None,
        strategy.items,
    )
    strategy.begin(_course(params, splits, feed, world))
    validation = Validation(splits, strategy, catalogue, world, config.beam, params.backbone.wants_times)
    if not validation.windows:
        raise UserError(
            "no user has a validation target with a history",
            "the best checkpoint is chosen on validation",
            "split the log so that some users have interactions both before and in the validation period",
        )
    return Trainer(config, params.seed, model, strategy, feed, validation, checkpoints, world, resume)


def _course(params: "Params", splits: Splits, feed: Feed, world: World) -> Course:
    config, windows = params.train, len(feed.passes)
    return Course(
        items_N=np.asarray(splits.items_N),
        first_U=np.asarray(splits.offsets[:-1]),
        end_U=np.asarray(splits.train_end),
        windows=windows,
        samples_per_step=samples_per_step(feed.passes, feed.budget, feed.tokens_per_item, feed.all_targets),
        passes=config.max_windows / windows,
        one_per_target=config.windows != "all",
        all_targets=feed.all_targets,
        once=config.windows == "sequences",
        max_history=splits.max_history,
        seed=params.seed,
        device=feed.codes_IL.device,
        sum=world.sum,
    )


def _write_skipped(reports: Path, tables: Mapping[str, Rows], learned: dict[str, np.ndarray]) -> None:
    """passes.csv, and the other tables and what was learned into skipped/, which holds nothing of an earlier run."""
    write_bytes(reports / "passes.csv", _csv(tables["passes"]))
    shutil.rmtree(reports / "skipped", ignore_errors=True)
    for name, rows in tables.items():
        if name != "passes":
            write_bytes(reports / "skipped" / f"{name}.csv", _csv(rows))
    if learned:
        write_tensors(reports / "skipped" / "store.safetensors", learned)


def _check(params: "Params", splits: Splits, sids: Sids) -> None:
    """Whether the inputs fit each other and the budget fits a history."""
    if len(sids.codes_IL) != splits.summary["items"]:
        raise UserError(
            f"there are {len(sids.codes_IL)} Semantic IDs for {splits.summary['items']} items",
            "data/sids and data/splits were made from different logs",
            "run `dvc repro`",
        )
    config, longest = params.train, splits.max_history * _tokens_per_item(params, len(sids.widths))
    if config.batch_tokens < longest:
        raise UserError(
            f"train.batch_tokens is {config.batch_tokens}, but one history may take {longest} positions",
            f"{splits.max_history} items (split.max_history) of {longest // splits.max_history} positions",
            "raise train.batch_tokens or lower split.max_history",
        )
    if config.batching == "padded" and 0 < config.pad_to < longest:
        raise UserError(
            f"train.pad_to is {config.pad_to}, but one history may take {longest} positions",
            "a padded window must hold the longest history",
            f"set it to 0, or to {longest} or more",
        )


def _tokens_per_item(params: "Params", levels: int) -> int:
    """Positions of one item's whole Semantic ID."""
    return levels + params.backbone.separators


def _pad_to(params: "Params", splits: Splits, levels: int) -> int:
    if params.train.batching == "packed":
        return 0
    return params.train.pad_to or splits.max_history * _tokens_per_item(params, levels)


def _influences(params: "Params") -> dict[str, Any]:
    """Every parameter that shapes the result of training."""
    train = {key: value for key, value in dataclasses.asdict(params.train).items() if key not in NO_INFLUENCE}
    return {
        "version": __version__,
        "seed": params.seed,
        "strategy": params.strategy,
        "train": train,
        "backbone": dataclasses.asdict(params.backbone),
        **_settings(params),
    }


def _sections(params: "Params") -> dict[str, Any]:
    """The sections of params.yaml that strategies read."""
    return {"rastp": params.rastp, "intrr": params.intrr, "skipgr": params.skipgr}


def _settings(params: "Params") -> dict[str, Any]:
    """Those of them that the chosen strategy reads, as plain values."""
    return {
        name: dataclasses.asdict(section) for name, section in settings_of(params.strategy, _sections(params)).items()
    }


def _announce(trainer: Trainer, device: torch.device, world: World) -> None:
    parameters = sum(p.numel() for p in trainer.model.parameters())
    where = f"on {device.type}" + (f", {torch.get_num_threads()} threads" if device.type == "cpu" else "")
    processes = f", {world.size} processes" if world.size > 1 else ""
    resumed = f", resumed at step {trainer.state.step}" if trainer.state.step else ""
    print(
        f"train: {parameters:,} parameters, {len(trainer.feed.passes):,} windows a pass, {where}{processes}{resumed}",
        flush=True,
    )


def _timings(trainer: Trainer, state: State, device: torch.device, flops: float) -> dict[str, Any]:
    """Training seconds are those of optimizer steps without compilation; wall seconds count everything."""
    positions = state.windows * trainer.feed.pad_to if trainer.feed.pad_to else state.tokens
    rate, at_most = flops * state.windows / state.train_seconds, peak_flops(device)
    shares = {} if at_most is None else {"share_of_peak": rate / at_most / trainer.world.size}
    return {
        "train_seconds": state.train_seconds,
        "compile_seconds": state.compile_seconds,
        "wall_seconds": state.wall_seconds,
        "windows_per_second": state.windows / state.train_seconds,
        "samples_per_second": state.samples / state.train_seconds,
        "tokens_per_second": state.tokens / state.train_seconds,
        "peak_memory_gib": peak_memory_gib(device),
        "flops_per_window": flops,
        "flops_per_second": rate,
        **shares,
        "windows_trained": state.windows,
        "samples_trained": state.samples,
        "tokens_trained": state.tokens,
        "best_step": state.best_step,
        "tokens_per_step": state.tokens / state.step,
        "tokens_per_step_after_pruning": state.tokens_kept / state.step,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "real_token_share": state.tokens / positions,
    }


def _named(items: Any) -> Any:
    """item_id, raw_id and, where the dataset has it, title."""
    return items[[column for column in ("item_id", "raw_id", "title") if column in items]]


def _csv(rows: Sequence[Mapping[str, float | str]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: value if isinstance(value, str) else round(value, 6) for key, value in row.items()} for row in rows
    )
    return text.getvalue().encode()
