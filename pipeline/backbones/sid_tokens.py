"""What all backbones over Semantic IDs share: the tokens of items, their vectors, the heads, T5's initialisation.

A token is a (level, code) pair, or the separator that may follow each item of a history. Level l's codes are the token
ids from `first_token[l]` on; the separator comes behind those of all levels. Each level has a head of its own.

Shape legend: I items of the catalogue, L code levels, S tokens of one item in a history (its codes, then the
separator), N items, W windows, T rows, d model width, V codes of one level.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pipeline.backbones.blocks import CrossAttention, SelfAttention
from pipeline.backbones.config import BackboneConfig
from pipeline.catalogue import Catalogue
from pipeline.ops.linear import RMSNorm
from pipeline.packing.backbone import Backbone
from pipeline.packing.histories import Histories


class SidBackbone(Backbone):
    """A network whose histories are tokens, or with `read` one vector per item.

    A base class rather than a module inside the network: its weights are `tokens.weight` and `heads.0.weight` in
    model.safetensors. A subclass adds the parts where they have always stood among its own: the order in which weights
    are drawn and registered is part of a seed's result and of a checkpoint.
    """

    config: BackboneConfig
    tokens_IS: Tensor  # int64: the token ids of each item in a history
    tokens: nn.Embedding
    heads: Sequence[nn.Linear]

    def __init__(self, config: BackboneConfig, catalogue: Catalogue):
        super().__init__()
        self.config, self.catalogue, self.levels = config, catalogue, catalogue.levels
        self.first_token = [sum(catalogue.widths[:level]) for level in range(self.levels)]  # of each level
        self.separator = sum(catalogue.widths)

    def _add_tokens(self, more: int) -> None:
        """The token table, with `more` rows behind those of the codes, and each item's tokens."""
        codes_IL = self.catalogue.codes_IL
        tokens_IL = codes_IL + torch.tensor(self.first_token, device=codes_IL.device)
        parts = [tokens_IL]
        if self.config.separators:
            parts.append(torch.full_like(tokens_IL[:, :1], self.separator))
        self.register_buffer("tokens_IS", torch.cat(parts, 1), persistent=False)
        self.tokens = nn.Embedding(self.separator + more, self.config.d_model)

    def _add_heads(self) -> None:
        width = self.config.d_model
        heads = nn.ModuleList(nn.Linear(width, codes, bias=False) for codes in self.catalogue.widths)
        self.heads = cast(Sequence[nn.Linear], heads)

    @torch.no_grad()
    def _initialise_as_t5(self) -> None:
        """T5's: normal with std fan_in^-0.5, but queries (d_model * d_head)^-0.5 for want of scaling; embeddings as
        `embedding_std` says, which T5 has at 1.
        """
        for table in self.modules():
            if isinstance(table, nn.Embedding):  # drawn with std 1
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
    def token_names(self) -> list[str]:
        return [f"level {level + 1}" for level in range(self.levels)] + ["separator"] * self.config.separators

    @abstractmethod
    def read(self, vectors_Nd: Tensor, histories: Histories) -> Tensor:
        """The state [W, d] behind the last item of each window, rows in packed order.

        Args:
            vectors_Nd: one input per item of the histories, in packed order, instead of tokens.
        """

    def _logits(self, h_Td: Tensor, level: int, norm: RMSNorm | None = None) -> Tensor:
        """The logits of a level, float32 even under autocast: rounded to bfloat16, near codes would tie."""
        with torch.autocast(h_Td.device.type, enabled=False):
            return self._head(self.heads[level], h_Td.to(self.tokens.weight.dtype), norm)

    def _head(self, head: nn.Linear, h_Td: Tensor, norm: RMSNorm | None) -> Tensor:
        return head(h_Td if norm is None else norm(h_Td))
