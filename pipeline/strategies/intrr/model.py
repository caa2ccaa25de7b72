"""`RecursiveModel` is IntRR's model: a backbone that reads one vector per item, between two uses of one network.

IntRR (network.py names the paper) has a recursive assignment network before and after the backbone. Before it, the
network turns an item's UID embedding into the item's vector; the backbone reads one such vector per item of a history;
after it, the network turns the backbone's state into the codes of the next item. Decoding runs the backbone once, and
the network for each level of the beam.

Shape legend: I items of the catalogue, W windows, N items of all histories, K beams, L levels, V codes of one level, d
width of the model; local: U distinct items of a batch, X items whose vectors are computed, F items of one prefix.
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

CHUNK = 65_536  # items of the catalogue whose vectors are computed at once


@dataclass(frozen=True)
class RecursiveDecodingState:
    """A `RecursiveDecodingState` holds the beams between two levels. It never changes: a step returns a new one."""

    signal_Wd: Tensor  # the backbone's state of each window
    level: int = 0  # levels decoded so far
    context_WKd: Tensor | None = None  # the network's context after the beams' codes; None at level 0
    node_WK: Tensor | None = None  # int64: each beam's node of the prefix trie, -1 outside of it


class RecursiveModel(Backbone):
    """A `RecursiveModel` holds a backbone, a table of UID embeddings, and the recursive assignment network.

    Args:
        catalogue: its deduplication digit, if it has one, may be narrower than the model's, `settings.digit_width`.
        settings: the section `intrr` of params.yaml.
    """

    token_names = ("item",)

    def __init__(self, config: BackboneConfig, catalogue: Catalogue, settings: IntrrConfig):
        super().__init__()
        self.config = config
        self.settings = settings
        # The model's digit has `digit_width` vectors, so that its catalogue is as wide.
        widths = catalogue.widths
        if catalogue.digit and settings.digit_width:
            widths = (*widths[:-1], settings.digit_width)
        plain = self.catalogue = Catalogue(catalogue.codes_IL.cpu(), widths, catalogue.digit)
        if settings.uid_content:
            content_IC = _content(catalogue)
            self.catalogue = Catalogue(catalogue.codes_IL.cpu(), widths, catalogue.digit, content_IC=content_IC)
        self.backbone = build_backbone(config, plain, vectors_only=True)
        if settings.reads_uid:
            uid_dim = settings.uid_dim or config.d_model
            self.undecayed = frozenset({"uid.weight"} if settings.uid_norm else ())
            self.uid = nn.Embedding(catalogue.items, uid_dim)  # std 1, like the backbone's normed states
            self.uid_out = nn.Linear(uid_dim, config.d_model, bias=False) if settings.uid_dim else nn.Identity()
            if isinstance(self.uid_out, nn.Linear):
                nn.init.normal_(self.uid_out.weight, std=uid_dim**-0.5)
        self.uid_content: nn.Linear | None = None
        if self.catalogue.content_IC is not None:
            self.uid_content = nn.Linear(self.catalogue.content_IC.shape[1], config.d_model, bias=False)
            nn.init.normal_(self.uid_content.weight)  # content vectors have length 1: std 1, as the rows
        self.ran = self._network()
        self.items_ran = self._network() if settings.ablation == "no_sharing" else None
        self.compiled_items: Callable[..., Any] | None = None
        self.compiled_targets: Callable[..., list[Tensor]] | None = None
        self._vectors_Id: Tensor | None = None  # item vectors, as computed by the last evaluation
        self._outdated = True  # the weights may have changed since then

    def _network(self) -> RecursiveAssignmentNetwork:
        settings = self.settings
        return RecursiveAssignmentNetwork(
            self.catalogue.widths, self.config.d_model, settings.hidden, settings.mix, settings.context
        )

    @torch.no_grad()
    def start_from(self, codebooks: Mapping[str, np.ndarray]) -> None:
        """Begin at the quantizer's codebooks (`level_1` .. [V, any width]) instead of random ones.

        Each codebook is centred, turned into d columns by random orthogonal directions, and scaled to the size of a
        random one. The deduplication digit has no codebook and stays random, as does a level of equal centroids.
        """
        for ran in [self.ran] if self.items_ran is None else [self.ran, self.items_ran]:
            for level in range(self.catalogue.bucket_levels):
                rows = torch.from_numpy(codebooks[f"level_{level + 1}"]).double()
                rows = rows - rows.mean(0)
                if rows.abs().max() > 1e-6:  # centroids of unit vectors differ by more than rounding
                    rows = rows @ _orthogonal(rows.shape[1], self.config.d_model)
                    ran.codebooks[level].copy_(rows / rows.square().mean().sqrt() * self.config.d_model**-0.5)

    @torch.no_grad()
    def start_at_codes(self) -> None:
        """Set each UID to the vector of the item's first code, scaled so that this code has half of the mixture.

        The mixture is that of level 1, whose logits are the UID times the codebook (Eq. 4 and 5); the half is the mean
        over codes. The map of the content vectors begins at zero, so that it moves no item from its code.
        """
        if not self.settings.reads_uid:
            return
        codebook_Vd = (self.ran if self.items_ran is None else self.items_ran).codebooks[0].double()
        logits_VV = codebook_Vd @ codebook_Vd.T
        low, high = 0.0, 2.0**20
        for _ in range(60):  # the share grows with the scale
            scale = (low + high) / 2
            share = float((scale * logits_VV).softmax(1).diagonal().mean())
            low, high = (scale, high) if share < 0.5 else (low, scale)
        self.uid.weight.copy_(high * codebook_Vd[self.catalogue.codes_IL[:, 0].cpu()])
        if self.uid_content is not None:
            self.uid_content.weight.zero_()

    def uid_penalty(self, distinct: DistinctItems) -> Tensor:
        """Return the sum over a batch's distinct items of (mean square of the UID - 1)^2, weighted as the alignment."""
        squares_U = self.uid(distinct.items_U).float().square().mean(1)
        total: Tensor = ((squares_U - 1).square() * distinct.weights_U).sum()
        return total

    # -------------------------------------------------------------------------------------------------- training

    def forward(
        self,
        histories: Histories,
        codes_WL: Tensor,
        distinct: DistinctItems | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Return the logits and the alignment of both losses, float32.

        Args:
            codes_WL: int64, the Semantic ID of each target, in packed order.
            distinct: the distinct items of the histories; needed to train. Without them the catalogue's vectors are
                used, and the alignment is 0.

        Returns:
            (logits of every level [W, V], of Eq. 10; the weighted alignment, one number, Eq. 8).
        """
        if distinct is None:
            vectors_Nd = self.item_vectors()[histories.items_N]
            alignment = codes_WL.new_zeros((), dtype=torch.float32)
        else:
            items = self.compiled_items if self.training and self.compiled_items else self._items
            vectors_Nd, alignment = items(histories.items_N, distinct.items_U, distinct.weights_U)
        states_Wd = self.backbone.read(vectors_Nd, histories)
        targets = self.compiled_targets if self.training and self.compiled_targets else self._targets
        return targets(states_Wd, codes_WL), alignment

    def sizes(self, histories: Histories) -> tuple[int, ...]:
        """Return the backbone's sizes, and in evaluation bring the catalogue's vectors up to date.

        A recorded search reads these vectors, and a replay cannot compute them anew; `sizes` is called before each
        replay.
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
        """Return the vector of each item of the histories [N, d], and the weighted alignment of Eq. 8."""
        rule = self.settings.alignment_items if self.settings.aligns else ""
        # Vectors are computed once per distinct item. items 7 2 7, distinct 2 7 -> rows 1 0 1
        items_X = items_U
        row_N = torch.searchsorted(items_U, items_N)
        if rule == "all":
            items_X = torch.arange(self.catalogue.items, device=items_U.device)
            row_N = items_N
        elif rule == "sample":
            drawn = torch.randint(self.catalogue.items, (self.settings.alignment_sample,), device=items_U.device)
            items_X = torch.cat([items_U, drawn])
        vectors_Xd, logits = self._redistribute(items_X)
        vectors_Nd = F.embedding(row_N, vectors_Xd)
        # The alignment is the weighted sum over the batch's items, or the mean over all or the drawn ones times the
        # same total weight: the trainer divides by the number of targets.
        if not self.settings.aligns:
            return vectors_Nd, weights_U.new_zeros(())
        losses_X = negative_log_likelihood(logits, self.catalogue.codes_IL[items_X])
        if rule in ("batch_distinct", "batch_occurrences"):
            return vectors_Nd, (losses_X * weights_U).sum()
        return vectors_Nd, losses_X[-self.settings.alignment_sample * (rule == "sample") :].mean() * weights_U.sum()

    def _redistribute(self, items_X: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the vectors [X, d] of items, and the logits of their codes from the same pass.

        With ablation `no_redistribution` an item's vector is the sum of its codes' vectors; the logits then come from
        teacher forcing, and the list is empty where no alignment wants them.
        """
        ran = self.ran if self.items_ran is None else self.items_ran
        if self.settings.ablation != "no_redistribution":
            return ran.redistribute(self._signal(items_X))
        codes_XL = self.catalogue.codes_IL[items_X]
        logits = ran.teach(self._signal(items_X), codes_XL) if self.settings.reads_uid else []
        return ran.look_up(codes_XL), logits

    def _signal(self, items_X: Tensor) -> Tensor:
        """Return the signal of items [X, d]: the row of the UID table in the model's width, and the content, if any.

        Dropout acts on the row in training.
        """
        uid_Xe = self.uid(items_X)
        if self.settings.uid_dropout:
            uid_Xe = F.dropout(uid_Xe, self.settings.uid_dropout, self.training)
        signal_Xd: Tensor = self.uid_out(uid_Xe)
        if self.uid_content is not None and self.catalogue.content_IC is not None:
            signal_Xd = signal_Xd + self.uid_content(self.catalogue.content_IC[items_X])
        return signal_Xd

    def _targets(self, states_Wd: Tensor, codes_WL: Tensor) -> list[Tensor]:
        """Return the logits of every level of the targets, L tensors [W, V]."""
        if self.training and self.settings.ablation == "no_teacher_forcing":
            return self.ran.redistribute(states_Wd)[1]
        return self.ran.teach(states_Wd, codes_WL)

    # -------------------------------------------------------------------------------------------------- evaluation

    def train(self, mode: bool = True) -> "RecursiveModel":
        """Change the mode, and mark the catalogue's vectors as outdated: weights may change between evaluations."""
        self._outdated = True
        return super().train(mode)

    @torch.no_grad()
    def item_vectors(self) -> Tensor:
        """Return the vectors of the whole catalogue [I, d], computed once after each call of `eval`.

        They are always written into the same tensor, which recorded searches read.

        Raises:
            ValueError: the model is in training mode, where the vectors change with every step.
        """
        if self.training:
            raise ValueError("training needs the distinct items of a batch: the vectors change with every step")
        if self._outdated or self._vectors_Id is None:
            items_I = torch.arange(self.catalogue.items, device=self.catalogue.codes_IL.device)
            vectors_Id = torch.cat([self._redistribute(part)[0] for part in torch.split(items_I, CHUNK)])
            if self._vectors_Id is None or self._vectors_Id.device != vectors_Id.device:
                self._vectors_Id = vectors_Id
            else:
                self._vectors_Id.copy_(vectors_Id)
            self._outdated = False
        return self._vectors_Id

    @torch.no_grad()
    def code_shares(self, items_U: Tensor) -> list[Tensor]:
        """Return the shares of each level's codes in the vectors of items: L tensors [U, V], rows sum to 1."""
        logits = self._redistribute(items_U)[1]
        if not logits:  # nothing is redistributed: an item's vector is made of the item's codes alone
            codes_UL = self.catalogue.codes_IL[items_U]
            return [F.one_hot(codes_UL[:, level], width).float() for level, width in enumerate(self.catalogue.widths)]
        return [logits_UV.softmax(-1) for logits_UV in logits]

    def begin(self, histories: Histories) -> RecursiveDecodingState:
        """Run the backbone, once for all levels and beams."""
        return RecursiveDecodingState(self.backbone.read(self.item_vectors()[histories.items_N], histories))

    def step(
        self, state: RecursiveDecodingState, beams_WK: Tensor | None = None, codes_WK: Tensor | None = None
    ) -> tuple[Tensor, RecursiveDecodingState]:
        """Return the logits [W, K, V] of the next level, rows in packed order, and the state after it.

        The first step takes no beams: K is 1.

        Args:
            beams_WK: int64, which of the previous step's beams each beam continues.
            codes_WK: int64, the code that each beam appends.
        """
        next_state = self._continue(state, beams_WK, codes_WK)
        level = state.level
        signal_W1d = next_state.signal_Wd[:, None]
        if self.settings.tie_break == "uid" and level == self.catalogue.levels - 1:
            logits_WKV = self._among_items(next_state)
        else:
            logits_WKV = self.ran.logits(level, signal_W1d, next_state.context_WKd)
        return logits_WKV, replace(next_state, level=level + 1)

    def _continue(
        self, state: RecursiveDecodingState, beams_WK: Tensor | None, codes_WK: Tensor | None
    ) -> RecursiveDecodingState:
        """Return the state of the beams that go on, each with the code that it appends."""
        before_WK = state.node_WK
        if beams_WK is None or codes_WK is None:
            # Each window begins with one beam at the root of the trie.
            return replace(state, node_WK=state.signal_Wd.new_zeros(len(state.signal_Wd), 1, dtype=torch.int64))
        assert before_WK is not None
        node_WK = self.catalogue.child(state.level - 1, before_WK.gather(1, beams_WK), codes_WK)
        # The context adds up over levels (`sum`), so that a beam takes over its parent's; or the new code replaces it.
        context_WKd = state.context_WKd
        if context_WKd is not None and self.ran.context == "sum":
            context_WKd = context_WKd.take_along_dim(beams_WK[..., None], 1)
        vectors_WKd = F.embedding(codes_WK, self.ran.codebooks[state.level - 1])
        return replace(state, node_WK=node_WK, context_WKd=self.ran.extend(context_WKd, vectors_WKd))

    def _among_items(self, state: RecursiveDecodingState) -> Tensor:
        """Return the logits [W, K, V] of the deduplication digit from item vectors instead of the network.

        The logit of a digit that a prefix has is the state times the vector of the item; it is -inf for other digits.
        A prefix that names no item has equal logits, so that its beams stay finite and count as invalid.
        """
        catalogue = self.catalogue
        level = catalogue.levels - 1
        assert state.node_WK is not None
        node_WK = state.node_WK.clamp(min=0)
        # The items of each beam's prefix in F columns: first child 4, 2 items, F 3 -> children 4 5 4, exists 1 1 0
        first_WK1 = catalogue.first_child(level)[node_WK][..., None]
        child_WKF = first_WK1 + torch.arange(catalogue.fanout[level], device=node_WK.device)
        exists_WKF = child_WKF < catalogue.first_child(level)[node_WK + 1][..., None]
        child_WKF = torch.where(exists_WKF, child_WKF, first_WK1)
        vectors_WKFd = self.item_vectors()[catalogue.item_of_leaf_I[child_WKF]]
        scores_WKF = torch.einsum("wd,wkfd->wkf", state.signal_Wd, vectors_WKFd).masked_fill_(~exists_WKF, -torch.inf)
        logits_WKV = scores_WKF.new_full((*node_WK.shape, catalogue.widths[level]), -torch.inf)
        # From columns to digits. A column without an item repeats the first item's digit with score -inf: `amax` takes
        # the item's score.
        logits_WKV.scatter_reduce_(2, catalogue.code(level)[child_WKF], scores_WKF, "amax")
        return torch.where(state.node_WK[..., None] < 0, 0, logits_WKV)


def _content(catalogue: Catalogue) -> np.ndarray:
    """Return the content vectors of a catalogue, float32 [I, width]. Raises ValueError where it has none."""
    if catalogue.content_IC is None:
        raise ValueError("intrr.uid_content is true, and the items have no content vectors")
    vectors_IC: np.ndarray = catalogue.content_IC.float().cpu().numpy()
    return vectors_IC


def _orthogonal(rows: int, columns: int) -> Tensor:
    """Return a random matrix of orthogonal unit columns, or of such rows if there are fewer rows than columns."""
    turn: Tensor = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns), dtype=torch.float64))[0]
    return turn if rows >= columns else turn.T
