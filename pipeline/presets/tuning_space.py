"""Read SPACE.yaml, the settings that `tune` tries, and propose the settings of each trial.

    method: random          # or grid: every combination of the lists
    trials: 12              # random: how many, that of params.yaml included
    seed: 1                 # random: of the draws
    keys:
      train.learning_rate: {low: 0.0005, high: 0.004, log: true}
      train.warmup_steps: {low: 20, high: 200, integer: true}
      backbone.dropout: [0.0, 0.1, 0.2]

Trial 0 is params.yaml as it stands. A draw depends on seed, trial and key alone. So more trials, or another key, change
nothing of the earlier draws, and a search that was cut goes on with the same trials.
"""

import itertools
import math
import random
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Params, build_params
from pipeline.errors import UserError, nearest
from pipeline.presets.document import leaves
from pipeline.strategies.registry import settings_types
from pipeline.yaml_files import parse_yaml, read_text

MOST_TRIALS = 1000
FIELDS = ("method", "trials", "seed", "keys")
RANGE = ("low", "high", "log", "integer")
WHY = "it lists the settings that are tried"
SEE = "docs/tune.md shows a whole file"
# What measures a trial, or shapes no result: trials that differ in it would not be comparable, or would be the same.
FIXED = {
    *("train.select", "train.valid_users", "train.beam", "train.device", "train.threads", "train.checkpoint_every"),
    *("train.deterministic", "train.compile", "quantize.device"),
}


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, both included; log: uniform in the logarithm; integer: whole ones."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def draw(self, generator: random.Random) -> float | int:
        """Return a number, rounded to three digits where it is no whole one, so that it is short to write."""
        at = generator.random()
        end = self.high + self.integer  # 3 to 6 as whole numbers: what begins with 3, 4, 5 or 6
        if self.log:
            number = math.exp(math.log(self.low) + at * (math.log(end) - math.log(self.low)))
        else:
            number = self.low + at * (end - self.low)
        if self.integer:
            return int(min(max(math.floor(number), self.low), self.high))
        return min(max(float(f"{number:.3g}"), self.low), self.high)


@dataclass(frozen=True)
class Space:
    """A `Space` is what SPACE.yaml says; keys: dotted key -> the values of a list, or an interval."""

    method: str
    trials: int
    seed: int
    keys: Mapping[str, list[Any] | Interval]

    def proposals(self) -> list[dict[str, Any]]:
        """Return the changes of each trial, that of params.yaml (no change) first; none stands twice."""
        if self.method == "grid":
            lists = [values for values in self.keys.values() if isinstance(values, list)]
            found = [dict(zip(self.keys, values, strict=True)) for values in itertools.product(*lists)]
        else:
            found = [{key: self._draw(number, key) for key in self.keys} for number in range(1, self.trials)]
        once = {repr(sorted(changes.items())): changes for changes in [{}, *found]}
        return list(once.values())

    def _draw(self, number: int, key: str) -> Any:
        generator = random.Random(f"{self.seed} {number} {key}")
        values = self.keys[key]
        return values.draw(generator) if isinstance(values, Interval) else generator.choice(values)


