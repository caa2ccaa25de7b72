"""Train a quantizer by gradient steps, with checks of the reconstruction and early stopping.

Shape legend: I items, B items of a batch, L levels, d width of the embeddings.
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
WARM_UP = 100  # steps; without them a deep encoder may map all items to one code and never recover
CHUNK = 2**14  # items that are encoded at once


@dataclass(frozen=True)
class EncodedBatch:
    """The codes of a batch, int64 [B, L], and errors_B, the squared distance of each row to its reconstruction."""

    codes_BL: Tensor
    errors_B: Tensor


class Trainable(Protocol):
    """A torch module that `train_quantizer` can train."""

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> object: ...

    def loss(self, rows_Bd: Tensor) -> Tensor:
        """Return the mean loss over the batch, a scalar."""
        ...

    def encode(self, rows_Bd: Tensor) -> EncodedBatch:
        """Return codes and errors of a batch."""
        ...

    def restart_dead(self, rows_Id: Tensor, codes_IL: Tensor, generator: torch.Generator) -> None:
        """Give each code without an item the vector of a random item."""
        ...


def open_device(config: QuantizeConfig, width: int) -> torch.device:
    """Choose the device, make its kernels repeatable and set the number of CPU threads.

    A CPU gets no more threads than a batch of rows of this width employs, so that sums do not depend on what else runs.
    """
    device = pick_device(config.device, "quantize.device")
    make_repeatable(device, deterministic=True)
    torch.set_num_threads(share_of_threads(config.batch_items * max((width, *config.hidden))))
    return device


def train_quantizer(model: Trainable, rows_Id: Tensor, config: QuantizeConfig, seed: int, label: str) -> None:
    """Train the model in place and leave it with the weights of the best check.

    The optimizer is Adam with a learning rate that falls as a cosine: large steps bring codes into use, small steps
    refine them. Every `CHECK_EVERY` steps all items are reconstructed, and `config.patience` checks without a better
    error end the training. All that is random follows from `seed`.

    Args:
        label: what the progress line calls the work.

    Raises:
        UserError: the error is no longer a finite number.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config.max_steps))
    energy = float(rows_Id.double().square().sum()) or 1.0  # rows of zeros: the error is 0 whatever it is divided by
    batches = _batches(len(rows_Id), config.batch_items, generator)
    best: dict[str, Tensor] = {}  # weights of the best check
    best_error = math.inf
    stale = 0  # checks since the error was last clearly better
    step = 0
    with Progress(label, config.max_steps, "steps") as progress:
        while step < config.max_steps and stale < config.patience:
            steps = min(CHECK_EVERY, config.max_steps - step)
            for _ in range(steps):
                optimizer.zero_grad()
                torch.autograd.backward(model.loss(rows_Id[next(batches)]))
                optimizer.step()
                schedule.step()
            step += steps

            # Check: reconstruct all items.
            codes_IL, error = measure_reconstruction(model, rows_Id, energy)
            if not math.isfinite(error):
                raise UserError(
                    f"the quantizer's error is not a finite number any more at step {step}",
                    "the quantizer's weights grew without bound; nothing was written",
                    f"set quantize.learning_rate below {config.learning_rate:g}",
                )

            # Any better error saves the weights, but only a clearly better one restores the patience: after 0.5, an
            # error of 0.4996 is saved and counts as stale (BETTER is 0.1%).
            stale += 1
            if error < best_error:
                stale = 0 if error < (1 - BETTER) * best_error else stale
                best = {name: value.clone() for name, value in model.state_dict().items()}
                best_error = error
            if config.restart_dead:
                model.restart_dead(rows_Id, codes_IL, generator)
            progress.update(steps, f"error {error:.4f}")
    model.load_state_dict(best)


@torch.no_grad()
def encode_all(model: Trainable, rows_Id: Tensor) -> EncodedBatch:
    """Return codes and errors of all items."""
    parts = [model.encode(rows) for rows in torch.split(rows_Id, CHUNK)]
    return EncodedBatch(torch.cat([part.codes_BL for part in parts]), torch.cat([part.errors_B for part in parts]))


def measure_reconstruction(model: Trainable, rows_Id: Tensor, energy: float) -> tuple[Tensor, float]:
    """Return (codes of all items [I, L], squared errors over `energy`, the sum of squared lengths)."""
    encoded = encode_all(model, rows_Id)
    return encoded.codes_BL, float(encoded.errors_B.double().sum()) / energy


def dead_codes(codes_I: Tensor, codes: int) -> Tensor:
    """Return the codes that no item has, int64, ascending."""
    return (torch.bincount(codes_I, minlength=codes) == 0).nonzero()[:, 0]


def _rate(step: int, steps: int) -> float:
    """Return the factor of the learning rate at a step: a linear warm-up times a falling cosine."""
    return min(1, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2


def _batches(items: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the rows of one batch after another, without end; each epoch is in a new random order.

    The last batch of an epoch may be smaller.
    """
    while True:
        yield from torch.split(torch.randperm(items, generator=generator), size)
