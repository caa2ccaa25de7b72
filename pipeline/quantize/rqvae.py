"""RQ-VAE: an encoder, residual quantization of its output, and a decoder, trained together.

Papers: Lee et al. 2022 (residual quantization of a latent), Rajput et al. 2023 (TIGER: as Semantic IDs of items), Zhu
et al. 2024 (`simvq`, see simvq.py, which this file runs too).

Loss: |x - x'|^2 + sum over levels l of |sg(r_l) - e_l|^2 + commitment * |r_l - sg(e_l)|^2, each a mean of entries, with
r_1 the encoder's output, e_l the code nearest to r_l, r_{l+1} = r_l - e_l, and x' decoded from the sum of the e_l, past
which gradients go straight through or by the rotation trick (`quantize.estimator`).

rqvae starts from k-means on the untrained encoder's output, level by level, and lets a code that no item has start
again at a random item. Embeddings are centred and scaled to a mean square of 1 first, so that the loss's terms are of
one size whatever the encoder of the text. Deliberately different from TIGER: Adam rather than Adagrad, an early stop,
and a smaller network by default (`quantize.hidden`: TIGER's is 512, 256, 128 with a latent of 32).

Shape legend: I items, B items of a batch, L levels, V codes of a level, M codes without an item, d width of the
embeddings, k width of the latent, the vectors that the levels quantize.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.quantize.codebook import Codebook, codebook_loss, nearest_codes, rotation, straight_through
from pipeline.quantize.config import QuantizeConfig
from pipeline.quantize.quantizer import Quantized, require_items
from pipeline.quantize.rkmeans import kmeans
from pipeline.quantize.rows import Vectors
from pipeline.quantize.simvq import MappedCodebook
from pipeline.quantize.trainer import CHUNK, EncodedBatch, dead_codes, open_device, train_quantizer


class ResidualAutoencoder(nn.Module):
    """Encoder, one codebook per level, decoder."""

    def __init__(self, config: QuantizeConfig, width: int):
        super().__init__()
        self.config = config
        mlp = config.encoder == "mlp"
        latent = config.latent if mlp else width
        self.encoder = _mlp((width, *config.hidden, latent)) if mlp else nn.Identity()
        self.decoder = _mlp((latent, *reversed(config.hidden), width)) if mlp else nn.Identity()
        self.levels = nn.ModuleList(
            MappedCodebook(config.codes, latent, config.bias)
            if config.method == "simvq"
            else Codebook(config.codes, latent)
            for _ in range(config.levels)
        )

    @property
    def books(self) -> list[Codebook | MappedCodebook]:
        """Return the codebooks of the levels, with the type that `nn.ModuleList` hides."""
        return cast(list[Codebook | MappedCodebook], list(self.levels))

    def quantize(self, rows_Bk: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return lists by level: the codes [B], the rows that were quantized [B, k], and the codes' vectors [B, k]."""
        codes = []
        quantized = []
        chosen = []
        for level in self.books:
            # A row 5.2 with the vectors 1 and 5 gets code 1 and leaves 0.2 to the next level.
            vectors_Vk = level.vectors()
            codes.append(nearest_codes(rows_Bk.detach(), vectors_Vk.detach()))
            quantized.append(rows_Bk)
            chosen.append(F.embedding(codes[-1], vectors_Vk))
            rows_Bk = rows_Bk - chosen[-1].detach()
        return codes, quantized, chosen

    def loss(self, rows_Bd: Tensor) -> Tensor:
        """Return the reconstruction error plus each level's codebook loss, as in the module's docstring."""
        latent_Bk = self.encoder(rows_Bd)
        _, quantized, chosen = self.quantize(latent_Bk)
        losses = [codebook_loss(r, e, self.config.commitment) for r, e in zip(quantized, chosen, strict=True)]

        # The decoder reads the sum of the chosen vectors; its gradient goes past the choice of codes to the encoder.
        estimate = rotation if self.config.estimator == "rotation" else straight_through
        rebuilt_Bd = self.decoder(estimate(latent_Bk, torch.stack(chosen).sum(0)))
        return F.mse_loss(rebuilt_Bd, rows_Bd) + torch.stack(losses).sum()

    def encode(self, rows_Bd: Tensor) -> EncodedBatch:
        """Return the codes and the squared errors of the reconstructions."""
        codes, _, chosen = self.quantize(self.encoder(rows_Bd))
        rebuilt_Bd = self.decoder(torch.stack(chosen).sum(0))
        return EncodedBatch(torch.stack(codes, 1), (rebuilt_Bd - rows_Bd).square().sum(1))

    @torch.no_grad()
    def start(self, rows_Id: Tensor, seed: int) -> None:
        """Start the codebooks from k-means on the encoder's output, level by level; mapped codebooks stay as drawn."""
        rows_Ik = torch.cat([self.encoder(rows) for rows in torch.split(rows_Id, CHUNK)])
        for number, level in enumerate(self.books):
            if not isinstance(level, Codebook):
                return

            # k-means on the rows of this level; its centroids become the codebook.
            level_seed = int(np.random.default_rng([seed, number]).integers(2**31 - 1))
            rows = rows_Ik.cpu().numpy()
            centroids_Vk, codes_I = kmeans(
                rows,
                self.config.codes,
                self.config.iterations,
                level_seed,
                "cpu" if self.config.device == "cpu" else "auto",
            )
            vectors_Vk = torch.from_numpy(centroids_Vk).to(rows_Ik.device)
            level.put(torch.arange(len(vectors_Vk), device=rows_Ik.device), vectors_Vk)

            # The residuals are the rows of the next level.
            rows_Ik = rows_Ik - vectors_Vk[torch.from_numpy(codes_I).to(rows_Ik.device)]

    @torch.no_grad()
    def restart_dead(self, rows_Id: Tensor, codes_IL: Tensor, generator: torch.Generator) -> None:
        """Give each code without an item the row that a random item brings to its level."""
        for number, level in enumerate(self.books):
            dead_M = dead_codes(codes_IL[:, number], self.config.codes)
            if isinstance(level, Codebook) and len(dead_M):
                drawn_M = torch.randint(len(rows_Id), (len(dead_M),), generator=generator).to(rows_Id.device)
                # The levels before have been restarted already, so the items' rows are computed anew.
                _, quantized, _ = self.quantize(self.encoder(rows_Id[drawn_M]))
                level.put(dead_M, quantized[number])


