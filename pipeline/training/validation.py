"""Measure loss and ranking on the validation targets of all users or of a sample, divided among the processes.

The sample depends on the users alone, not on the seed of a run, so that the runs on a split are validated on the same
users. Whatever is held per user is held of the sample only.

Shape legend: W windows, N items of their histories, L levels; local: M interactions of the splits, flat, U users of the
validation, S tokens of one item.
"""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.artifacts import Splits
from pipeline.catalogue import Catalogue
from pipeline.decoding.ranking import Ranker, windows_at_once
from pipeline.distributed import World
from pipeline.hashing import sample_rows
from pipeline.metrics import summarise
from pipeline.ops.compiling import compile_kernels_of
from pipeline.packing.backbone import Backbone, evaluating
from pipeline.packing.batch import Batch, Selected
from pipeline.packing.histories import slices
from pipeline.packing.kept import EvalSkips
from pipeline.progress import Progress
from pipeline.strategies.base import Strategy
from pipeline.training.collate import Collator
from pipeline.training.steps import Step
from pipeline.training.windows import Windows

PURPOSE = 1  # keys the hash that draws the users
COMPILED = 32  # batches whose kernels are compiled together; the kernels of later ones are nearly all the same
BATCH = {"cpu": 256, "cuda": 2048}  # windows of a batch; without gradients it fits wherever training does


class Validation:
    """Measure models on the validation targets.

    Args:
        beam: beam width of the ranking, which is constrained to the catalogue.
        users: size of the sample of users; 0, or more than have a validation target: all of these.
        times: the backbone wants to know when the items of a history came.
    """

    def __init__(
        self,
        splits: Splits,
        strategy: Strategy,
        catalogue: Catalogue,
        world: World,
        *,
        beam: int,
        users: int = 0,
        times: bool = False,
    ):
        self.strategy = strategy
        self.catalogue = catalogue
        self.world = world
        self.device = catalogue.codes_IL.device
        times_M = splits.seconds() if times else None
        actions_MA = splits.actions_NA if catalogue.action_sizes else None
        self.collate = Collator(np.asarray(splits.items_N), catalogue.codes_IL, times_M=times_M, actions_MA=actions_MA)
        users_U, positions_U = splits.targets("valid")
        self.users_in_all = len(users_U)
        drawn = sample_rows(users_U, users, PURPOSE)
        self.users_U = users_U[drawn]
        positions_U = positions_U[drawn]
        lengths_U = np.minimum(positions_U - np.asarray(splits.offsets)[self.users_U], splits.max_history)
        # By length, so that a batch holds histories of about equal length.
        rows = np.argsort(lengths_U, kind="stable")
        rows = rows[lengths_U[rows] > 0]  # a target without history has no loss, and ranking counts it as a miss
        self._windows = Windows((positions_U - lengths_U)[rows], positions_U[rows])
        self.windows = len(self._windows)
        self._share_W = world.share(self._windows.lengths_W)  # the windows whose loss this process computes
        self._share_U = world.share(lengths_U)  # the users that it ranks
        self.items = int(self._windows.lengths_W.sum())  # of all histories
        self._cold = True  # the first loss compiles kernels
        self.ranker = Ranker(
            catalogue,
            splits,
            "valid",
            beam=beam,
            batch_users=BATCH[self.device.type],
            users=self.users_U[self._share_U],
        )

    @property
    def sampled(self) -> bool:
        """Return whether some users with a validation target are left out."""
        return len(self.users_U) < self.users_in_all

    def batches(self, eval_skips: EvalSkips | None = None) -> Iterator[Batch]:
        """Make this process's share of the batches, one after another; all windows together stand for the one step."""
        windows = self._windows
        size = windows_at_once(self.catalogue, BATCH[self.device.type])
        selected = self._selected(eval_skips) if eval_skips else None
        step = Step(0, 0, windows, np.ones(len(windows), np.float32), selected)
        share_W = self._share_W
        for chunk in (share_W[i : i + size] for i in range(0, len(share_W), size)):
            # All codes of a target count, and a strategy learns nothing from it
            yield replace(self.collate(step, chunk), slots_W=None, counted_WL=None)

    def _selected(self, eval_skips: EvalSkips) -> Selected:
        """Return what the model sees of the histories: all but the skipped tokens."""
        index_N, offsets = slices(self._windows.starts_W, self._windows.lengths_W)
        kept = eval_skips.kept(index_N, offsets)
        return Selected(
            slots_W=np.zeros(self.windows, np.int64),
            counted_WL=np.ones((self.windows, self.catalogue.levels), bool),
            stays_N=kept.stays_N,
            tokens_NS=kept.tokens_NS,
        )

    def measure(self, model: Backbone) -> dict[str, float]:
        """Return `valid_loss` per window and the metrics of `pipeline.metrics`.

        Both are over all users of the validation, and equal on every process.
        """
        eval_skips = self.strategy.sampler.eval_skips()
        with evaluating(model):
            self.compile_loss(model, eval_skips)
            loss = self._loss(model, self.batches(eval_skips))
            return {"valid_loss": loss, **summarise(self._ranks(model, eval_skips))}

    def compile_loss(self, model: Backbone, eval_skips: EvalSkips | None = None) -> None:
        """Compile the kernels of the loss side by side, where kernels run; from the second call on do nothing."""
        if self._cold:
            first = itertools.islice(self.batches(eval_skips), COMPILED)
            compile_kernels_of(self.device, lambda: self._loss_sum(model, first))
            self._cold = False

    def _loss(self, model: nn.Module, batches: Iterable[Batch]) -> float:
        return float(self.world.sum(self._loss_sum(model, batches))) / self.windows

    @torch.no_grad()
    def _loss_sum(self, model: nn.Module, batches: Iterable[Batch]) -> Tensor:
        """Return the loss of this process's batches, a float64 scalar."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in batches:
            total += self.strategy.loss(model, batch)
        return total

    def _ranks(self, model: Backbone, eval_skips: EvalSkips | None) -> np.ndarray:
        users = len(self._share_U)
        with Progress("validate", users, "users", brief=True) if self.world.leads else nullcontext() as progress:
            ranks_U = self.ranker.rank(model, progress, eval_skips).ranks_U
        return self.world.gather(ranks_U, self._share_U, len(self.users_U), self.device)
