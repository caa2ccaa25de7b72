"""Codebooks that gradients train: one of its own vectors, and what every level does with one.

Shape legend: B items of a batch, C codes of a level, k width of what is quantized.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Codebook(nn.Module):
    """C learned vectors. `vectors()` is what codes stand for: the one way to read it, also for decoding."""

    def __init__(self, codes: int, width: int):
        super().__init__()
        self.table_Ck = nn.Parameter(torch.zeros(codes, width))

    def vectors(self) -> Tensor:
        """float [C, k]."""
        return self.table_Ck

    @torch.no_grad()
    def put(self, codes: Tensor, vectors: Tensor) -> None:
        """From now on `codes` stand for `vectors`."""
        self.table_Ck[codes] = vectors


def nearest_codes(rows_Bk: Tensor, vectors_Ck: Tensor) -> Tensor:
    """int64 [B]: the code with the least squared distance, of equal ones the first."""
    return (vectors_Ck.square().sum(1) - 2 * rows_Bk @ vectors_Ck.T).argmin(1)


def codebook_loss(rows_Bk: Tensor, chosen_Bk: Tensor, commitment: float) -> Tensor:
    """Squared distance that moves the code to the row, and, times `commitment`, the row to the code; mean of entries.

    Source: van den Oord et al. 2017, Eq. 3, second and third term.
    """
    return F.mse_loss(chosen_Bk, rows_Bk.detach()) + commitment * F.mse_loss(rows_Bk, chosen_Bk.detach())


def straight_through(rows_Bk: Tensor, chosen_Bk: Tensor) -> Tensor:
    """`chosen_Bk` whose gradient goes to `rows_Bk` unchanged."""
    return rows_Bk + (chosen_Bk - rows_Bk).detach()


def rotation(rows_Bk: Tensor, chosen_Bk: Tensor) -> Tensor:
    """`chosen_Bk` whose gradient goes to `rows_Bk` through the rotation and scaling that turn one into the other.

    Source: Fifty et al. 2024, "Restructuring Vector Quantization with the Rotation Trick", Eq. 4: with the unit vectors
    e and q of row and code, R x = x - 2 r (r.x) + 2 q (e.x) and r = (e + q) / |e + q|; R and the scale are constants.
    """
    lengths_B1, chosen_lengths_B1 = (
        x.detach().norm(dim=1, keepdim=True).clamp_min(1e-12) for x in (rows_Bk, chosen_Bk)
    )
    e_Bk, q_Bk = rows_Bk.detach() / lengths_B1, chosen_Bk.detach() / chosen_lengths_B1
    r_Bk = F.normalize(e_Bk + q_Bk, dim=1)
    turned_Bk = (
        rows_Bk - 2 * (r_Bk * rows_Bk).sum(1, keepdim=True) * r_Bk + 2 * (e_Bk * rows_Bk).sum(1, keepdim=True) * q_Bk
    )
    return turned_Bk * (chosen_lengths_B1 / lengths_B1)
