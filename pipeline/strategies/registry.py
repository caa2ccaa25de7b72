"""This registry finds all strategies by their folders, and chooses the ones that `strategy:` in params.yaml names.

Every folder beside this file is a strategy; its `__init__.py` holds `SPEC`. Nothing else lists strategies: a new one
is a folder here, a section of params.yaml and a line of dvc.yaml. This file must not load torch, as spec.py says.
"""

import dataclasses
import importlib
import itertools
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pipeline.errors import nearest
from pipeline.knobs import build_section
from pipeline.strategies.spec import ParamsView, StrategySpec

if TYPE_CHECKING:
    from pipeline.strategies.base import EvalRule, Network, NetworkTraits, Sampler, TrainingPlan

FULL = StrategySpec(
    name="full", summary="every token of every window, nothing skipped: the baseline of all comparisons"
)


@cache
def specs() -> dict[str, StrategySpec]:
    """Return every strategy by its name: `full` first, then the folders in alphabetical order."""
    folders = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.ispkg)
    found = [importlib.import_module(f"pipeline.strategies.{folder}").SPEC for folder in folders]
    return {spec.name: spec for spec in (FULL, *found)}


def settings_types() -> dict[str, type]:
    """Return the dataclass of each strategy's section of params.yaml, by the section's name."""
    return {name: spec.settings for name, spec in specs().items() if spec.settings is not None}


@dataclass(frozen=True)
class ChosenStrategies:
    """The strategies that a text such as `rastp+skipgr` names, with their settings."""

    text: str  # as written
    specs: tuple[StrategySpec, ...]  # in alphabetical order
    settings: Mapping[str, Any]  # by strategy name, the settings of each strategy that has a section

    def input_tokens_per_item(self, levels: int, separators: bool) -> int:
        """Return the positions that an item of the history takes in the backbone."""
        return next(
            (spec.input_tokens_per_item for spec in self.specs if spec.input_tokens_per_item), levels + separators
        )

    @property
    def content_key(self) -> str:
        """Return the key by which the network reads content vectors beside Semantic IDs; empty: it reads none."""
        return next((key for spec in self.specs if (key := spec.content_key(self.settings.get(spec.name)))), "")

    def network(self, pad_to: int = 0) -> "Network":
        """Return the network's part of the strategy.

        Args:
            pad_to: encoder positions of every window of a padded run, 0 for packed.
        """
        from pipeline.strategies.base import Network

        build = self._builder("network")
        return build(pad_to) if build else Network()

    def sampler(self, plan: "TrainingPlan", traits: "NetworkTraits") -> "Sampler":
        """Return the sampler of one run: it decides which windows and tokens are computed."""
        from pipeline.strategies.base import Sampler

        build = self._builder("sampler")
        return build(plan, traits) if build else Sampler()

    def eval_rule(self, traits: "NetworkTraits") -> "EvalRule | None":
        """Return the rule that turns a finished run's decisions into `EvalSkips`; None: the model sees all tokens."""
        build = self._builder("eval_rule")
        return build(traits) if build else None

    def _builder(self, part: Literal["network", "sampler", "eval_rule"]) -> Callable[..., Any] | None:
        """Return the function of the one strategy that brings a part, bound to its settings; None if none does."""
        for spec in self.specs:
            if build := getattr(spec, part):
                return partial(build, self.settings.get(spec.name))
        return None

    def check(self, params: ParamsView) -> None:
        """Raise ValueError if a strategy does not fit the other settings."""
        for spec in self.specs:
            others = tuple(other.name for other in self.specs if other is not spec)
            spec.check(self.settings.get(spec.name), params, others)

    def plain_settings(self) -> dict[str, dict[str, Any]]:
        """Return the settings of each strategy as plain values, by name."""
        return {name: dataclasses.asdict(section) for name, section in self.settings.items()}


Section = TypeVar("Section")


def from_saved(kind: type[Section], values: Any, name: str) -> Section:
    """Return a section of a saved model's config.json, called `name` in messages, as its dataclass.

    A key that the section lacks takes its value from `kind.SAVED_WITHOUT`: the model is older than the key. That value
    is no default of params.yaml: it makes the code compute as it did before the key existed.

    Raises:
        ValueError: a key is unknown, or is missing and is not in `SAVED_WITHOUT`, or a value is out of its bounds.
    """
    problems: list[str] = []
    plain = {**getattr(kind, "SAVED_WITHOUT", {}), **values} if isinstance(values, Mapping) else values
    section: Section | None = build_section(kind, plain, f"{name}.", problems, problems)
    if section is None:
        raise ValueError("; ".join(problems))
    return section


def choose_strategies(text: str, sections: Mapping[str, Any]) -> ChosenStrategies:
    """Return the strategies that `text` names.

    Args:
        sections: the settings of each named strategy that has some, by name: its dataclass, or the plain values of a
            saved model. Other sections are ignored.

    Raises:
        ValueError: as `parse` and `from_saved`; or a section is neither of the two.
    """
    found = tuple(specs()[name] for name in parse(text))
    settings: dict[str, Any] = {}
    for spec in found:
        if spec.settings is not None:
            section = sections[spec.name]
            chosen = isinstance(section, spec.settings)
            settings[spec.name] = section if chosen else from_saved(spec.settings, section, spec.name)
    return ChosenStrategies(text, found, settings)


def parse(text: str) -> tuple[str, ...]:
    """Return the names in alphabetical order: `"skipgr+rastp"` -> `("rastp", "skipgr")`.

    Raises:
        ValueError: an unknown name, a repeated one, or a combination that means nothing.
    """
    names = str(text).split("+")
    known = specs()
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
    """Return why two of these strategies do not compose, in the words of the one that refuses; None if none does."""
    pairs = itertools.permutations(found, 2)
    return next((one.refuses[other.name] for one, other in pairs if other.name in one.refuses), None)


def _compose(one: StrategySpec, other: StrategySpec) -> bool:
    """Return True if one of two strategies names the other, and they do not bring the same part."""
    named = other.name in one.composes_with or one.name in other.composes_with
    clash = (one.network and other.network) or (one.sampler and other.sampler)
    return named and not clash
