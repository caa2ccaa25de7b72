"""Which encoder tokens the trained model keeps of the validation histories, whatever the strategy.

Shape legend: N items of a batch, S tokens of one item (its codes, then the separator), A ages of an item: 0 is the
latest of its history.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from pipeline.distributed import World
from pipeline.packing.batch import Batch

if TYPE_CHECKING:
    from pipeline.backbones import Backbone


@dataclass(frozen=True)
class Kept:
    """Counts of tokens, over all processes. seconds: this process's, of the encoder before and after the pruning."""

    kept_AS: Tensor
    all_AS: Tensor
    names: Sequence[str]  # of the S tokens
    seconds: tuple[float, float] | None  # None where nothing is pruned

    def figures(self) -> dict[str, float]:
        """Keys of timings.json."""
        figures = {"keep_rate": float(self.kept_AS.sum() / self.all_AS.sum())}
        if self.seconds:
            names = ("encode_seconds_before_pruning", "encode_seconds_after_pruning")
            figures |= dict(zip(names, self.seconds, strict=True))
        return figures

    def by_level(self) -> list[dict[str, float | str]]:
        """One row per code of an item, and one for the separator."""
        return [
            {"level": name, "kept": float(kept / count)}
            for name, kept, count in zip(self.names, self.kept_AS.sum(0), self.all_AS.sum(0), strict=True)
        ]

    def by_position(self) -> list[dict[str, float | str]]:
        """One row per place of an item in its history, the latest first, as far back as there are histories."""
        return [
            {"items_ago": age, "kept": float(kept / count)}
            for age, (kept, count) in enumerate(zip(self.kept_AS.sum(1), self.all_AS.sum(1), strict=True))
            if count
        ]


@torch.no_grad()
def survey(model: nn.Module, batches: Sequence[Batch], max_history: int, world: World) -> Kept:
    """Count over this process's batches, then over all processes. The model is left in evaluation mode."""
    backbone = cast("Backbone", model.eval())
    kept_AS = torch.zeros(
        max_history, len(backbone.token_names), dtype=torch.int64, device=backbone.catalogue.codes_IL.device
    )
    all_AS, clock = torch.zeros_like(kept_AS), _Clock(backbone)
    for batch in batches:
        kept_NS = clock.time(backbone, batch)
        age_N = _ages(batch.histories.lengths_W, len(kept_NS))
        kept_AS.index_add_(0, age_N, kept_NS.long())
        all_AS.index_add_(0, age_N, torch.ones_like(kept_NS, dtype=torch.int64))
    return Kept(world.sum(kept_AS).cpu(), world.sum(all_AS).cpu(), backbone.token_names, clock.seconds)


def _ages(lengths_W: Tensor, items: int) -> Tensor:
    """How many items of its history come after each item."""
    ends_W = lengths_W.cumsum(0)
    return (
        torch.repeat_interleave(ends_W, lengths_W, output_size=items) - 1 - torch.arange(items, device=lengths_W.device)
    )


class _Clock:
    """Seconds of the encoder up to the point where tokens are dropped, and from there on."""

    def __init__(self, model: "Backbone"):
        self.seconds: tuple[float, float] | None = (0.0, 0.0) if model.shortener else None
        self.device = model.catalogue.codes_IL.device

    def time(self, model: "Backbone", batch: Batch) -> Tensor:
        """`model.kept_tokens`, timed."""
        original = model.shortener
        if original is None or self.seconds is None:
            return model.kept_tokens(batch.histories)
        marks = [self._now()]
        model.shortener = cast(Any, _Marking(original, lambda: marks.append(self._now())))
        try:
            kept_NS = model.kept_tokens(batch.histories)
        finally:
            model.shortener = original
        marks.append(self._now())
        self.seconds = (self.seconds[0] + marks[1] - marks[0], self.seconds[1] + marks[2] - marks[1])
        return kept_NS

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class _Marking:
    """A shortener that takes the time when it is reached."""

    def __init__(self, original: Any, mark: Any):
        self.original, self.mark = original, mark

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)

    def __call__(self, *args: Any) -> Any:
        self.mark()
        return self.original(*args)
