"""Check the section `train` of params.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pipeline.errors import UserError
from pipeline.knobs import Between, RatioBelow1
from pipeline.metric_names import LARGEST_K

OF_RANKING = ("auc", "loss")  # what train.select may be under train.task ranking


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """These settings say how windows are drawn, batched and learned from."""

    # the next item after a history, or the actions of an exposure after all exposures before it
    task: Literal["retrieval", "ranking"]
    windows: Literal["random_start", "prefixes", "all", "sequences"]
    targets: Literal["last", "all"]  # of a window: the item after it, or also every item in it but the first
    # windows to train on, over all epochs; training ends with the step that reaches it
    max_windows: Annotated[int, Between(1, 1_000_000_000_000)]
    batching: Literal["packed", "padded"]
    batch_tokens: Annotated[int, Between(1, 100_000_000)]  # encoder positions of one optimizer step, over all processes
    pad_to: Annotated[int, Between(0, 1_000_000)]  # padded: positions per window; 0: what max_history needs
    # parts a step is split into, to fit memory; results do not depend on it
    accumulate: Annotated[int, Between(1, 1024)]
    optimizer: Literal["adam", "adamw", "muon"]
    learning_rate: Annotated[float, Between(1e-12, 1e6)]
    weight_decay: Annotated[float, Between(0, 1e6)]
    warmup_steps: Annotated[int, Between(0, 1_000_000_000)]
    schedule: Literal["constant", "cosine", "linear"]
    clip_norm: Annotated[float, Between(0, 1e9)]  # 0: no clipping
    ema: RatioBelow1  # decay of the averaged weights that are then evaluated and saved; 0: off
    precision: Literal["auto", "float32", "bfloat16"]  # auto: bfloat16 on a GPU, float32 on a CPU
    # steps, or auto: when training has cost nine times the arithmetic of a validation (training/validation_times.py)
    validate_every: Literal["auto"] | Annotated[int, Between(1, 1_000_000_000)]
    validate_in: Literal["steps", "windows"]  # what a number of validate_every counts; skipped windows count too
    valid_users: Annotated[int, Between(0, 1_000_000_000)]  # users of a validation; 0: all
    patience: Annotated[int, Between(1, 1_000_000_000)]  # validations without a better score before training stops
    select: Literal["recall_at_5", "recall_at_10", "ndcg_at_5", "ndcg_at_10", "mrr_at_10", "auc", "loss"]
    # beam width of validation; constrained
    beam: Annotated[int, Between(LARGEST_K, 10_000, why=f"validation counts the first {LARGEST_K} items")]
    checkpoint_every: Annotated[int, Between(1, 1_000_000_000)]  # steps
    device: Literal["auto", "cpu", "cuda"]
    compile: bool  # GPU: compile the step and record it as CUDA graphs; costs half a minute at the first one
    # 0: the cores available over the DVC jobs that run, and no more than a step keeps busy
    threads: Annotated[int, Between(0, 1024)]
    deterministic: bool  # GPU: bit-exact repeats, slower; a CPU always is

    SAVED_WITHOUT: ClassVar[Mapping[str, object]] = {
        "validate_in": "steps",
        "task": "retrieval",
    }  # as in backbones/config.py

    def __post_init__(self) -> None:
        if self.task == "ranking" and self.select not in OF_RANKING:
            raise ValueError(
                f"train.select {self.select} measures a ranking of items, and train.task ranking predicts actions: set "
                f"train.select to {' or '.join(OF_RANKING)}"
            )
        if self.task == "retrieval" and self.select == "auc":
            raise ValueError(
                "train.select auc measures predicted actions, and train.task retrieval ranks items: set train.select "
                "to recall_at_10, another metric of a ranking or loss, or train.task to ranking"
            )
        if self.validate_in == "windows" and self.validate_every == "auto":
            raise ValueError(
                "train.validate_every auto counts arithmetic, and train.validate_in windows counts windows: set "
                "train.validate_every to a number of windows, or train.validate_in to steps"
            )
        if self.windows == "sequences" and self.targets != "all":
            raise ValueError(
                "train.windows sequences shows each item once, and only train.targets all makes every one "
                "a target: set train.targets to all, or choose other windows"
            )

    def check_room(self, max_history: int, per_item: int, *, budget: str = "train.batch_tokens") -> None:
        """Check that the longest history fits into a step, and into a padded row.

        Args:
            max_history: items of the longest history.
            per_item: positions that an item takes.
            budget: name of the setting that `batch_tokens` came from.

        Raises:
            UserError: it does not fit.
        """
        longest = max_history * per_item
        if self.batch_tokens < longest:
            raise UserError(
                f"{budget} is {self.batch_tokens}, but one history may take {longest} positions",
                f"{max_history} items (split.max_history) of {per_item} positions",
                f"raise {budget} or lower split.max_history",
            )
        if self.batching == "padded" and 0 < self.pad_to < longest:
            raise UserError(
                f"train.pad_to is {self.pad_to}, but one history may take {longest} positions",
                "a padded window must hold the longest history",
                f"set it to 0, or to {longest} or more",
            )
