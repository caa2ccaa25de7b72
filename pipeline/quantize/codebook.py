"""Codebooks that gradients train, the choice of the nearest code, and the losses and gradients around that choice.

Shape legend: B items of a batch, V codes of a level, k width of the vectors that a level quantizes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Codebook(nn.Module):
    """A `Codebook` holds V learned vectors. Read them by `vectors()` alone, for choosing codes as for decoding."""

    def __init__(self, codes: int, width: int):
        super().__init__()
        self.table_Vk = nn.Parameter(torch.zeros(codes, width))

    def vectors(self) -> Tensor:
        """Return the vectors that codes stand for, float [V, k]."""
        return self.table_Vk

    @torch.no_grad()
    def put(self, codes: Tensor, vectors: Tensor) -> None:
        """Set the vectors that `codes` stand for."""
        self.table_Vk[codes] = vectors


def nearest_codes(rows_Bk: Tensor, vectors_Vk: Tensor) -> Tensor:
    """Return the code with the least squared distance to each row, int64 [B]; of equally near codes the first."""
    # |r - v|^2 = |r|^2 - 2 r.v + |v|^2, and |r|^2 is the same for all codes of a row
    return (vectors_Vk.square().sum(1) - 2 * rows_Bk @ vectors_Vk.T).argmin(1)


def codebook_loss(rows_Bk: Tensor, chosen_Bk: Tensor, commitment: float) -> Tensor:
    """Return the squared distance that moves codes to rows plus `commitment` times the one that moves rows to codes.

    Both are means over all entries. Source: van den Oord et al. 2017, Eq. 3, second and third term.
    """
    return F.mse_loss(chosen_Bk, rows_Bk.detach()) + commitment * F.mse_loss(rows_Bk, chosen_Bk.detach())


def straight_through(rows_Bk: Tensor, chosen_Bk: Tensor) -> Tensor:
    """Return `chosen_Bk` with a gradient that goes to `rows_Bk` unchanged."""
    return rows_Bk + (chosen_Bk - rows_Bk).detach()


def rotation(rows_Bk: Tensor, chosen_Bk: Tensor) -> Tensor:
    """Return `chosen_Bk` with a gradient that goes to `rows_Bk` through the rotation and scaling between the two.

    Source: Fifty et al. 2024, "Restructuring Vector Quantization with the Rotation Trick", Eq. 4: with the unit vectors
    e and q of row and code, R x = x - 2 r (r.x) + 2 q (e.x) and r = (e + q) / |e + q|; R and the scale are constants.
    """
    lengths_B1, chosen_lengths_B1 = (
        x.detach().norm(dim=1, keepdim=True).clamp_min(1e-12) for x in (rows_Bk, chosen_Bk)
    )
    e_Bk = rows_Bk.detach() / lengths_B1
    q_Bk = chosen_Bk.detach() / chosen_lengths_B1
    r_Bk = F.normalize(e_Bk + q_Bk, dim=1)
    turned_Bk = (
        rows_Bk - 2 * (r_Bk * rows_Bk).sum(1, keepdim=True) * r_Bk + 2 * (e_Bk * rows_Bk).sum(1, keepdim=True) * q_Bk
    )
    rotated_Bk: Tensor = turned_Bk * (chosen_lengths_B1 / lengths_B1)
    return rotated_Bk
