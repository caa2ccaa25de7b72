"""Count which encoder tokens of the validation histories the trained model keeps, whatever the strategy.

Shape legend: W windows, N items of a batch, S tokens of one item (its codes, then the separator), A ages of an item: 0
is the latest item of a history.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.distributed import World
from pipeline.machine import wait_for
from pipeline.packing.backbone import Backbone
from pipeline.packing.batch import Batch


@dataclass(frozen=True)
class KeptTokens:
    """The tokens of histories are counted by age and kind of token, over all processes.

    seconds: what the encoder took in this process before and after the pruning; None where nothing is pruned.
    """

    kept_AS: Tensor  # int64
    all_AS: Tensor  # int64
    names: Sequence[str]  # names of the S tokens
    seconds: tuple[float, float] | None

    def figures(self) -> dict[str, float]:
        """Return the keys that these counts add to timings.json."""
        figures = {"keep_rate": float(self.kept_AS.sum() / self.all_AS.sum())}
        if self.seconds:
            names = ("encode_seconds_before_pruning", "encode_seconds_after_pruning")
            figures |= dict(zip(names, self.seconds, strict=True))
        return figures

    def by_level(self) -> list[dict[str, float | str]]:
        """Return one row per code of an item, and one for the separator."""
        return [
            {"level": name, "kept": float(kept / count)}
            for name, kept, count in zip(self.names, self.kept_AS.sum(0), self.all_AS.sum(0), strict=True)
        ]

    def by_position(self) -> list[dict[str, float | str]]:
        """Return one row per age of an item, the latest first, as far back as histories go."""
        return [
            {"items_ago": age, "kept": float(kept / count)}
            for age, (kept, count) in enumerate(zip(self.kept_AS.sum(1), self.all_AS.sum(1), strict=True))
            if count
        ]


@torch.no_grad()
def count_kept_tokens(model: Backbone, batches: Iterable[Batch], max_history: int, world: World) -> KeptTokens:
    """Count the tokens of this process's batches, then add up all processes. The model is left in evaluation mode."""
    model.eval()
    names = model.token_names
    device = model.catalogue.codes_IL.device
    kept_AS = torch.zeros(max_history, len(names), dtype=torch.int64, device=device)
    all_AS = torch.zeros_like(kept_AS)
    before = 0.0
    after = 0.0
    for batch in batches:
        kept_NS, seconds = _timed(model, batch)
        before += seconds[0]
        after += seconds[1]
        age_N = _ages(batch.histories.lengths_W, len(kept_NS))
        kept_AS.index_add_(0, age_N, kept_NS.long())
        all_AS.index_add_(0, age_N, torch.ones_like(kept_NS, dtype=torch.int64))
    clock = None if model.pruner is None else (before, after)
    return KeptTokens(world.sum(kept_AS).cpu(), world.sum(all_AS).cpu(), names, clock)


def _timed(model: Backbone, batch: Batch) -> tuple[Tensor, tuple[float, float]]:
    """Return `Backbone.kept_tokens`, and the encoder's seconds before and after it prunes (0 if it never does)."""
    device = model.catalogue.codes_IL.device
    marks = list[float]()  # before the encoder, at the pruning if there is one, after the encoder

    def mark() -> None:
        wait_for(device)
        marks.append(time.perf_counter())

    mark()
    kept_NS = model.kept_tokens(batch.histories, mark)
    mark()
    return kept_NS, (marks[1] - marks[0], marks[-1] - marks[1])


def _ages(lengths_W: Tensor, items: int) -> Tensor:
    """Return the age of each item: how many items of its history come after it. Lengths 2, 3 -> 1 0 2 1 0"""
    ends_W = lengths_W.cumsum(0)
    return (
        torch.repeat_interleave(ends_W, lengths_W, output_size=items) - 1 - torch.arange(items, device=lengths_W.device)
    )
