"""SimVQ: a frozen table of codes, and one linear map that is learned for all of them.

Paper: Zhu et al. 2024, "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer"; as the
tokenizer of SkipGR, Eq. 7: q_l = q_{l-1} - C_l[s_l] W_l, one map W_l in R^{k x k} per level. All codes move together,
also those that no item has, so none dies. Everything else is rqvae.

What the paper leaves open is taken from SimVQ's released code: the table is normal with standard deviation k^-0.5, the
map is torch's default with a bias (`quantize.bias`), no k-means start, no restart of codes, the loss is the term that
moves codes plus 0.25 times the commitment (`legacy: false` in the released code). Deliberately different: a code always
stands for the mapped vector, also in codebooks.safetensors; the released code's look-up by code returns the raw table.

Shape legend: V codes of a level, k width of the vectors that a level quantizes.
"""

import torch
from torch import Tensor, nn


class MappedCodebook(nn.Module):
    """V frozen vectors under one learned linear map."""

    table_Vk: Tensor

    def __init__(self, codes: int, width: int, bias: bool):
        super().__init__()
        self.register_buffer("table_Vk", torch.randn(codes, width) * width**-0.5)
        self.map = nn.Linear(width, width, bias=bias)

    def vectors(self) -> Tensor:
        """Return the mapped table, float [V, k]."""
        mapped_Vk: Tensor = self.map(self.table_Vk)
        return mapped_Vk
