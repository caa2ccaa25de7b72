"""Compute once what the settings of a stage say to each part of training, so that no part reads them again."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from pipeline import __version__
from pipeline.artifacts import Sids, Splits
from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.item_head import FULL_SOFTMAX_ITEMS, NEGATIVES
from pipeline.errors import UserError
from pipeline.strategies.actions import ActionNetwork
from pipeline.strategies.base import Network
from pipeline.strategies.registry import ChosenStrategies, choose_strategies
from pipeline.training.collate import Collator
from pipeline.training.config import TrainConfig
from pipeline.training.negatives import Negatives, counts_in_training
from pipeline.training.words import TRAIN, StageWords

# These change how fast or how safely a run goes, not what it learns, so a checkpoint outlives a change of them.
NO_INFLUENCE = ("threads", "checkpoint_every")


class RecipeSettings(Protocol):
    """`RecipeSettings` declares what a recipe is computed from: the keys of params.yaml by which `train` trains."""

    @property
    def seed(self) -> int: ...

    @property
    def strategy(self) -> str: ...

    @property
    def dataset(self) -> str: ...

    @property
    def backbone(self) -> BackboneConfig: ...

    @property
    def train(self) -> TrainConfig: ...

    @property
    def strategies(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """A recipe says to each part of a run how it trains."""

    seed: int
    dataset: str
    config: TrainConfig
    backbone: BackboneConfig
    chosen: ChosenStrategies
    max_history: int  # items of a history, at most
    pad_to: int  # encoder positions of every window of a padded run; 0: packed
    input_tokens_per_item: int  # positions that an item of a history takes in the backbone
    budget: int  # encoder positions of one step, where an item takes `input_tokens_per_item`
    words: StageWords

    @classmethod
    def of(cls, params: RecipeSettings, splits: Splits, sids: Sids, words: StageWords = TRAIN) -> "TrainingRecipe":
        """Compute the recipe of `params` on these splits and Semantic IDs.

        Raises:
            UserError: the two were made from different logs, or a history does not fit the budget or the padding.
        """
        config = params.train
        levels = len(sids.widths)
        backbone = params.backbone
        if backbone.over_items:  # an item is one position, which nothing separates
            backbone = dataclasses.replace(backbone, separators=False)
        sid_tokens_per_item = backbone.positions_per_item(levels)  # of a whole Semantic ID
        longest = splits.max_history * sid_tokens_per_item
        _check(config, splits, sids, sid_tokens_per_item, words)
        chosen = choose_strategies(params.strategy, params.strategies)
        input_tokens_per_item = chosen.input_tokens_per_item(levels + backbone.actions, backbone.separators)
        return cls(
            seed=params.seed,
            dataset=params.dataset,
            config=config,
            backbone=backbone,
            chosen=chosen,
            max_history=splits.max_history,
            pad_to=(config.pad_to or longest) if config.batching == "padded" else 0,
            input_tokens_per_item=input_tokens_per_item,
            # train.batch_tokens counts whole Semantic IDs, so that a step has the same windows under every strategy.
            budget=config.batch_tokens * input_tokens_per_item // sid_tokens_per_item,
            words=words,
        )

    @property
    def all_targets(self) -> bool:
        """Return whether every item of a window but the first is a target too."""
        return self.config.targets == "all"

    @property
    def words_of_rows(self) -> str:
        """Return what a user's sequence is made of."""
        return "exposures" if self.config.task == "ranking" else "interactions"

    def network(self) -> Network:
        """Return the network's part of the strategy, for the task."""
        return ActionNetwork() if self.config.task == "ranking" else self.chosen.network(self.pad_to)

    def collator(self, splits: Splits, codes_IL: Tensor, network: Network) -> Collator:
        """Build what makes batches of the splits' windows, on the device of the catalogue's codes."""
        negatives = None
        ranks_items = self.config.task == "retrieval"
        draws = self.backbone.negatives or (NEGATIVES if len(codes_IL) > FULL_SOFTMAX_ITEMS else 0)
        if self.backbone.over_items and draws and ranks_items:
            negatives = Negatives(counts_in_training(splits), draws, self.seed)
        return Collator(
            np.asarray(splits.items_N),
            codes_IL,
            times_M=splits.seconds() if self.backbone.wants_times else None,
            pad_to=self.pad_to,
            longest=self.max_history,
            all_targets=self.all_targets,
            weigh_items=network.items,
            negatives=negatives,
            actions_MA=splits.actions_NA if self.backbone.actions else None,
            predicts_items=ranks_items,
        )

    def influences(self) -> dict[str, Any]:
        """Return every parameter that shapes the result of training, as plain values."""
        train = {key: value for key, value in dataclasses.asdict(self.config).items() if key not in NO_INFLUENCE}
        return {
            "version": __version__,
            "seed": self.seed,
            "strategy": self.chosen.text,
            "train": train,
            "backbone": dataclasses.asdict(self.backbone),
            **self.chosen.plain_settings(),
        }

    def model_config(self, inputs: Mapping[str, str]) -> dict[str, Any]:
        """Return what models/generator/config.json says of the run.

        Args:
            inputs: fingerprints of the Semantic IDs and splits that the model was trained on, by name.
        """
        return {
            "strategy": self.chosen.text,
            **self.chosen.plain_settings(),
            "pad_to": self.pad_to,
            "max_history": self.max_history,
            "seed": self.seed,
            "dataset": self.dataset,
            "train": self.influences()["train"],
            "fingerprints": dict(inputs),
        }


def _check(config: TrainConfig, splits: Splits, sids: Sids, per_item: int, words: StageWords) -> None:
    """Raise UserError unless inputs fit each other, and a history whose items take `per_item` positions fits a step."""
    if len(sids.codes_IL) != splits.summary["items"]:
        raise UserError(
            f"there are {len(sids.codes_IL)} Semantic IDs for {splits.summary['items']} items",
            "data/sids and data/splits were made from different logs",
            "run `dvc repro`",
        )
    config.check_room(splits.max_history, per_item, budget=words.key("batch_tokens"))
