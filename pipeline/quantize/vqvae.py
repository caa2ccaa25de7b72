"""Residual vector quantization of the embeddings themselves, which IntRR's released code calls VQ-VAE.

Paper: IntRR, "Implementation Details", which cites van den Oord et al. 2017. The released code has no encoder and no
decoder: each level is a codebook of the L2-normalised residuals of the level before, trained level by level from a
k-means++ start, with straight-through and commitment 0.25. This file does the same. Without an encoder no parameter
lies before the choice of a code, so straight-through and the commitment change no gradient: the loss that remains is
|sg(r) - e|^2, k-means by gradient steps.

Deliberately different: the k-means++ start draws from all items rather than from a buffer of 3,072; Adam rather than
Adagrad; dead codes may start again (`quantize.restart_dead`), and a level stops early by its reconstruction.

Shape legend: I items, B items of a batch, L levels, V codes of a level, M codes without an item, d width of the
embeddings.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.quantize.codebook import Codebook, codebook_loss, nearest_codes
from pipeline.quantize.config import QuantizeConfig
from pipeline.quantize.quantizer import Quantized, require_items
from pipeline.quantize.residual import fit_residuals
from pipeline.quantize.rows import LevelRows, Vectors
from pipeline.quantize.trainer import EncodedBatch, dead_codes, encode_all, open_device, train_quantizer


class Level(nn.Module):
    """One codebook that quantizes rows [I, d]."""

    def __init__(self, config: QuantizeConfig, width: int):
        super().__init__()
        self.config = config
        self.codebook = Codebook(config.codes, width)

    def loss(self, rows_Bd: Tensor) -> Tensor:
        """Return the codebook loss."""
        return codebook_loss(rows_Bd, self._chosen(rows_Bd)[1], self.config.commitment)

    def encode(self, rows_Bd: Tensor) -> EncodedBatch:
        """Return codes [B, 1] and squared errors."""
        codes_B, chosen_Bd = self._chosen(rows_Bd)
        return EncodedBatch(codes_B[:, None], (rows_Bd - chosen_Bd).square().sum(1))

    def _chosen(self, rows_Bd: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest code of each row [B] and its vector [B, d]."""
        vectors_Vd = self.codebook.vectors()
        codes_B = nearest_codes(rows_Bd, vectors_Vd.detach())
        return codes_B, F.embedding(codes_B, vectors_Vd)

    def restart_dead(self, rows_Id: Tensor, codes_IL: Tensor, generator: torch.Generator) -> None:
        """Give each code without an item the row of a random item."""
        dead_M = dead_codes(codes_IL[:, 0], self.config.codes)
        drawn_M = torch.randint(len(rows_Id), (len(dead_M),), generator=generator).to(rows_Id.device)
        self.codebook.put(dead_M, rows_Id[drawn_M])


@dataclass(frozen=True)
class VQVAE:
    """The quantizer of `quantize.method: vqvae`."""

    config: QuantizeConfig
    seed: int

    def fit(self, vectors_Id: Vectors) -> Quantized:
        """Quantize all items by `fit_residuals`.

        Raises:
            UserError: there are more codes than items, or training diverged.
        """
        require_items(self.config.codes, len(vectors_Id))
        return fit_residuals(vectors_Id, self.config.levels, self.config.normalize_residuals, self._learn)

    def _learn(self, level_rows_Id: LevelRows, level: int) -> tuple[np.ndarray, np.ndarray]:
        """Train one level and return (codebook [V, d], code of each row [I])."""
        rows_Id = np.asarray(level_rows_Id)
        device = open_device(self.config, rows_Id.shape[1])
        rows = torch.from_numpy(rows_Id).to(device)
        seed = int(np.random.default_rng([self.seed, level]).integers(2**31 - 1))
        model = Level(self.config, rows.shape[1]).to(device)
        start_V = plus_plus(rows, self.config.codes, torch.Generator().manual_seed(seed))
        model.codebook.put(torch.arange(self.config.codes, device=device), rows[start_V])
        train_quantizer(model, rows, self.config, seed, f"quantize: vqvae, level {level + 1}")
        codes_I = encode_all(model, rows).codes_BL[:, 0]
        return model.codebook.vectors().detach().cpu().numpy(), codes_I.cpu().numpy()


def plus_plus(rows_Id: Tensor, codes: int, generator: torch.Generator) -> Tensor:
    """Draw the first centroids by k-means++ (Arthur and Vassilvitskii 2007) and return their rows, int64 [V].

    The chance of a row is proportional to its squared distance to the nearest row that was drawn before.
    """
    chosen = [int(torch.randint(len(rows_Id), (1,), generator=generator))]
    squares_I = torch.full((len(rows_Id),), torch.inf, device=rows_Id.device)
    for _ in range(codes - 1):
        squares_I = torch.minimum(squares_I, (rows_Id - rows_Id[chosen[-1]]).square().sum(1))
        chances_I = squares_I.cpu().double()
        if not chances_I.any():  # all distinct rows are drawn already: draw any row
            chances_I += 1
        chosen.append(int(torch.multinomial(chances_I, 1, generator=generator)))
    return torch.tensor(chosen, device=rows_Id.device)
