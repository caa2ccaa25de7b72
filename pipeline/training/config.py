"""What `train:` in params.yaml may say."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainConfig:
    """How windows are drawn, batched and learned from."""

    windows: Literal["random_start", "prefixes", "all", "sequences"] = "random_start"
    targets: Literal["last", "all"] = "last"  # of a window: the item after it, or also every item in it but the first
    max_windows: int = 250_000  # windows to train on, over all passes; training ends with the step that reaches it
    batching: Literal["packed", "padded"] = "packed"
    batch_tokens: int = 8192  # encoder positions of one optimizer step, over all processes
    pad_to: int = 0  # padded: positions per window; 0: what max_history needs
    accumulate: int = 1  # parts a step is split into, to fit memory; results do not depend on it
    optimizer: Literal["adam", "adamw"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    clip_norm: float = 0.0  # 0: no clipping
    ema: float = 0.0  # decay of the averaged weights that are then evaluated and saved; 0: off
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on a GPU, float32 on a CPU
    validate_every: int = 200  # steps
    patience: int = 10  # validations without a better score before training stops
    select: Literal["recall_at_5", "recall_at_10", "ndcg_at_5", "ndcg_at_10", "mrr_at_10", "loss"] = "recall_at_10"
    beam: int = 10  # of validation; constrained
    checkpoint_every: int = 200  # steps
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool = True  # GPU: compile the step and record it as CUDA graphs; costs half a minute at the first one
    threads: int = 0  # 0: the cores available over the DVC jobs that run, and no more than a step keeps busy
    deterministic: bool = False  # GPU: bit-exact repeats, slower; a CPU always is

    def __post_init__(self) -> None:
        at_least_one = (
            "max_windows",
            "batch_tokens",
            "accumulate",
            "validate_every",
            "patience",
            "beam",
            "checkpoint_every",
        )
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be 1 or more")
        if self.windows == "sequences" and self.targets != "all":
            raise ValueError(
                "train.windows sequences shows each item once, and only train.targets all makes every one "
                "a target: set train.targets to all, or choose other windows"
            )
        if not 0 <= self.ema < 1:
            raise ValueError("train.ema must lie in [0, 1)")
        if self.select != "loss" and self.beam < int(self.select.rsplit("_", 1)[1]):
            raise ValueError(f"train.beam ({self.beam}) is narrower than train.select ({self.select}) counts")
        for name in ("pad_to", "warmup_steps", "threads"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name} must be 0 or more")
        if self.learning_rate <= 0 or self.weight_decay < 0 or self.clip_norm < 0:
            raise ValueError("train needs learning_rate > 0, weight_decay >= 0 and clip_norm >= 0")
