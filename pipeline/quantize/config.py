"""The settings of the stage quantize: section `quantize` of params.yaml."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pipeline.knobs import Between, Ratio

MOST_HIDDEN = 16  # layers between the embedding and the latent

FEWEST_CODES = 2  # of a level


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """Say how vectors become Semantic IDs."""

    method: Literal["rkmeans", "rqvae", "vqvae", "simvq"]
    # share of co-occurrence in the distance of two items; 0: vectors of embed only, 1: none of them
    interactions: Ratio
    interaction_window: Annotated[int, Between(1, 1000)]  # two items of a user co-occur at most this many steps apart
    # how much more often than by chance two items must co-occur to be related
    interaction_shift: Annotated[float, Between(1, 1e6)]
    # width of the vectors from interactions (never more than the data allow)
    interaction_dimensions: Annotated[int, Between(1, 16_384)]
    levels: Annotated[int, Between(1, 32)]  # codes per item, the deduplication digit not counted
    codes: Annotated[int, Between(FEWEST_CODES, 65_536)]  # codebook size of each level
    normalize_input: bool  # L2-normalise the embeddings first
    normalize_residuals: bool  # rkmeans, vqvae: L2-normalise what each level leaves, as GRID: fewer collisions
    collisions: Literal["digit", "sinkhorn", "none"]  # what tells items of equal codes apart
    # values the deduplication digit may take; 0: as many as the largest group needs
    digit_width: Annotated[int, Between(0, 1_000_000)]
    max_collision_rate: Ratio  # share of items with the codes of another above which the stage fails
    iterations: Annotated[int, Between(1, 10_000)]  # Lloyd iterations per level of k-means
    restarts: Annotated[int, Between(1, 100)]  # rkmeans: runs of k-means per level; the best one counts
    # rkmeans: items that each level learns from, for each code; more items are sampled. 0: all items
    points_per_code: Annotated[int, Between(0, 1_000_000_000)]
    # rqvae and simvq
    encoder: Literal["mlp", "identity"]  # identity: the levels quantize the embeddings themselves
    # widths between the embedding and the latent; the decoder mirrors them
    hidden: tuple[Annotated[int, Between(1, 65_536)], ...]
    latent: Annotated[int, Between(1, 65_536)]  # width that is quantized
    estimator: Literal["straight_through", "rotation"]  # gradient past the choice of a code
    bias: bool  # simvq: of each level's linear map
    # rqvae, vqvae and simvq
    commitment: Annotated[float, Between(0, 1e6)]  # weight of the term that pulls what is quantized towards its code
    restart_dead: bool  # rqvae, vqvae: a code without items starts again at a random item
    learning_rate: Annotated[float, Between(1e-12, 1000)]
    batch_items: Annotated[int, Between(1, 10_000_000)]
    max_steps: Annotated[int, Between(1, 100_000_000)]  # optimizer steps; vqvae: of each level
    patience: Annotated[int, Between(1, 1_000_000)]  # checks without a better reconstruction after which training stops
    device: Literal["auto", "cpu", "cuda"]

    def __post_init__(self) -> None:
        if len(self.hidden) > MOST_HIDDEN:
            raise ValueError(f"quantize.hidden has {len(self.hidden)} widths, {MOST_HIDDEN} at most")
