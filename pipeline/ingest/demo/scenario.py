"""Define every knob of the demo's simulator and read data/demo/scenario.yaml, which explains each knob."""

import dataclasses
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from pipeline.errors import UserError, nearest
from pipeline.ingest.demo.vocabulary import LEAVES, TREE
from pipeline.yaml_files import parse_yaml, read_text

SHARES = (
    "noise_sessions",
    "long_tail",
    "long_tail_weight",
    "feed_interest",
    "feed_trending",
    "move",
    "route_step",
    "route_bridge",
    "click_interest",
    "click_other",
    "click_noise",
    "like",
    "share",
)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A short-video platform to simulate. Shares are between 0 and 1; the YAML file says what each knob means."""

    users: int
    items: int
    weeks: int
    sessions: float
    exposures: float
    categories: int
    leaves: int
    leaf_items: int
    noise_sessions: float
    long_tail: float
    long_tail_weight: float
    popularity_spread: float
    trend_boost: float
    trend_days: float
    feed_interest: float
    feed_trending: float
    move: float
    route_step: float
    route_bridge: float
    favourites: int
    click_interest: float
    click_other: float
    click_noise: float
    like: float
    share: float

    def __post_init__(self) -> None:
        if not 2 <= self.categories <= len(TREE) or not 2 <= self.leaves <= LEAVES:
            raise ValueError(f"categories must lie in 2..{len(TREE)} and leaves in 2..{LEAVES}")
        if self.users < 1 or self.weeks < 1 or self.sessions < 1 or self.exposures < 1 or self.favourites < 1:
            raise ValueError("users, weeks, sessions, exposures and favourites must be 1 or more")
        if self.leaf_items < 1 or self.leaves_used < 2:
            raise ValueError(
                f"{self.items} items are too few: two leaves in each of {self.categories} categories with "
                f"{self.leaf_items} items need {2 * self.categories * self.leaf_items}"
            )
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share between 0 and 1, found {getattr(self, name)}")
        if self.feed_interest + self.feed_trending > 1 or self.route_step + self.route_bridge > 1:
            raise ValueError("feed_interest + feed_trending, and route_step + route_bridge, must not exceed 1")
        if self.popularity_spread < 0 or self.trend_boost < 0 or self.trend_days <= 0:
            raise ValueError("popularity_spread and trend_boost must be 0 or more, trend_days above 0")

    @property
    def leaves_used(self) -> int:
        """Return the number of leaves of each category that have items: a small catalogue fills less of the tree."""
        return min(self.leaves, self.items // (self.categories * self.leaf_items))

    @property
    def leaf_count(self) -> int:
        """Return the number of leaves of all categories that have items."""
        return self.categories * self.leaves_used

    @property
    def days(self) -> int:
        return 7 * self.weeks


def load_scenario(path: Path) -> Scenario:
    """Read and check the whole file.

    Raises:
        UserError: the file is missing or no YAML mapping, a key is unknown or missing, or a value is out of range.
    """
    text = read_text(
        path,
        "the demo's simulator reads its settings from this file",
        "run `git checkout data/demo`, or set ingest.path to the folder that holds scenario.yaml",
    )
    raw = parse_yaml(text, str(path), "correct the file, or bring the original back: git checkout data/demo")
    if not isinstance(raw, dict):
        raise UserError(
            f"{path} must be a mapping of names to values",
            "the demo's simulator reads its settings from this file",
            "correct the file, or bring the original back: git checkout data/demo",
        )
    types = {field.name: field.type for field in dataclasses.fields(Scenario)}
    problems = [f"unknown key '{key}': {nearest(str(key), types)}" for key in raw if key not in types]
    problems += [f"missing key '{name}'" for name in types if name not in raw]
    problems += [
        f"{name} is {raw[name]!r}, expected {'a whole number' if kind is int else 'a number'}"
        for name, kind in types.items()
        if name in raw and not _is_number(raw[name], kind)
    ]
    if not problems:
        try:
            return Scenario(**raw)
        except ValueError as error:
            problems.append(str(error))
    raise UserError(
        "\n".join(problems),
        f"every value of {path} must be valid; nothing was simulated",
        f"correct these values in {path}",
    )


def _is_number(value: object, kind: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, int if kind is int else (int, float)) and isfinite(value)