def read_space(path: Path) -> Space:
    """Read SPACE.yaml.

    Raises:
        UserError: the file is missing or no mapping, or has unknown fields, unknown keys, keys that measure, no values,
            an impossible interval, or too many trials.
    """
    raw = parse_yaml(read_text(path, WHY, "name another file"), str(path))
    if not isinstance(raw, dict) or not isinstance(raw.get("keys"), dict) or not raw["keys"]:
        raise UserError(f"{path} has no mapping `keys`", WHY, SEE)
    if unknown := [name for name in raw if name not in FIELDS]:
        raise UserError(f"{path}: unknown field '{unknown[0]}', {nearest(str(unknown[0]), FIELDS)}", WHY, SEE)
    method = raw.get("method", "random")
    if method not in ("random", "grid"):
        raise UserError(f"{path}: method is {method!r}, expected random or grid", WHY, SEE)
    keys = {str(key): _values(path, str(key), values) for key, values in raw["keys"].items()}
    trials: Any = raw.get("trials")
    if method == "grid":
        if interval := next((key for key, values in keys.items() if isinstance(values, Interval)), None):
            raise UserError(f"{path}: {interval} is an interval, and a grid needs a list", WHY, "list its values")
        trials = 1 + math.prod(len(values) for values in keys.values() if isinstance(values, list))
    if trials is None:
        raise UserError(f"{path} has no field `trials`", "it says how many settings are drawn", "add trials: 12")
    if not _whole(trials) or not 2 <= trials <= MOST_TRIALS:
        raise UserError(f"{path}: trials is {trials!r}, expected a whole number from 2 to {MOST_TRIALS}", WHY, SEE)
    if not _whole(seed := raw.get("seed", 1)):
        raise UserError(f"{path}: seed is {seed!r}, expected a whole number", WHY, SEE)
    return Space(method, trials, seed, keys)


def with_changes(params: Params, changes: Mapping[str, Any], name: str) -> Params:
    """Return the parameters with these changes.

    Raises:
        UserError: a key does not exist, or a value or the whole is refused.
    """
    raw = deepcopy(params.plain())
    for key, value in changes.items():
        section, _, leaf = key.rpartition(".")
        (raw[section] if section else raw)[leaf] = value
    try:
        return build_params(raw, name)
    except UserError as error:
        words = " ".join(f"{key}={value}" for key, value in changes.items())
        raise UserError(f"{name} ({words}): {error.what}", "no trial was started", f"mend the space; {SEE}") from None


def check_keys(space: Space, params: Params, path: Path) -> None:
    """Raise UserError for a key that params.yaml does not have, or that no trial may change."""
    known = dict(leaves(params.plain()))
    sections = ("quantize", "backbone", "train", *settings_types())
    tunable = [key for key in known if key not in FIXED and (key == "strategy" or key.split(".")[0] in sections)]
    for key in space.keys:
        if key not in known:
            # train.lr -> the keys of train alone, because all keys fill a screen
            near = [name for name in tunable if name.split(".")[0] == key.split(".")[0]]
            raise UserError(f"{path}: unknown key '{key}', {nearest(key, near or [*sections, 'strategy'])}", WHY, SEE)
        if key not in tunable:
            raise UserError(
                f"{path}: {key} cannot be tuned",
                f"a trial changes the generator alone ({', '.join(('strategy', *sections))}), and no key that measures "
                "it or says where it runs",
                "leave it out",
            )


def _values(path: Path, key: str, values: Any) -> list[Any] | Interval:
    """Return the list or the interval of a key."""
    if isinstance(values, list) and values:
        return values
    if not isinstance(values, dict) or not {"low", "high"} <= set(values) <= set(RANGE):
        raise UserError(f"{path}: {key} is neither a list of values nor {{low: ..., high: ...}}", WHY, SEE)
    low, high = (values[name] for name in ("low", "high"))
    log, integer = (values.get(name, False) for name in ("log", "integer"))
    if not all(_whole(number) or (isinstance(number, float) and math.isfinite(number)) for number in (low, high)):
        raise UserError(f"{path}: {key} goes from {low!r} to {high!r}, expected two numbers", WHY, SEE)
    if not isinstance(log, bool) or not isinstance(integer, bool):
        raise UserError(f"{path}: {key}: log and integer are true or false", WHY, SEE)
    if low >= high or (log and low <= 0) or (integer and (low != int(low) or high != int(high))):
        raise UserError(
            f"{path}: {key} goes from {low} to {high}",
            "low is below high; with `log` low is above 0; with `integer` both are whole",
            SEE,
        )
    return Interval(float(low), float(high), log, integer)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
