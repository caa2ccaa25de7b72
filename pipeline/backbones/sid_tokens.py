"""All backbones over Semantic IDs share this base: the tokens of items, their vectors, the heads, T5's initialisation.

A token is a (level, code) pair, or the separator that may follow each item of a history. Level l's codes are the token
ids from `first_token[l]` on; the separator's id follows those of all levels. Each level has a separate head.

    widths 3, 2 -> first_token 0, 3; separator 5; an item of codes (2, 1) is the tokens 2, 4, 5

Shape legend: I items of the catalogue, L levels, N items of all histories, W windows, d width of the model, V codes of
one level; local: S tokens of one item in a history (its codes, then the separator), X states that a head reads.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.backbones.blocks import CrossAttention, SelfAttention, module_list
from pipeline.backbones.config import BackboneConfig
from pipeline.catalogue import Catalogue
from pipeline.ops.levels import logits_of_levels
from pipeline.ops.linear import RMSNorm
from pipeline.ops.lookup import LookupTable
from pipeline.packing.backbone import Backbone
from pipeline.packing.histories import Histories


class SidBackbone(Backbone):
    """A network that reads histories of tokens, or with `read` one vector per item.

    It is a base class rather than a module inside the network, because its weights are named `tokens.weight` and
    `heads.0.weight` in model.safetensors. A subclass calls `_add_tokens` and `_add_heads` at fixed points of its
    constructor: the order in which weights are drawn and registered is part of a seed's result and of a checkpoint.
    """

    config: BackboneConfig
    tokens_IS: Tensor  # int64: the token ids of each item in a history
    tokens: nn.Embedding
    heads: Sequence[nn.Linear]

    def __init__(self, config: BackboneConfig, catalogue: Catalogue):
        super().__init__()
        self.config = config
        self.catalogue = catalogue
        self.levels = catalogue.levels
        self.first_token = [sum(catalogue.widths[:level]) for level in range(self.levels)]  # of each level
        self.separator = sum(catalogue.widths)

    def _add_tokens(self, more: int) -> None:
        """Add `tokens_IS`, and the table `tokens` with `more` rows after those of the codes."""
        codes_IL = self.catalogue.codes_IL
        tokens_IL = codes_IL + torch.tensor(self.first_token, device=codes_IL.device)
        parts = [tokens_IL]
        if self.config.separators:
            parts.append(torch.full_like(tokens_IL[:, :1], self.separator))
        self.register_buffer("tokens_IS", torch.cat(parts, 1), persistent=False)
        self.tokens = LookupTable(self.separator + more, self.config.d_model)

    def _add_heads(self) -> None:
        width = self.config.d_model
        self.heads = module_list(nn.Linear(width, codes, bias=False) for codes in self.catalogue.widths)

    @torch.no_grad()
    def _initialise_as_t5(self) -> None:
        """Initialise as T5 does: normal with std fan_in^-0.5, and tables with std `embedding_std`, which is 1 in T5.

        Queries have std (d_model * d_head)^-0.5, because T5's attention does not scale its scores.
        """
        for table in self.modules():
            if isinstance(table, nn.Embedding):  # torch drew it with std 1
                table.weight.mul_(self.config.embedding_std)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(std=module.in_features**-0.5)
        queries = (self.config.d_model * self.config.d_head) ** -0.5
        inner = self.config.heads * self.config.d_head
        for module in self.modules():
            if isinstance(module, SelfAttention):
                module.qkv.weight[:inner].normal_(std=queries)
            elif isinstance(module, CrossAttention):
                module.q.weight.normal_(std=queries)

    @property
    def _last_names(self) -> list[str]:
        """Return the name of what follows an item's codes, if anything does."""
        return ["separator"] * self.config.separators + ["action"] * self.config.actions

    @property
    def token_names(self) -> list[str]:
        """Return names of an item's S tokens in a history: `level 1` and so on, then `separator` or `action`."""
        return [f"level {level + 1}" for level in range(self.levels)] + self._last_names

    @abstractmethod
    def read(self, vectors_Nd: Tensor, histories: Histories) -> Tensor:
        """Return the state [W, d] of the last item of each window, rows in packed order.

        Args:
            vectors_Nd: one input per item of the histories, in packed order, instead of tokens.
        """

    def _logits(self, h_Xd: Tensor, level: int, norm: RMSNorm | None = None) -> Tensor:
        """Return the logits [X, V] of a level from states, which `norm` normalises first where it is given.

        They are float32 even under autocast: rounded to bfloat16, near codes would tie.
        """
        with torch.autocast(h_Xd.device.type, enabled=False):
            return self._head(self.heads[level], h_Xd.to(self.tokens.weight.dtype), norm)

    def _logits_of_levels(self, h_XLd: Tensor) -> list[Tensor]:
        """Return the logits [X, V] of every level, each from its state; float32 even under autocast."""
        with torch.autocast(h_XLd.device.type, enabled=False):
            return logits_of_levels(h_XLd.to(self.tokens.weight.dtype), [head.weight for head in self.heads])

    def _head(self, head: nn.Linear, h_Xd: Tensor, norm: RMSNorm | None) -> Tensor:
        logits_XV: Tensor = head(h_Xd if norm is None else norm(h_Xd))
        return logits_XV
