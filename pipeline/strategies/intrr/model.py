"""One token per item: a backbone that reads item vectors, and a recursive assignment network on both of its sides.

IntRR (network.py names the paper). An item's vector is what the network makes of its UID embedding; the backbone reads
one such vector per item of a history; the network turns the backbone's state into the codes of the next item. Decoding
runs the backbone once, and the beam over the network alone.

Shape legend: W windows, N items of all windows, U distinct items of a batch, I items of the catalogue, K beams, V codes
of one level, F items of one prefix, d model width, L code levels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones import build_backbone
from pipeline.backbones.config import BackboneConfig
from pipeline.catalogue import Catalogue
from pipeline.packing.backbone import Backbone
from pipeline.packing.histories import DistinctItems, Histories
from pipeline.strategies.intrr.config import IntrrConfig
from pipeline.strategies.intrr.network import RecursiveAssignmentNetwork, negative_log_likelihood

CHUNK = 65_536  # items whose vectors are computed at once when the whole catalogue is


@dataclass(frozen=True)
class RecursiveDecodingState:
    """Beams on their way down the levels. Never changed: a step returns a new one."""

    signal_Wd: Tensor  # the backbone's state of each window
    level: int = 0  # levels decoded so far
    context_WKd: Tensor | None = None
    node_WK: Tensor | None = None  # of the catalogue's prefix tree, -1 outside of it


class RecursiveModel(Backbone):
    """Backbone, UID table and network.

    Args:
        catalogue: its deduplication digit, if it has one, may be narrower than the model's, `settings.digit_width`.
        settings: `intrr` of params.yaml.
    """

    token_names = ("item",)

    def __init__(self, config: BackboneConfig, catalogue: Catalogue, settings: IntrrConfig):
        super().__init__()
        self.config, self.settings = config, settings
        widths = catalogue.widths
        if catalogue.digit and settings.digit_width:
            widths = (*widths[:-1], settings.digit_width)
        self.catalogue = Catalogue(catalogue.codes_IL.cpu(), widths, catalogue.digit)
        self.backbone = build_backbone(config, self.catalogue, vectors_only=True)
        if settings.reads_uid:
            uid_dim = settings.uid_dim or config.d_model
            self.uid = nn.Embedding(catalogue.items, uid_dim)  # std 1, as of the backbone's normed states
            self.uid_out = nn.Linear(uid_dim, config.d_model, bias=False) if settings.uid_dim else nn.Identity()
            if isinstance(self.uid_out, nn.Linear):
                nn.init.normal_(self.uid_out.weight, std=uid_dim**-0.5)
        self.ran = self._network()
        self.items_ran = self._network() if settings.ablation == "no_sharing" else None
        self.compiled_items: Callable[..., Any] | None = None
        self.compiled_targets: Callable[..., list[Tensor]] | None = None
        self._vectors_Id: Tensor | None = None  # of the whole catalogue, as of the last evaluation
        self._outdated = True

    def _network(self) -> RecursiveAssignmentNetwork:
        settings = self.settings
        return RecursiveAssignmentNetwork(
            self.catalogue.widths, self.config.d_model, settings.hidden, settings.mix, settings.context
        )

    @torch.no_grad()
    def start_from(self, codebooks: Mapping[str, np.ndarray]) -> None:
        """Begin at the quantizer's codebooks (`level_1` .. [V, any width]) instead of random ones.

        Each is centred, turned into d columns by random orthogonal directions, and scaled to the size of a random one.
        The deduplication digit has none and stays random, as does a level whose centroids are all the same.
        """
        for ran in [self.ran] if self.items_ran is None else [self.ran, self.items_ran]:
            for level in range(self.catalogue.bucket_levels):
                rows = torch.from_numpy(codebooks[f"level_{level + 1}"]).double()
                rows = rows - rows.mean(0)
                if rows.abs().max() > 1e-6:  # of unit vectors: more than rounding
                    rows = rows @ _orthogonal(rows.shape[1], self.config.d_model)
                    ran.codebooks[level].copy_(rows / rows.square().mean().sqrt() * self.config.d_model**-0.5)

    # -------------------------------------------------------------------------------------------------- training

    def forward(
        self,
        histories: Histories,
        codes_WL: Tensor,
        distinct: DistinctItems | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """What both losses are made of, float32.

        Args:
            codes_WL: int64, the Semantic ID of each target, in packed order.
            distinct: the items of the histories; needed to train. Without it the catalogue's vectors are used, and the
                alignment is 0.

        Returns:
            (logits of every level [W, V], of Eq. 10; the weighted alignment, one number, Eq. 8).
        """
        if distinct is None:
            vectors_Nd, alignment = self.item_vectors()[histories.items_N], codes_WL.new_zeros((), dtype=torch.float32)
        else:
            items = self.compiled_items if self.training and self.compiled_items else self._items
            vectors_Nd, alignment = items(histories.items_N, distinct.items_U, distinct.weights_U)
        states_Wd = self.backbone.read(vectors_Nd, histories)
        targets = self.compiled_targets if self.training and self.compiled_targets else self._targets
        return targets(states_Wd, codes_WL), alignment

    def sizes(self, histories: Histories) -> tuple[int, ...]:
        """The backbone's sizes. They are asked for before each use of a recorded search, which reads the catalogue's
        vectors but cannot see that they are outdated: they are brought up to date here.
        """
        if not self.training:
            self.item_vectors()
        return self.backbone.sizes(histories)

    def compile_training(self) -> None:
        """Compile training's forward and backward pass, at the first batch and for batches of every size."""
        self.backbone.compile_training()
        self.compiled_items = torch.compile(self._items, dynamic=True)
        self.compiled_targets = torch.compile(self._targets, dynamic=True)

    def _items(self, items_N: Tensor, items_U: Tensor, weights_U: Tensor) -> tuple[Tensor, Tensor]:
        """(the vector of each item of the histories [N, d], the weighted alignment of Eq. 8)."""
        rule, computed = self.settings.alignment_items if self.settings.aligns else "", items_U
        row_N = torch.searchsorted(items_U, items_N)
        if rule == "all":
            computed, row_N = torch.arange(self.catalogue.items, device=items_U.device), items_N
        elif rule == "sample":
            drawn = torch.randint(self.catalogue.items, (self.settings.alignment_sample,), device=items_U.device)
            computed = torch.cat([items_U, drawn])
        vectors_Xd, logits = self._redistribute(computed)
        vectors_Nd = F.embedding(row_N, vectors_Xd)
        if not self.settings.aligns:
            return vectors_Nd, weights_U.new_zeros(())
        losses_X = negative_log_likelihood(logits, self.catalogue.codes_IL[computed])
        if rule in ("batch_distinct", "batch_occurrences"):
            return vectors_Nd, (losses_X * weights_U).sum()
        return vectors_Nd, losses_X[-self.settings.alignment_sample * (rule == "sample") :].mean() * weights_U.sum()

    def _redistribute(self, items_X: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Vectors [X, d] of items, and the logits of their codes that the same pass gave."""
        ran = self.ran if self.items_ran is None else self.items_ran
        if self.settings.ablation != "no_redistribution":
            return ran.redistribute(self.uid_out(self.uid(items_X)))
        codes_XL = self.catalogue.codes_IL[items_X]
        logits = ran.teach(self.uid_out(self.uid(items_X)), codes_XL) if self.settings.reads_uid else []
        return ran.look_up(codes_XL), logits

    def _targets(self, states_Wd: Tensor, codes_WL: Tensor) -> list[Tensor]:
        """Logits of every level of the targets."""
        if self.training and self.settings.ablation == "no_teacher_forcing":
            return self.ran.redistribute(states_Wd)[1]
        return self.ran.teach(states_Wd, codes_WL)

    # -------------------------------------------------------------------------------------------------- evaluation

    def train(self, mode: bool = True) -> "RecursiveModel":
        """The catalogue's vectors are then outdated: weights may change between one evaluation and the next."""
        self._outdated = True
        return super().train(mode)

    @torch.no_grad()
    def item_vectors(self) -> Tensor:
        """Vectors of the whole catalogue [I, d], computed once after each call of `eval`, always in the same place.

        Raises:
            ValueError: the model is in training mode, where the vectors change with every step.
        """
        if self.training:
            raise ValueError("training needs the distinct items of a batch: the vectors change with every step")
        if self._outdated or self._vectors_Id is None:
            items_I = torch.arange(self.catalogue.items, device=self.catalogue.codes_IL.device)
            vectors_Id = torch.cat([self._redistribute(part)[0] for part in items_I.split(CHUNK)])
            if self._vectors_Id is None or self._vectors_Id.device != vectors_Id.device:
                self._vectors_Id = vectors_Id
            else:
                self._vectors_Id.copy_(vectors_Id)
            self._outdated = False
        return self._vectors_Id

    @torch.no_grad()
    def code_shares(self, items_U: Tensor) -> list[Tensor]:
        """How items distribute themselves over the codes of each level: L tensors [U, V], rows sum to 1."""
        logits = self._redistribute(items_U)[1]
        if not logits:  # nothing is redistributed: an item is its own codes
            codes_UL, widths = self.catalogue.codes_IL[items_U], self.catalogue.widths
            return [F.one_hot(codes_UL[:, level], width).float() for level, width in enumerate(widths)]
        return [logits_UV.softmax(-1) for logits_UV in logits]

    def begin(self, histories: Histories) -> RecursiveDecodingState:
        """Run the backbone, once for all levels and beams."""
        return RecursiveDecodingState(self.backbone.read(self.item_vectors()[histories.items_N], histories))

    def step(
        self, state: RecursiveDecodingState, beams_WK: Tensor | None = None, codes_WK: Tensor | None = None
    ) -> tuple[Tensor, RecursiveDecodingState]:
        """Logits [W, K, V] of the next level, rows in packed order. The first step takes no beams: K is 1.

        Args:
            beams_WK: int64, which of the previous step's beams each beam continues.
            codes_WK: int64, the code that it appends.
        """
        next_state = self._continue(state, beams_WK, codes_WK)
        level, signal_W1d = state.level, next_state.signal_Wd[:, None]
        if self.settings.tie_break == "uid" and level == self.catalogue.levels - 1:
            logits_WKV = self._among_items(next_state)
        else:
            logits_WKV = self.ran.logits(level, signal_W1d, next_state.context_WKd)
        return logits_WKV, replace(next_state, level=level + 1)

    def _continue(
        self, state: RecursiveDecodingState, beams_WK: Tensor | None, codes_WK: Tensor | None
    ) -> RecursiveDecodingState:
        """The beams that go on, with the code that each appends."""
        before_WK = state.node_WK
        if beams_WK is None or codes_WK is None:
            return replace(state, node_WK=state.signal_Wd.new_zeros(len(state.signal_Wd), 1, dtype=torch.int64))
        assert before_WK is not None
        node_WK = self.catalogue.child(state.level - 1, before_WK.gather(1, beams_WK), codes_WK)
        context_WKd = state.context_WKd
        if context_WKd is not None and self.ran.context == "sum":
            context_WKd = context_WKd.take_along_dim(beams_WK[..., None], 1)
        vectors_WKd = F.embedding(codes_WK, self.ran.codebooks[state.level - 1])
        return replace(state, node_WK=node_WK, context_WKd=self.ran.extend(context_WKd, vectors_WKd))

    def _among_items(self, state: RecursiveDecodingState) -> Tensor:
        """Logits [W, K, V] of the last digit: state x item vector for the digits that a prefix has, else -inf.

        A prefix that names no item has equal logits, so that its beams stay finite and count as invalid.
        """
        catalogue, level = self.catalogue, self.catalogue.levels - 1
        assert state.node_WK is not None
        node_WK = state.node_WK.clamp(min=0)
        first_WK1 = catalogue.first_child(level)[node_WK][..., None]
        child_WKF = first_WK1 + torch.arange(catalogue.fanout[level], device=node_WK.device)
        exists_WKF = child_WKF < catalogue.first_child(level)[node_WK + 1][..., None]
        child_WKF = torch.where(exists_WKF, child_WKF, first_WK1)
        vectors_WKFd = self.item_vectors()[catalogue.item_of_leaf_I[child_WKF]]
        scores_WKF = torch.einsum("wd,wkfd->wkf", state.signal_Wd, vectors_WKFd).masked_fill_(~exists_WKF, -torch.inf)
        logits_WKV = scores_WKF.new_full((*node_WK.shape, catalogue.widths[level]), -torch.inf)
        # A place that holds no item repeats the first one's digit: `amax` keeps that item's score.
        logits_WKV.scatter_reduce_(2, catalogue.code(level)[child_WKF], scores_WKF, "amax")
        return torch.where(state.node_WK[..., None] < 0, 0, logits_WKV)


def _orthogonal(rows: int, columns: int) -> Tensor:
    """A random matrix of orthogonal unit columns, or where there are more columns than rows, of such rows."""
    turn = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns), dtype=torch.float64))[0]
    return turn if rows >= columns else turn.T
