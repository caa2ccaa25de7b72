"""Measure how much the trained model would learn from tokens that it is sure of, and from tokens that it is not.

SkipGR's Figure 2: the norm of the gradient of the mean loss of each quartile of tokens by entropy. Levels differ in
entropy, and this alone can make the picture, so each level is shown apart too. The deduplication digit is left out.

Shape legend: W windows, L code levels, E levels without the digit, V codes of one level, G tokens of a group (a level,
or all levels).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.artifacts import GENERATOR, INTERACTIONS, REPORTS, SPLITS, Splits, write_bytes
from pipeline.errors import UserError
from pipeline.evaluate.recommend import model_and_history
from pipeline.evaluate.typed_history import Entry
from pipeline.figures import drawing, svg
from pipeline.generator import Generator, load_generator
from pipeline.machine import pick_device
from pipeline.ops.entropy import entropy
from pipeline.packing.backbone import Backbone
from pipeline.packing.batch import Batch
from pipeline.progress import Progress
from pipeline.strategies.base import Network
from pipeline.strategies.registry import choose_strategies
from pipeline.training.collate import Collator
from pipeline.training.steps import Step
from pipeline.training.windows import Epochs, Windows

QUARTILES = 4
ALL = "all levels"


@dataclass(frozen=True)
class Quartile:
    """A quartile holds a fourth of one batch's tokens of a level, or of all levels, by entropy; 1 is the surest."""

    level: str
    quartile: int
    entropy: float  # mean, in nats
    loss: float  # mean, in nats
    gradient_norm: float


def gradients_by_entropy(
    *,
    batches: int = 20,
    windows: int = 256,
    splits: Path = SPLITS,
    generator: Path = GENERATOR,
    reports: Path = REPORTS,
) -> pd.DataFrame:
    """Measure on the first windows of training, without dropout, and write reports/gradients.csv and gradients.svg.

    Returns:
        One row per level and quartile: means over batches, and the standard error of the mean of the norm.

    Raises:
        UserError: an input is missing.
    """
    held = Splits.read(splits)
    device = pick_device("auto")
    loaded = load_generator(generator, device)
    loaded.require_items(generator)
    epochs = Epochs(held, loaded.config["train"]["windows"], loaded.config["seed"])
    times_N = held.seconds() if loaded.model.wants_times else None
    actions_NA = held.actions_NA if loaded.catalogue.action_sizes else None
    collate = _collator(loaded, np.asarray(held.items_N), times_N, actions_NA, held.max_history)
    found: list[Quartile] = []
    starts = range(0, min(batches * windows, len(epochs)), windows)
    with Progress("gradients", len(starts), "batches", brief=True) as progress:
        for first in starts:
            found += _measured(loaded, collate, epochs.take(0, first, first + windows))
            progress.update(1)
    return _written(found, reports)


def gradients_of_history(
    *,
    user: str | None = None,
    history: Sequence[Entry] | None = None,
    interactions: Path = INTERACTIONS,
    splits: Path = SPLITS,
    generator: Path = GENERATOR,
    output: Path = REPORTS,
    reports: Path = REPORTS,
) -> pd.DataFrame:
    """Measure on the windows of one history: each item but the first is a target, after the items before it.

    Args:
        user: as in `recommend`.
        history: as in `recommend`.
        output: folder of gradients.csv and gradients.svg.
        reports: must be about the model, if there are any.

    Returns:
        One row per level and quartile, of one batch.

    Raises:
        UserError: as in `recommend`, or the history has fewer than five items.
    """
    loaded, known = model_and_history(
        user, history, interactions=interactions, splits=splits, generator=generator, reports=reports
    )
    targets = np.arange(1, len(known.items))
    if len(targets) < QUARTILES:
        raise UserError(
            f"the history has {len(known.items)} items",
            f"every quartile needs a target, and each of the {QUARTILES} targets an item before it",
            f"name a history of {QUARTILES + 1} items or more",
        )
    collate = _collator(loaded, known.items, known.times, known.actions, int(loaded.config["max_history"]))
    return _written(_measured(loaded, collate, Windows(np.zeros_like(targets), targets)), output)


