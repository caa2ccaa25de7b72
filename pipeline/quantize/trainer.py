"""The training loop of every quantizer that gradients train: steps, checks of the reconstruction, early stopping.

Shape legend: I items, B items of a batch, L code levels, d embedding width.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.machine import make_repeatable, pick_device, share_of_threads
from pipeline.progress import Progress
from pipeline.quantize.config import QuantizeConfig

CHECK_EVERY = 50  # steps
BETTER = 1e-3  # a reconstruction counts as better when its error is lower by this share
WARM_UP = 100  # steps; without it a deep encoder may throw all items onto one code and never come back
CHUNK = 2**14  # items that are checked at once


@dataclass(frozen=True)
class EncodedBatch:
    """codes_BL int64; errors_B: squared distance of each row to its reconstruction."""

    codes_BL: Tensor
    errors_B: Tensor


class Trainable(Protocol):
    """A torch module that the loop can train."""

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> object: ...

    def loss(self, rows_Bd: Tensor) -> Tensor:
        """Mean over the batch."""
        ...

    def encode(self, rows_Bd: Tensor) -> EncodedBatch: ...

    def restart_dead(self, rows_Id: Tensor, codes_IL: Tensor, generator: torch.Generator) -> None:
        """Give each code without an item a random item's vector."""
        ...


def open_device(config: QuantizeConfig, width: int) -> torch.device:
    """Where to train on rows of this width: always with kernels that repeat, and on a CPU with no more threads than a
    batch keeps busy, so that sums do not depend on what else runs."""
    device = pick_device(config.device, "quantize.device")
    make_repeatable(device, deterministic=True)
    torch.set_num_threads(share_of_threads(config.batch_items * max((width, *config.hidden))))
    return device


def train_quantizer(model: Trainable, rows_Id: Tensor, config: QuantizeConfig, seed: int, label: str) -> None:
    """Train in place and leave the weights of the best check.

    Adam, its rate falling as a cosine: large steps bring codes into use, small ones place them. Every `CHECK_EVERY`
    steps all items are reconstructed; `config.patience` checks without a better error end it. All that is random
    follows from `seed`.

    Raises:
        UserError: the error is no longer a finite number.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config.max_steps))
    energy = float(rows_Id.double().square().sum()) or 1.0  # rows of zeros have no error either
    batches = _batches(len(rows_Id), config.batch_items, generator)
    best, best_error, stale, step = {}, math.inf, 0, 0
    with Progress(label, config.max_steps, "steps") as progress:
        while step < config.max_steps and stale < config.patience:
            steps = min(CHECK_EVERY, config.max_steps - step)
            for _ in range(steps):
                optimizer.zero_grad()
                model.loss(rows_Id[next(batches)]).backward()
                optimizer.step()
                schedule.step()
            step += steps
            codes_IL, error = measure_reconstruction(model, rows_Id, energy)
            if not math.isfinite(error):
                raise UserError(
                    f"the quantizer's error is not a finite number any more at step {step}",
                    "its weights grew without bound; nothing was written",
                    f"set quantize.learning_rate below {config.learning_rate:g}",
                )
            stale += 1
            if error < best_error:
                stale = 0 if error < (1 - BETTER) * best_error else stale
                best, best_error = {name: value.clone() for name, value in model.state_dict().items()}, error
            if config.restart_dead:
                model.restart_dead(rows_Id, codes_IL, generator)
            progress.update(steps, f"error {error:.4f}")
    model.load_state_dict(best)


@torch.no_grad()
def encode_all(model: Trainable, rows_Id: Tensor) -> EncodedBatch:
    """`encode` of all items."""
    parts = [model.encode(rows) for rows in rows_Id.split(CHUNK)]
    return EncodedBatch(torch.cat([part.codes_BL for part in parts]), torch.cat([part.errors_B for part in parts]))


def measure_reconstruction(model: Trainable, rows_Id: Tensor, energy: float) -> tuple[Tensor, float]:
    """(codes of all items, squared errors over squared lengths)."""
    encoded = encode_all(model, rows_Id)
    return encoded.codes_BL, float(encoded.errors_B.double().sum()) / energy


def dead_codes(codes_I: Tensor, codes: int) -> Tensor:
    """int64: the codes that no item has."""
    return (torch.bincount(codes_I, minlength=codes) == 0).nonzero()[:, 0]


def _rate(step: int, steps: int) -> float:
    """Share of the learning rate that a step takes."""
    return min(1, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2


def _batches(items: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of one batch after another, pass after pass in random order; the last batch of a pass may be smaller."""
    while True:
        yield from torch.randperm(items, generator=generator).split(size)
