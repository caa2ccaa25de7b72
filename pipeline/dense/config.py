"""Check the section `dense` of params.yaml."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pipeline.knobs import Between, RatioBelow1


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """These settings say how the dense retriever is made."""

    enabled: bool
    text: bool  # an item is its id and its content vector, not its id alone
    dim: Annotated[int, Between(1, 4096)]  # of an item's vector, and of the network
    layers: Annotated[int, Between(1, 32)]
    heads: Annotated[int, Between(1, 64)]  # they share the `dim` columns
    dropout: RatioBelow1
    learning_rate: Annotated[float, Between(1e-12, 1e6)]
    batch_items: Annotated[int, Between(1, 100_000_000)]  # of an optimizer step, over all processes
    max_epochs: Annotated[int, Between(1, 1_000_000)]
    ema: RatioBelow1  # decay of the averaged weights that are then evaluated and saved; 0: off
    # how the items with the largest scores are found; auto: exact up to 200,000 items, ivf above
    index: Literal["auto", "exact", "flat", "ivf"]
    # steps, or auto: when training has cost nine times the arithmetic of a validation
    validate_every: Literal["auto"] | Annotated[int, Between(1, 1_000_000_000)]
    patience: Annotated[int, Between(1, 1_000_000_000)]  # validations without a better recall@10 before training stops
    checkpoint_every: Annotated[int, Between(1, 1_000_000_000)]  # steps
    device: Literal["auto", "cpu", "cuda"]
    # 0: the cores available over the DVC jobs that run, and no more than a step keeps busy
    threads: Annotated[int, Between(0, 1024)]
    compile: bool  # GPU: compile the step and record it as CUDA graphs
    deterministic: bool  # GPU: bit-exact repeats, slower; a CPU always is

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"dense.heads {self.heads} must divide dense.dim {self.dim}, since each head has a share")