def _collator(
    loaded: Generator, items_N: np.ndarray, times_N: np.ndarray | None, actions_NA: np.ndarray | None, longest: int
) -> Collator:
    codes_IL, pad_to = loaded.model.catalogue.codes_IL, loaded.config["pad_to"]
    return Collator(items_N, codes_IL, times_M=times_N, actions_MA=actions_NA, pad_to=pad_to, longest=longest)


def _measured(loaded: Generator, collate: Collator, windows: Windows) -> list[Quartile]:
    """Return the quartiles of one batch of these windows."""
    network = choose_strategies(loaded.config["strategy"], loaded.config).network(loaded.config["pad_to"])
    step = Step(0, 0, windows, np.ones(len(windows), np.float32))
    return [*quartiles(loaded.model, network, collate(step, np.arange(len(windows))))]


def _written(found: list[Quartile], folder: Path) -> pd.DataFrame:
    """Return the table of the quartiles, and write it and its drawing."""
    table = _summary(found)
    write_bytes(folder / "gradients.csv", table.round(6).to_csv(index=False, lineterminator="\n").encode())
    write_bytes(folder / "gradients.svg", _drawing(table))
    return table


def quartiles(model: Backbone, network: Network, batch: Batch) -> Iterator[Quartile]:
    """Measure the quartiles of one batch, over all levels together, then of each level."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    logits, _ = network.logits(model, batch)
    entropy_WE, loss_WE = _entropies_and_losses(logits[: model.catalogue.bucket_levels], batch)
    levels = entropy_WE.shape[1]
    groups = {ALL: slice(None), **{f"level {level + 1}": slice(level, level + 1) for level in range(levels)}}
    for name, columns in groups.items():
        entropy_G = entropy_WE[:, columns].flatten()
        loss_G = loss_WE[:, columns].flatten()
        order_G = entropy_G.argsort(stable=True)
        for number, rows in enumerate(order_G.tensor_split(QUARTILES), start=1):
            loss = loss_G[rows].mean()
            slopes = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            # The norm over all parameters is the norm of their norms.
            norm = torch.stack([slope.norm() for slope in slopes if slope is not None]).norm()
            yield Quartile(name, number, float(entropy_G[rows].mean()), float(loss.detach()), float(norm))


def _entropies_and_losses(logits: list[Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the entropy (Eq. 11) and the loss of each token, in nats, [W, E] each; entropy has no gradient."""
    logp = [F.log_softmax(logits_WV.float(), 1) for logits_WV in logits]
    entropy_WE = torch.stack([entropy(logp_WV) for logp_WV in logp], 1).detach()
    loss_WE = torch.stack(
        [-logp_WV.gather(1, batch.codes_WL[:, level, None])[:, 0] for level, logp_WV in enumerate(logp)], 1
    )
    return entropy_WE, loss_WE


def _summary(found: list[Quartile]) -> pd.DataFrame:
    """Average the batches' quartiles: one row per level and quartile."""
    grouped = pd.DataFrame([vars(row) for row in found]).groupby(["level", "quartile"], sort=False)
    table = grouped[["entropy", "loss", "gradient_norm"]].mean().reset_index()
    table["standard_error"] = grouped["gradient_norm"].sem().fillna(0.0).to_numpy()
    table["batches"] = grouped.size().to_numpy()
    return table


def _drawing(table: pd.DataFrame) -> bytes:
    """Draw one line per level over the quartiles, with standard errors."""
    with drawing() as axes:
        for level, rows in table.groupby("level", sort=False):
            axes.errorbar(
                rows["quartile"],
                rows["gradient_norm"],
                rows["standard_error"],
                marker="o",
                capsize=3,
                label=str(level),
                color="black" if level == ALL else None,
            )
        axes.set(
            xlabel="quartile of tokens by entropy, the surest first",
            ylabel="norm of the mean loss's gradient",
            xticks=range(1, QUARTILES + 1),
        )
        axes.legend(frameon=False)
        return svg(axes).encode()
