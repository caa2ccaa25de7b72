"""Build frozen dataclasses from params.yaml, and back.

An unknown key or a bad value is an error that names the nearest valid one. A missing key is an error too, because
nothing here has a default: presets/demo.yaml alone says the defaults.

Each section's dataclass lives in the folder that it is for (`pipeline/training/config.py`, ...), so that changing one
knob's definition re-runs only the stages that read it; this file puts them together.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from pipeline.backbones.config import CAUSAL, BackboneConfig
from pipeline.embed.config import EmbedConfig
from pipeline.errors import RESTORE, UserError, nearest
from pipeline.evaluate.config import EvaluateConfig
from pipeline.ingest.config import IngestConfig
from pipeline.quantize.config import QuantizeConfig
from pipeline.split.config import SplitConfig
from pipeline.strategies.registry import choose_strategies, settings_types
from pipeline.track.config import TrackConfig
from pipeline.training.config import TrainConfig

MIGRATE = "`python -m pipeline migrate` adds missing keys to params.yaml, with their defaults"
DATASETS = (
    "demo",
    "amazon-beauty",
    "amazon-sports",
    "amazon-toys",
    "movielens-1m",
    "movielens-20m",
    "movielens-latest",
    "movielens-100k",
    "custom",
)


@dataclass(frozen=True, kw_only=True)
class Params:
    """The whole of params.yaml; one field per section, in the order of the graph.

    strategies: the section of each strategy that has settings, by its name. In params.yaml these sections stand beside
        the others.
    """

    seed: int
    strategy: str
    dataset: str
    ingest: IngestConfig
    embed: EmbedConfig
    quantize: QuantizeConfig
    split: SplitConfig
    backbone: BackboneConfig
    train: TrainConfig
    strategies: Mapping[str, Any]
    evaluate: EvaluateConfig
    track: TrackConfig

    def __post_init__(self) -> None:
        choose_strategies(self.strategy, self.strategies).check(self)
        if self.train.targets == "all" and self.backbone.name not in CAUSAL:
            raise ValueError(
                f"train.targets all needs a backbone where no item sees a later one, and "
                f"{self.backbone.name} is none: set backbone.name to {' or '.join(CAUSAL)}"
            )
        if self.dataset not in DATASETS:
            raise ValueError(f"dataset '{self.dataset}' is not known, {nearest(self.dataset, DATASETS)}")
        if self.ingest.files and self.dataset != "custom":
            raise ValueError(f"ingest.files is for the dataset custom; {self.dataset} knows the names of its files")
        if self.embed.encoder == "none" and self.quantize.interactions != 1:
            raise ValueError(
                "embed.encoder none makes no vectors, so that Semantic IDs come from interactions alone: set "
                "quantize.interactions to 1, or choose another embed.encoder"
            )
        if self.seed < 0:
            raise ValueError("seed must be 0 or more")

    def plain(self) -> dict[str, Any]:
        """Return every section and key as plain YAML values, laid out as params.yaml is."""
        members = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        laid_out: dict[str, Any] = {}
        for name, value in members.items():
            laid_out |= value if name == "strategies" else {name: value}
        return {name: _plain(value) if dataclasses.is_dataclass(value) else value for name, value in laid_out.items()}


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check the whole file.

    Raises:
        UserError: the file is missing, is no YAML mapping, or holds unknown keys or bad values, or lacks keys (all are
            listed).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{path} is not here",
            "every command reads its settings from it",
            "run from the folder that holds params.yaml",
        ) from None
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}", fix=RESTORE) from None
    return build_params(raw, str(path))


def build_params(raw: Any, source: str = "params.yaml") -> Params:
    """Check a parsed mapping against the dataclasses.

    Raises:
        UserError: listing every unknown key, bad value and missing key, and how to go on.
    """
    problems: list[str] = []
    missing: list[str] = []
    params = _build(Params, raw if raw is not None else {}, "", problems, missing)
    if params is None:
        fix = "\n".join([RESTORE] * bool(problems) + [MIGRATE] * bool(missing))
        raise UserError("\n".join(problems + missing), f"{source} was refused as a whole, nothing ran", fix)
    return typing.cast(Params, params)


def _plain(section: Any) -> dict[str, Any]:
    """Return the keys of a section as plain YAML values."""
    values = {f.name: getattr(section, f.name) for f in dataclasses.fields(section)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _build(cls: type, raw: Any, prefix: str, problems: list[str], missing: list[str]) -> Any:
    """Build the dataclass `cls` from `raw`. Return None, with lines in `problems` and `missing`, where that fails."""
    if not isinstance(raw, dict):
        problems.append(f"{prefix.rstrip('.') or 'the file'} must be a mapping of names to values, found {raw!r}")
        return None
    hints = _types_of(cls)
    values: dict[str, Any] = {}
    before = len(problems) + len(missing)
    for key, value in raw.items():
        if key not in hints:
            problems.append(f"unknown key '{prefix}{key}': {nearest(str(key), hints)}")
        elif dataclasses.is_dataclass(hints[key]):
            values[key] = _build(typing.cast(type, hints[key]), value, f"{prefix}{key}.", problems, missing)
        else:
            values[key] = _convert(value, hints[key], f"{prefix}{key}", problems)
    missing += [f"missing key '{prefix}{key}'" for key in hints if key not in raw]
    if len(problems) + len(missing) > before:
        return None
    if cls is Params:  # the sections of strategies move into a separate mapping
        values["strategies"] = {name: values.pop(name) for name in settings_types()}
    try:
        return cls(**values)
    except ValueError as error:
        problems.append(str(error))
        return None


def _types_of(cls: type) -> dict[str, Any]:
    """Return the type of each key of a section.

    At the top, the sections of strategies stand for the field `strategies`.
    """
    found = typing.get_type_hints(cls)
    hints = {field.name: found[field.name] for field in dataclasses.fields(cls)}
    if cls is Params:
        del hints["strategies"]
        hints |= settings_types()
    return hints


def _convert(value: Any, hint: Any, name: str, problems: list[str]) -> Any:
    """Convert `value` to the type `hint`, or add a line to `problems`."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in args or isinstance(value, bool) != any(isinstance(a, bool) for a in args):
            problems.append(f"{name} is {value!r}, {nearest(str(value), [str(a) for a in args])}")
        return value
    if origin in (typing.Union, types.UnionType):
        for option in args:
            attempt: list[str] = []
            converted = _convert(value, option, name, attempt)
            if not attempt:
                return converted
        words = [" or ".join(map(repr, get_args(a))) if get_origin(a) is Literal else a.__name__ for a in args]
        problems.append(f"{name} is {value!r}, expected {' or '.join(words)}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            problems.append(f"{name} must be a list, found {value!r}")
            return ()
        return tuple(_convert(v, args[0], f"{name}[{i}]", problems) for i, v in enumerate(value))
    if origin is dict:
        return _mapping(value, args[1], name, problems)
    return _scalar(value, hint, name, problems)


def _mapping(value: Any, hint: Any, name: str, problems: list[str]) -> dict[str, Any]:
    """Convert a mapping whose values have the type `hint`, or add a line to `problems`.

    An empty text is a mapping without entries: `dvc exp run -S 'name={...}'` can replace it, and no empty mapping.
    """
    if value in ("", None):
        return {}
    if not isinstance(value, dict):
        problems.append(f"{name} must be a mapping, found {value!r}")
        return {}
    if hint is str:  # a column may be called 0, and a name that was deleted leaves nothing
        value = {key: "" if v is None else str(v) if type(v) is int else v for key, v in value.items()}
    return {str(key): _convert(v, hint, f"{name}.{key}", problems) for key, v in value.items()}


def _scalar(value: Any, hint: type, name: str, problems: list[str]) -> Any:
    if hint is float and not isinstance(value, bool):
        try:
            # Text too: "1e-3", which YAML 1.1 reads as such, and "1/3", which no decimal can say
            return float(Fraction(value) if isinstance(value, str) else value)
        except (TypeError, ValueError, ZeroDivisionError):
            pass
    elif type(value) is hint:
        return value
    elif hint is str and type(value) is date:
        return value.isoformat()  # an unquoted 2014-01-01, which YAML reads as a date
    problems.append(f"{name} is {value!r}, expected {hint.__name__}")
    return value
