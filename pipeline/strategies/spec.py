"""What a strategy's folder says of itself: a `StrategySpec`, by which the rest of the program knows it.

Light on purpose: checking params.yaml must not load torch. So a spec names functions, and these import the network or
the sampler when they are called.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.backbones.config import BackboneConfig

if TYPE_CHECKING:
    from pipeline.strategies.base import EvalRule, Network, NetworkTraits, Sampler, TrainingPlan


class TrainView(Protocol):
    """The keys of `train:` that a check may read."""

    @property
    def batching(self) -> str: ...

    @property
    def targets(self) -> str: ...


class QuantizeView(Protocol):
    """The keys of `quantize:` that a check may read."""

    @property
    def levels(self) -> int: ...

    @property
    def collisions(self) -> str: ...


class ParamsView(Protocol):
    """What of params.yaml a check may read beside the strategy's own section."""

    @property
    def strategy(self) -> str: ...

    @property
    def backbone(self) -> BackboneConfig: ...

    @property
    def train(self) -> TrainView: ...

    @property
    def quantize(self) -> QuantizeView: ...


def _no_check(settings: Any, params: ParamsView, others: tuple[str, ...]) -> None:
    """A strategy that fits every setting refuses none."""


@dataclass(frozen=True, kw_only=True)
class StrategySpec:
    """One strategy: what it is called, what it may be told, and how it is built.

    A strategy brings a network, or a sampler, or both; what it does not bring is that of plain training. Two strategies
    compose when one brings the network and the other the sampler.
    """

    name: str
    summary: str  # one line, for lists of strategies
    settings: type | None = None  # frozen dataclass of its section of params.yaml, which has the strategy's name
    network: "Callable[[Any, int], Network] | None" = None  # (settings, pad_to) -> network
    sampler: "Callable[[Any, TrainingPlan, NetworkTraits], Sampler] | None" = None
    # (settings, traits) -> what a trained model is evaluated without; None where it is evaluated with everything
    eval_rule: "Callable[[Any, NetworkTraits], EvalRule | None] | None" = None
    # (settings, params.yaml, names of the strategies composed with) -> ValueError where they do not fit each other
    check: Callable[[Any, ParamsView, tuple[str, ...]], None] = _no_check
    composes_with: frozenset[str] = frozenset()  # said by either side of a pair
    refuses: Mapping[str, str] = field(default_factory=dict)  # name of another strategy -> why they do not compose
    input_tokens_per_item: int | None = None  # positions of an item in the backbone; None: those of its Semantic ID
