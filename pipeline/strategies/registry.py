"""The strategies that there are, found by their folders, and the ones that `strategy:` in params.yaml names.

Every folder beside this file is a strategy; its `__init__.py` holds `SPEC`. Nothing else lists strategies: a new one
is a folder here, a section of params.yaml and a line of dvc.yaml. Light on purpose, as spec.py says.
"""

import dataclasses
import importlib
import itertools
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import nearest
from pipeline.strategies.spec import ParamsView, StrategySpec

if TYPE_CHECKING:
    from pipeline.strategies.base import EvalRule, Network, NetworkTraits, Sampler, TrainingPlan

FULL = StrategySpec(
    name="full", summary="every token of every window, nothing skipped: the baseline of all comparisons"
)


@cache
def specs() -> dict[str, StrategySpec]:
    """Every strategy by its name: `full` first, then the folders in alphabetical order."""
    folders = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.ispkg)
    found = [importlib.import_module(f"pipeline.strategies.{folder}").SPEC for folder in folders]
    return {spec.name: spec for spec in (FULL, *found)}


def settings_types() -> dict[str, type]:
    """The dataclass of each strategy's section of params.yaml, by the section's name."""
    return {name: spec.settings for name, spec in specs().items() if spec.settings is not None}


@dataclass(frozen=True)
class ChosenStrategies:
    """The strategies that a text such as `rastp+skipgr` names, with their settings."""

    text: str  # as written
    specs: tuple[StrategySpec, ...]  # in alphabetical order
    settings: Mapping[str, Any]  # the dataclass of each that has a section, by name

    def input_tokens_per_item(self, levels: int, separators: bool) -> int:
        """Positions that an item of the history takes in the backbone."""
        return next(
            (spec.input_tokens_per_item for spec in self.specs if spec.input_tokens_per_item), levels + separators
        )

    def network(self, pad_to: int = 0) -> "Network":
        """What builds the network.

        Args:
            pad_to: encoder positions of every window of a padded run, 0 for packed.
        """
        from pipeline.strategies.base import Network

        build = self._builder("network")
        return build(pad_to) if build else Network()

    def sampler(self, plan: "TrainingPlan", traits: "NetworkTraits") -> "Sampler":
        """What decides which windows and tokens are computed, for one run."""
        from pipeline.strategies.base import Sampler

        build = self._builder("sampler")
        return build(plan, traits) if build else Sampler()

    def eval_rule(self, traits: "NetworkTraits") -> "EvalRule | None":
        """What makes of a finished run's decisions what the model is evaluated without; None: it sees everything."""
        build = self._builder("eval_rule")
        return build(traits) if build else None

    def _builder(self, part: Literal["network", "sampler", "eval_rule"]) -> Callable[..., Any] | None:
        """The function of the one strategy that brings a part, with its settings filled in; None where none does."""
        for spec in self.specs:
            if build := getattr(spec, part):
                return partial(build, self.settings.get(spec.name))
        return None

    def check(self, params: ParamsView) -> None:
        """Raise ValueError where a strategy does not fit the other settings."""
        for spec in self.specs:
            others = tuple(other.name for other in self.specs if other is not spec)
            spec.check(self.settings.get(spec.name), params, others)

    def plain_settings(self) -> dict[str, dict[str, Any]]:
        """The settings as plain values, by name."""
        return {name: dataclasses.asdict(section) for name, section in self.settings.items()}


def choose_strategies(text: str, sections: Mapping[str, Any]) -> ChosenStrategies:
    """The strategies that `text` names.

    Args:
        sections: the settings of each that has some, by name: its dataclass, or that as plain values. Others are not
            looked at.

    Raises:
        ValueError: as `parse`; or a section is neither of the two.
    """
    found, settings = tuple(specs()[name] for name in parse(text)), {}
    for spec in found:
        if spec.settings is not None:
            section = sections[spec.name]
            settings[spec.name] = spec.settings(**section) if isinstance(section, Mapping) else section
            if not isinstance(settings[spec.name], spec.settings):
                raise ValueError(f"{spec.name} must be a mapping of names to values, found {section!r}")
    return ChosenStrategies(text, found, settings)


def parse(text: str) -> tuple[str, ...]:
    """`"skipgr+rastp"` -> `("rastp", "skipgr")`: the names in normal (alphabetical) order.

    Raises:
        ValueError: an unknown name, a repeated one, or a combination that means nothing.
    """
    names, known = str(text).split("+"), specs()
    for name in names:
        if name not in known:
            raise ValueError(f"strategy '{name}' is not known, {nearest(name, known)}")
    if reason := _refusal(known[name] for name in names):
        raise ValueError(f"strategy '{text}' cannot be combined: {reason}")
    if len(set(names)) < len(names):
        raise ValueError(f"strategy '{text}' names one strategy twice")
    if len(names) > 1 and FULL.name in names:
        raise ValueError(f"strategy '{text}': full means that nothing is skipped, so it combines with nothing")
    if not all(_compose(known[a], known[b]) for a, b in itertools.combinations(names, 2)):
        raise ValueError(f"strategy '{text}' cannot be combined: no rule says what the combination would do")
    return tuple(sorted(names))


def _refusal(found: Iterable[StrategySpec]) -> str | None:
    """Why two of these strategies do not compose, where one of them says so."""
    pairs = itertools.permutations(found, 2)
    return next((one.refuses[other.name] for one, other in pairs if other.name in one.refuses), None)


def _compose(one: StrategySpec, other: StrategySpec) -> bool:
    """Whether one of two strategies names the other, and one brings the network and the other the sampler."""
    said = other.name in one.composes_with or one.name in other.composes_with
    clash = (one.network and other.network) or (one.sampler and other.sampler)
    return said and not clash