@dataclass(frozen=True)
class RQVAE:
    """The quantizer of `quantize.method: rqvae` and `simvq`."""

    config: QuantizeConfig
    seed: int

    def fit(self, vectors_Id: Vectors) -> Quantized:
        """Train the autoencoder and quantize all items.

        The codebooks are `level_1`.. [V, k] and, except for `encoder: identity`, the weights of encoder and decoder;
        `center` [d] and `scale` [1] convert a vector x to their units: (x - center) / scale.

        Raises:
            UserError: there are more codes than items, faiss is not installed, or training diverged.
        """
        config = self.config
        vectors_Id = np.asarray(vectors_Id)
        require_items(config.codes, len(vectors_Id))
        device = open_device(config, vectors_Id.shape[1])

        # Centre the vectors and scale them to a mean square of 1.
        center_d = vectors_Id.mean(axis=0, dtype=np.float64)
        scale = max(float(np.sqrt(np.square(vectors_Id - center_d).mean())), 1e-12)  # all items alike: any scale does
        rows_Id = torch.from_numpy(((vectors_Id - center_d) / scale).astype(np.float32)).to(device)

        torch.manual_seed(self.seed)  # decides the first weights
        model = ResidualAutoencoder(config, rows_Id.shape[1]).to(device)
        model.start(rows_Id, self.seed)
        train_quantizer(model, rows_Id, config, self.seed, f"quantize: {config.method}")
        return self._quantized(model, rows_Id, center_d, scale)

    @torch.no_grad()
    def _quantized(self, model: ResidualAutoencoder, rows_Id: Tensor, center_d: np.ndarray, scale: float) -> Quantized:
        """Quantize all items with the trained model, chunk by chunk, and collect its tensors."""
        parts = [model.quantize(model.encoder(rows)) for rows in torch.split(rows_Id, CHUNK)]
        codes_IL = torch.cat([torch.stack(codes, 1) for codes, _, _ in parts]).cpu().numpy().astype(np.int32)
        last_rows_Ik = torch.cat([quantized[-1] for _, quantized, _ in parts])

        # The sum of the chosen vectors without the last level's, to which `errors_with` adds other last vectors.
        before_Ik = torch.cat([torch.stack(chosen).sum(0) - chosen[-1] for _, _, chosen in parts])

        @torch.no_grad()
        def errors_with(codes_I: np.ndarray) -> np.ndarray:
            sums_Ik = before_Ik + model.books[-1].vectors()[torch.from_numpy(codes_I).long().to(rows_Id.device)]
            errors = [
                (model.decoder(sums) - rows).norm(dim=1)
                for sums, rows in zip(torch.split(sums_Ik, CHUNK), torch.split(rows_Id, CHUNK), strict=True)
            ]
            return scale * torch.cat(errors).double().cpu().numpy()

        # level_1, level_2, ..., encoder.0.weight, ..., decoder.0.weight, ..., center, scale
        books = {f"level_{number}": level.vectors() for number, level in enumerate(model.books, 1)}
        books |= {
            f"{part}.{name}": value
            for part in ("encoder", "decoder")
            for name, value in getattr(model, part).state_dict().items()
        }
        tensors = {name: value.detach().cpu().numpy() for name, value in books.items()}
        tensors |= {"center": center_d.astype(np.float32), "scale": np.array([scale], np.float32)}
        return Quantized(
            codes_IL=codes_IL,
            codebooks=tensors,
            errors_I=errors_with(codes_IL[:, -1]),
            last_rows_Ik=last_rows_Ik.cpu().numpy(),
            errors_with=errors_with,
        )


def _mlp(widths: tuple[int, ...]) -> nn.Sequential:
    """Build linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
