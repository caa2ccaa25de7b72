"""Names of the strategies, which of them compose, and what their sections of params.yaml may say.

Light on purpose: checking params.yaml must not load torch. A strategy with parameters of its own adds its frozen
dataclass here and its section to params.yaml.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class RastpConfig:
    """Which encoder tokens go on. Defaults: the paper's, or where it is silent the better choice."""

    keep: float = 1 / 3
    min_tokens: int = 4
    after_layer: int = 2
    score: Literal["rastp", "l1", "l2", "attention", "random"] = "rastp"
    unit: Literal["token", "item"] = "token"
    separators: Literal["keep", "compete"] = "keep"
    method: Literal["prune", "avg_pool", "max_pool"] = "prune"
    pool_unit: Literal["token", "item"] = "token"
    base: Literal["real", "padded"] = "real"
    at_eval: bool = True
    keep_positions: bool = True
    padded_queries: Literal["ignore", "count"] = "ignore"
    score_dropout: Literal["before", "after"] = "before"

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError("rastp.keep is the share of tokens that is kept, above 0 and at most 1")
        for name in ("min_tokens", "after_layer"):
            if getattr(self, name) < 1:
                raise ValueError(f"rastp.{name} must be 1 or more")

    @property
    def scores_mass(self) -> bool:
        """Whether the choice rests on attention."""
        return self.method == "prune" and self.score in ("rastp", "attention")

    @property
    def counts_padding(self) -> bool:
        """Whether padding changes what is kept, so that batches have to have it."""
        return self.base == "padded" or (self.scores_mass and self.padded_queries == "count")


@dataclass(frozen=True)
class IntrrConfig:
    """The recursive assignment network and its losses. Defaults: the paper's."""

    uid_dim: int = 0  # width of the UID table; 0: backbone.d_model
    hidden: int = 512  # of the MLPs
    digit_width: int = 128  # vectors of the deduplication digit's codebook; 0: as many as the Semantic IDs have
    mix: Literal["soft", "straight_through"] = "soft"
    context: Literal["last", "sum"] = "last"
    codebooks: Literal["random", "quantizer"] = "random"  # what they start from
    alignment: float = 0.1  # weight of the alignment loss (lambda)
    alignment_items: Literal["batch_distinct", "batch_occurrences", "sample", "all"] = "batch_distinct"
    alignment_sample: int = 1024  # items of `sample`
    tie_break: Literal["digit", "uid"] = "digit"
    ablation: Literal["none", "no_teacher_forcing", "no_alignment", "no_redistribution", "no_sharing"] = "none"

    def __post_init__(self) -> None:
        for name in ("uid_dim", "digit_width", "alignment"):
            if getattr(self, name) < 0:
                raise ValueError(f"intrr.{name} must be 0 or more")
        for name in ("hidden", "alignment_sample"):
            if getattr(self, name) < 1:
                raise ValueError(f"intrr.{name} must be 1 or more")

    @property
    def aligns(self) -> bool:
        """Whether the alignment loss is computed."""
        return self.alignment > 0 and self.ablation != "no_alignment"

    @property
    def reads_uid(self) -> bool:
        """Whether anything depends on the UID table."""
        return self.aligns or self.ablation != "no_redistribution"


