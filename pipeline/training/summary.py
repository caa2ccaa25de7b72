"""Say how a training begins and ends, and what it took."""

from collections.abc import Mapping
from typing import Any

import torch

from pipeline.machine import peak_flops, peak_memory_gib
from pipeline.packing.backbone import evaluating
from pipeline.printing import say
from pipeline.training.loop import Trainer


def announce(trainer: Trainer, names: str = "") -> None:
    """Print one line before training, and one before it of the items' names where `names` says something."""
    if names:
        say(f"{trainer.words.stage}: {names}")
    device = trainer.device
    where = f"on {device.type}" + (f", {torch.get_num_threads()} threads" if device.type == "cpu" else "")
    processes = f", {trainer.world.size} processes" if trainer.world.size > 1 else ""
    resumed = f", resumed at step {trainer.state.step}" if trainer.state.step else ""
    windows = f"{len(trainer.loader.epochs):,} windows per epoch"
    say(f"{trainer.words.stage}: {_parameters(trainer):,} parameters, {windows}, {where}{processes}{resumed}")
    validation = trainer.validation
    if validation.sampled:
        key = trainer.words.key("valid_users")
        say(
            f"{trainer.words.stage}: validation takes a sample of {len(validation.users_U):,} of "
            f"{validation.users_in_all:,} users, the same in each run on this split" + (f" ({key})" if key else "")
        )


def conclude(trainer: Trainer, timings: Mapping[str, Any]) -> None:
    """Print one line after training, and what the strategy has to say."""
    state = trainer.state
    config = trainer.config
    targets = f" of {state.samples / state.windows:.1f} targets" if config.targets == "all" else ""
    say(
        f"{trainer.words.stage}: best at step {state.best_step} of {state.step}, {config.select} "
        f"{abs(state.best_score):.4f} on validation, {timings['windows_per_second']:,.0f} windows/s{targets}; "
        f"validation took {state.valid_seconds / state.wall_seconds:.0%} of the time"
    )
    by_patience = trainer.windows_done < config.max_windows
    with evaluating(trainer.evaluated):
        lines = trainer.strategy.network.remarks(trainer.evaluated)
    for line in (*lines, *trainer.strategy.sampler.report.remarks(by_patience)):
        say(f"{trainer.words.stage}: {line}")


def _parameters(trainer: Trainer) -> int:
    return sum(p.numel() for p in trainer.model.parameters())


def timings_of(trainer: Trainer, flops: float) -> dict[str, Any]:
    """Return the figures of a finished run, as timings.json holds them.

    Training seconds are those of optimizer steps without compilation, `valid_seconds` those of validation; wall seconds
    count everything. `training` is the fingerprint of settings, inputs and code; `start`, and `times` for each row of
    the history, are in seconds since 1970. `valid_users` and `valid_users_in_all` are there only where validation takes
    a sample of the users.

    Args:
        flops: floating-point operations of a window, forward and backward.
    """
    state = trainer.state
    pad_to = trainer.loader.collator.pad_to
    positions = state.windows * pad_to if pad_to else state.tokens  # padding included
    rate = flops * state.windows / state.train_seconds
    peak = peak_flops(trainer.device)  # None: not known for this device
    shares = {} if peak is None else {"share_of_peak": rate / peak / trainer.world.size}
    validation = trainer.validation
    sampled = {"valid_users": len(validation.users_U), "valid_users_in_all": validation.users_in_all}
    # A window with one target is one sample: that count would stand here twice.
    samples = {"samples_per_second": state.samples / state.train_seconds, "samples_trained": state.samples}
    return {
        "train_seconds": state.train_seconds,
        "compile_seconds": state.compile_seconds,
        "valid_seconds": state.valid_seconds,
        "wall_seconds": state.wall_seconds,
        "windows_per_second": state.windows / state.train_seconds,
        "tokens_per_second": state.tokens / state.train_seconds,
        "peak_memory_gib": peak_memory_gib(trainer.device),
        "flops_per_window": flops,
        "flops_per_second": rate,
        **shares,
        "windows_trained": state.windows,
        "tokens_trained": state.tokens,
        "best_step": state.best_step,
        "tokens_per_step": state.tokens / state.step,
        "tokens_per_step_after_pruning": state.tokens_kept / state.step,
        "parameters": _parameters(trainer),
        "real_token_share": state.tokens / positions,
        **(samples if trainer.config.targets == "all" else {}),
        **(sampled if validation.sampled else {}),
        "training": trainer.checkpoints.folder.name,
        "start": state.start,
        "times": state.times,
    }
