"""The settings of the stage quantize: section `quantize` of params.yaml."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """Say how vectors become Semantic IDs."""

    method: Literal["rkmeans", "rqvae", "vqvae", "simvq"]
    interactions: (
        float  # share of co-occurrence in the distance of two items; 0: vectors of embed only, 1: none of them
    )
    interaction_window: int  # two items of a user co-occur when at most this many steps apart
    interaction_shift: float  # how much more often than by chance two items must co-occur to be related
    interaction_dimensions: int  # width of the vectors from interactions (never more than the data allow)
    levels: int  # codes per item, the deduplication digit not counted
    codes: int  # codebook size of each level
    normalize_input: bool  # L2-normalise the embeddings first
    normalize_residuals: bool  # rkmeans, vqvae: L2-normalise what each level leaves, as GRID: fewer collisions
    collisions: Literal["digit", "sinkhorn", "none"]  # what tells items of equal codes apart
    digit_width: int  # values the deduplication digit may take; 0: as many as the largest group needs
    max_collision_rate: float  # share of items with the codes of another above which the stage fails
    iterations: int  # Lloyd iterations per level of k-means
    restarts: int  # rkmeans: runs of k-means per level; the best one counts
    # rqvae and simvq
    encoder: Literal["mlp", "identity"]  # identity: the levels quantize the embeddings themselves
    hidden: tuple[int, ...]  # widths between the embedding and the latent; the decoder mirrors them
    latent: int  # width that is quantized
    estimator: Literal["straight_through", "rotation"]  # gradient past the choice of a code
    bias: bool  # simvq: of each level's linear map
    # rqvae, vqvae and simvq
    commitment: float  # weight of the term that pulls what is quantized towards its code
    restart_dead: bool  # rqvae, vqvae: a code without items starts again at a random item
    learning_rate: float
    batch_items: int
    max_steps: int  # optimizer steps; vqvae: of each level
    patience: int  # checks without a better reconstruction after which training stops
    device: Literal["auto", "cpu", "cuda"]

    def __post_init__(self) -> None:
        if self.levels < 1 or self.codes < 2 or self.iterations < 1 or self.restarts < 1:
            raise ValueError("quantize needs levels >= 1, codes >= 2, iterations >= 1 and restarts >= 1")
        if not 0 <= self.interactions <= 1:
            raise ValueError("quantize.interactions is a share between 0 and 1")
        if self.interaction_window < 1 or self.interaction_dimensions < 1:
            raise ValueError("quantize needs interaction_window >= 1 and interaction_dimensions >= 1")
        if not 1 <= self.interaction_shift < float("inf"):
            raise ValueError("quantize.interaction_shift is a finite number, 1 or more")
        if self.digit_width < 0:
            raise ValueError("quantize.digit_width must be 0 (as many as needed) or more")
        if not 0 <= self.max_collision_rate <= 1:
            raise ValueError("quantize.max_collision_rate is a share between 0 and 1")
        if min(self.hidden, default=1) < 1 or self.latent < 1:
            raise ValueError("quantize.hidden and quantize.latent are widths, 1 or more")
        if self.batch_items < 1 or self.max_steps < 1 or self.patience < 1:
            raise ValueError("quantize needs batch_items >= 1, max_steps >= 1 and patience >= 1")
        if self.learning_rate <= 0 or self.commitment < 0:
            raise ValueError("quantize.learning_rate must be above 0 and quantize.commitment 0 or more")
