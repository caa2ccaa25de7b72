"""What IntRR's released code calls VQ-VAE: residual vector quantization of the embeddings themselves.

Paper: IntRR, "Implementation Details", which cites van den Oord et al. 2017. Its code has no encoder and no decoder
there: each level is a codebook on what the level before left over, L2-normalised, trained level by level from a
k-means++ start, with straight-through and commitment 0.25. This file does the same. Without an encoder nothing lies
before the choice of a code, so straight-through and the commitment change no gradient: what is left is |sg(r) - e|^2,
k-means by gradient steps.

Deliberately different: the k-means++ start draws from all items rather than from a buffer of 3,072; Adam rather than
Adagrad; dead codes may start again (`quantize.restart_dead`), and a level stops early by its reconstruction.

Shape legend: I items, B items of a batch, C codes of a level, d embedding width.
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
from pipeline.quantize.trainer import EncodedBatch, dead_codes, encode_all, open_device, train_quantizer


class Level(nn.Module):
    """One codebook on rows [I, d]."""

    def __init__(self, config: QuantizeConfig, width: int):
        super().__init__()
        self.config, self.codebook = config, Codebook(config.codes, width)

    def loss(self, rows_Bd: Tensor) -> Tensor:
        """The codebook loss."""
        return codebook_loss(rows_Bd, self._chosen(rows_Bd)[1], self.config.commitment)

    def encode(self, rows_Bd: Tensor) -> EncodedBatch:
        """Codes [B, 1] and squared errors."""
        codes_B, chosen_Bd = self._chosen(rows_Bd)
        return EncodedBatch(codes_B[:, None], (rows_Bd - chosen_Bd).square().sum(1))

    def _chosen(self, rows_Bd: Tensor) -> tuple[Tensor, Tensor]:
        vectors_Cd = self.codebook.vectors()
        codes_B = nearest_codes(rows_Bd, vectors_Cd.detach())
        return codes_B, F.embedding(codes_B, vectors_Cd)

    def restart_dead(self, rows_Id: Tensor, codes_IL: Tensor, generator: torch.Generator) -> None:
        """Give each code without an item a random item's row."""
        dead_D = dead_codes(codes_IL[:, 0], self.config.codes)
        drawn_D = torch.randint(len(rows_Id), (len(dead_D),), generator=generator).to(rows_Id.device)
        self.codebook.put(dead_D, rows_Id[drawn_D])


@dataclass(frozen=True)
class VQVAE:
    """See `QuantizeConfig` for the fields."""

    config: QuantizeConfig
    seed: int

    def fit(self, vectors_Id: np.ndarray) -> Quantized:
        """As `fit_residuals`.

        Raises:
            UserError: more codes than items, or training diverged.
        """
        require_items(self.config.codes, len(vectors_Id))
        return fit_residuals(vectors_Id, self.config.levels, self.config.normalize_residuals, self._learn)

    def _learn(self, rows_Id: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
        """(codebook [C, d], code of each row [I]) of one level."""
        device = open_device(self.config, rows_Id.shape[1])
        rows = torch.from_numpy(rows_Id).to(device)
        seed = int(np.random.default_rng([self.seed, level]).integers(2**31 - 1))
        model = Level(self.config, rows.shape[1]).to(device)
        start_C = plus_plus(rows, self.config.codes, torch.Generator().manual_seed(seed))
        model.codebook.put(torch.arange(self.config.codes, device=device), rows[start_C])
        train_quantizer(model, rows, self.config, seed, f"quantize: vqvae, level {level + 1}")
        codes_I = encode_all(model, rows).codes_BL[:, 0]
        return model.codebook.vectors().detach().cpu().numpy(), codes_I.cpu().numpy()


def plus_plus(rows_Id: Tensor, codes: int, generator: torch.Generator) -> Tensor:
    """int64 [C]: k-means++, rows drawn with chances that grow with the squared distance to those drawn before."""
    chosen = [int(torch.randint(len(rows_Id), (1,), generator=generator))]
    squares_I = torch.full((len(rows_Id),), torch.inf, device=rows_Id.device)
    for _ in range(codes - 1):
        squares_I = torch.minimum(squares_I, (rows_Id - rows_Id[chosen[-1]]).square().sum(1))
        chances_I = squares_I.cpu().double()
        if not chances_I.any():  # fewer distinct rows than codes: any of them
            chances_I += 1
        chosen.append(int(torch.multinomial(chances_I, 1, generator=generator)))
    return torch.tensor(chosen, device=rows_Id.device)