@dataclass(frozen=True)
class SkipgrConfig:
    """What training skips by the model's own entropy. Defaults: the paper's, or where it is silent the safer choice."""

    rule: Literal[
        "low_entropy", "high_entropy", "static_low_entropy", "random", "random_step", "static_random", "loss"
    ] = "low_entropy"
    token_ratio: float = 0.1
    level_ratios: tuple[float, ...] = ()  # one per scored level; empty: token_ratio for each
    apply_to: Literal["loss", "input", "both"] = "loss"
    input_unit: Literal["token", "item"] = "token"
    rescore_every: int = 4  # passes
    include_digit: bool = False
    sequence_ratio: float = 0.3
    sequence_share: float = 0.0  # 0: sequence_ratio counts
    sequence_unit: Literal["user", "window"] = "user"
    max_weight: float = 4.0
    normalise: Literal["nominal", "kept"] = "nominal"
    anneal_epochs: int = 0
    at_eval: bool = False

    def __post_init__(self) -> None:
        for name, value in (
            ("token_ratio", self.token_ratio),
            ("sequence_ratio", self.sequence_ratio),
            ("sequence_share", self.sequence_share),
            *(("level_ratios", r) for r in self.level_ratios),
        ):
            if not 0 <= value < 1:
                raise ValueError(f"skipgr.{name} is a share that is skipped, at least 0 and below 1")
        if self.rescore_every < 1:
            raise ValueError("skipgr.rescore_every must be 1 or more")
        if self.anneal_epochs < 0:
            raise ValueError("skipgr.anneal_epochs must be 0 or more")
        if self.max_weight < 1:
            raise ValueError("skipgr.max_weight must be 1 or more")
        if self.at_eval and self.apply_to == "loss":
            raise ValueError(
                "skipgr.at_eval skips in histories, and skipgr.apply_to loss does not: set "
                "skipgr.apply_to=input or both, or skipgr.at_eval=false"
            )
        if not self.sequence_share and self.sequence_ratio > self.largest_ratio:
            raise ValueError(
                f"skipgr.sequence_ratio {self.sequence_ratio:g} weighs what is kept by "
                f"{1 / (1 - self.sequence_ratio):g}, above skipgr.max_weight {self.max_weight:g}"
            )

    @property
    def largest_ratio(self) -> float:
        """The probability of being skipped that `max_weight` allows."""
        return 1 - 1 / self.max_weight

    @property
    def skips_tokens(self) -> bool:
        return any(self.level_ratios) if self.level_ratios else self.token_ratio > 0

    @property
    def skips_sequences(self) -> bool:
        return self.sequence_ratio > 0 or self.sequence_share > 0

    @property
    def skips_targets(self) -> bool:
        return self.skips_tokens and self.apply_to in ("loss", "both")

    @property
    def skips_inputs(self) -> bool:
        return self.skips_tokens and self.apply_to in ("input", "both")


STRATEGIES = {
    "full": "every token of every window, nothing skipped: the baseline of all comparisons",
    "rastp": "after an encoder block, only the tokens that matter go on",
    "intrr": "one token per item, made and decoded by a small recursive network",
    "skipgr": "tokens and sequences that the model is already sure of are skipped",
}
# Strategies with parameters; the section of params.yaml has the strategy's name.
SETTINGS: dict[str, type] = {"rastp": RastpConfig, "intrr": IntrrConfig, "skipgr": SkipgrConfig}
# Pairs that may stand together in `strategy: a+b`.
COMPOSITIONS: set[frozenset[str]] = {frozenset({"rastp", "skipgr"}), frozenset({"intrr", "skipgr"})}
# Pairs refused for a reason worth telling.
REFUSED: dict[frozenset[str], str] = {
    frozenset({"intrr", "rastp"}): "intrr gives each item a single token, which leaves rastp nothing to choose from",
}


def parse_strategy(text: str) -> tuple[str, ...]:
    """`"skipgr+rastp"` -> `("rastp", "skipgr")`: the names in normal (alphabetical) order.

    Raises:
        ValueError: an unknown name, a repeated one, or a combination that means nothing.
    """
    from pipeline.errors import nearest

    names = text.split("+")
    if frozenset(names) in REFUSED:
        raise ValueError(f"strategy '{text}' cannot be combined: {REFUSED[frozenset(names)]}")
    for name in names:
        if name not in STRATEGIES:
            raise ValueError(f"strategy '{name}' is not known, {nearest(name, STRATEGIES)}")
    if len(set(names)) < len(names):
        raise ValueError(f"strategy '{text}' names one strategy twice")
    if len(names) > 1 and "full" in names:
        raise ValueError(f"strategy '{text}': full means that nothing is skipped, so it combines with nothing")
    if len(names) > 1 and frozenset(names) not in COMPOSITIONS:
        raise ValueError(f"strategy '{text}' cannot be combined: no rule says what the combination would do")
    return tuple(sorted(names))


def tokens_per_item(text: str, levels: int, separators: bool) -> int:
    """Positions that an item of the history takes in the backbone under strategy `text`."""
    return 1 if "intrr" in parse_strategy(text) else levels + separators


def settings_of(text: str, sections: Mapping[str, Any]) -> dict[str, Any]:
    """The sections that strategy `text` reads, by name. A section may be its dataclass, or that as plain values."""
    wanted = [name for name in parse_strategy(text) if name in SETTINGS]
    return {
        name: SETTINGS[name](**section) if isinstance(section := sections[name], Mapping) else section
        for name in wanted
    }
