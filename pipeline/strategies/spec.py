"""A `StrategySpec` is how a strategy's folder describes the strategy to the rest of the program.

This file must not load torch, because checking params.yaml must be quick. So a spec names functions, and these import
the network or the sampler when they are called.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.backbones.config import BackboneConfig

if TYPE_CHECKING:
    from pipeline.strategies.base import EvalRule, Network, NetworkTraits, Sampler, TrainingPlan


class TrainView(Protocol):
    """`TrainView` declares the keys of `train:` that a check may read."""

    @property
    def batching(self) -> str: ...

    @property
    def targets(self) -> str: ...

    @property
    def task(self) -> str: ...


class IngestView(Protocol):
    """`IngestView` declares the keys of `ingest:` that a check may read."""

    @property
    def actions(self) -> Mapping[str, Any]: ...


class QuantizeView(Protocol):
    """`QuantizeView` declares the keys of `quantize:` that a check may read."""

    @property
    def levels(self) -> int: ...

    @property
    def collisions(self) -> str: ...


class EmbedView(Protocol):
    """`EmbedView` declares the keys of `embed:` that a check may read."""

    @property
    def encoder(self) -> str: ...


class ParamsView(Protocol):
    """`ParamsView` declares the keys of params.yaml that a check may read beside the strategy's section."""

    @property
    def strategy(self) -> str: ...

    @property
    def backbone(self) -> BackboneConfig: ...

    @property
    def train(self) -> TrainView: ...

    @property
    def quantize(self) -> QuantizeView: ...

    @property
    def embed(self) -> EmbedView: ...

    @property
    def ingest(self) -> IngestView: ...


def _no_check(settings: Any, params: ParamsView, others: tuple[str, ...]) -> None:
    """Accept all settings."""


def _no_content(settings: Any) -> str:
    """Read no content vectors."""
    return ""


@dataclass(frozen=True, kw_only=True)
class StrategySpec:
    """One strategy: its name, its settings, and the functions that build its parts.

    A strategy brings a network, or a sampler, or both; a part that it does not bring is that of plain training. Two
    strategies compose when one brings the network and the other the sampler.
    """

    name: str
    summary: str  # one line, for lists of strategies
    settings: type | None = None  # frozen dataclass of its section of params.yaml, which has the strategy's name
    network: "Callable[[Any, int], Network] | None" = None  # (settings, pad_to) -> network
    sampler: "Callable[[Any, TrainingPlan, NetworkTraits], Sampler] | None" = None
    # (settings, traits) -> the rule that a trained model is evaluated by; None: it is evaluated with all tokens
    eval_rule: "Callable[[Any, NetworkTraits], EvalRule | None] | None" = None
    # (settings, params.yaml, names of the strategies composed with); raises ValueError where they do not fit together
    check: Callable[[Any, ParamsView, tuple[str, ...]], None] = _no_check
    # (settings) -> the key by which the network reads content vectors beside Semantic IDs; empty: it reads none
    content_key: Callable[[Any], str] = _no_content
    composes_with: frozenset[str] = frozenset()  # names of other strategies; one strategy of a pair must name the other
    refuses: Mapping[str, str] = field(default_factory=dict)  # name of another strategy -> why they do not compose
    input_tokens_per_item: int | None = None  # positions of an item in the backbone; None: those of its Semantic ID
