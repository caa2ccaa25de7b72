"""Check the section `train` of params.yaml."""

from dataclasses import dataclass
from typing import Literal

from pipeline.metric_names import LARGEST_K


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """These settings say how windows are drawn, batched and learned from."""

    windows: Literal["random_start", "prefixes", "all", "sequences"]
    targets: Literal["last", "all"]  # of a window: the item after it, or also every item in it but the first
    max_windows: int  # windows to train on, over all epochs; training ends with the step that reaches it
    batching: Literal["packed", "padded"]
    batch_tokens: int  # encoder positions of one optimizer step, over all processes
    pad_to: int  # padded: positions per window; 0: what max_history needs
    accumulate: int  # parts a step is split into, to fit memory; results do not depend on it
    optimizer: Literal["adam", "adamw"]
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    schedule: Literal["constant", "cosine", "linear"]
    clip_norm: float  # 0: no clipping
    ema: float  # decay of the averaged weights that are then evaluated and saved; 0: off
    precision: Literal["auto", "float32", "bfloat16"]  # auto: bfloat16 on a GPU, float32 on a CPU
    validate_every: int  # steps
    patience: int  # validations without a better score before training stops
    select: Literal["recall_at_5", "recall_at_10", "ndcg_at_5", "ndcg_at_10", "mrr_at_10", "loss"]
    beam: int  # beam width of validation; constrained
    checkpoint_every: int  # steps
    device: Literal["auto", "cpu", "cuda"]
    compile: bool  # GPU: compile the step and record it as CUDA graphs; costs half a minute at the first one
    threads: int  # 0: the cores available over the DVC jobs that run, and no more than a step keeps busy
    deterministic: bool  # GPU: bit-exact repeats, slower; a CPU always is

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
        if self.beam < LARGEST_K:
            raise ValueError(f"train.beam must be {LARGEST_K} or more: validation counts the first {LARGEST_K} items")
        for name in ("pad_to", "warmup_steps", "threads"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name} must be 0 or more")
        if self.learning_rate <= 0 or self.weight_decay < 0 or self.clip_norm < 0:
            raise ValueError("train needs learning_rate > 0, weight_decay >= 0 and clip_norm >= 0")
