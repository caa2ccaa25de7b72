"""params.yaml <-> frozen dataclasses. An unknown key or a bad value is an error that names the nearest valid one.

Each section's dataclass lives in the folder that it is for (`pipeline/training/config.py`, ...), so that changing one
knob's definition re-runs only the stages that read it; this file puts them together.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Params:
    """The whole of params.yaml; one field per section, in the order of the graph.

    strategies: the section of each strategy that has settings, by its name. In params.yaml these sections stand beside
        the others.
    """

    seed: int = 42
    strategy: str = "full"
    dataset: str = "demo"
    ingest: IngestConfig = field(default_factory=IngestConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    strategies: Mapping[str, Any] = field(default_factory=dict)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    track: TrackConfig = field(default_factory=TrackConfig)

    def __post_init__(self) -> None:
        missing = {name: make() for name, make in settings_types().items() if name not in self.strategies}
        object.__setattr__(self, "strategies", {**self.strategies, **missing})  # frozen, and this completes it
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
        if self.seed < 0:
            raise ValueError("seed must be 0 or more")

    def plain(self) -> dict[str, Any]:
        """Every section and key as plain YAML values, laid out as params.yaml is."""
        members = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        laid_out: dict[str, Any] = {}
        for name, value in members.items():
            laid_out |= value if name == "strategies" else {name: value}
        return {name: _plain(value) if dataclasses.is_dataclass(value) else value for name, value in laid_out.items()}


def load_params(path: Path = Path("params.yaml"), *, complete: bool = False) -> Params:
    """Read and check the whole file.

    Args:
        complete: a key that the file lacks is an error too. DVC reads parameters from the file and knows no defaults:
            it stops at a stage whose parameter is missing when it has removed what the stage wrote.

    Raises:
        UserError: the file is missing, is no YAML mapping, or holds unknown keys or bad values (all are listed).
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
    params = build_params(raw, str(path))
    if complete and (missing := _missing(raw or {}, params)):
        raise UserError("\n".join(missing), f"DVC reads every parameter from {path}", "add it, then `dvc repro`")
    return params


def _missing(raw: Mapping[str, Any], params: Params) -> list[str]:
    """A line for each section or key of params.yaml that `raw` lacks, with its default."""
    lines = []
    for name, value in params.plain().items():
        if name not in raw:
            shown = yaml.safe_dump({name: value}, default_flow_style=True, sort_keys=False, width=10**6).strip()[1:-1]
            lines.append(f"missing key '{name}'; its default: {shown}")
        elif dataclasses.is_dataclass(_types_of(Params)[name]):
            lacking = [key for key in value if key not in raw[name]]
            lines += [f"missing key '{name}.{key}'; its default: {value[key]!r}" for key in lacking]
    return lines


def build_params(raw: Any, source: str = "params.yaml") -> Params:
    """Check a parsed mapping against the dataclasses.

    Raises:
        UserError: listing every unknown key and bad value, and how to go on.
    """
    problems: list[str] = []
    params = _build(Params, raw if raw is not None else {}, "", problems)
    if problems or params is None:
        raise UserError("\n".join(problems), f"{source} was refused as a whole, nothing ran", RESTORE)
    return params


def _plain(section: Any) -> dict[str, Any]:
    """The keys of a section as plain YAML values."""
    values = {f.name: getattr(section, f.name) for f in dataclasses.fields(section)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _build(cls: type, raw: Any, prefix: str, problems: list[str]) -> Any:
    if not isinstance(raw, dict):
        problems.append(f"{prefix.rstrip('.') or 'the file'} must be a mapping of names to values, found {raw!r}")
        return None
    hints = _types_of(cls)
    values, before = {}, len(problems)
    for key, value in raw.items():
        if key not in hints:
            problems.append(f"unknown key '{prefix}{key}': {nearest(str(key), hints)}")
        elif dataclasses.is_dataclass(hints[key]):
            values[key] = _build(typing.cast(type, hints[key]), value, f"{prefix}{key}.", problems)
        else:
            values[key] = _convert(value, hints[key], f"{prefix}{key}", problems)
    if len(problems) > before:
        return None
    if cls is Params:  # the sections of strategies move into a mapping of their own
        values["strategies"] = {name: values.pop(name) for name in raw if name in settings_types()}
    try:
        return cls(**values)
    except ValueError as error:
        problems.append(str(error))
        return None


def _types_of(cls: type) -> dict[str, Any]:
    """The type of each key of a section; at the top, the sections of strategies stand for the field `strategies`."""
    hints = typing.get_type_hints(cls)
    if cls is Params:
        del hints["strategies"]
        hints |= settings_types()
    return hints


def _convert(value: Any, hint: Any, name: str, problems: list[str]) -> Any:
    """`value` as the type `hint`, or a line in `problems`."""
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
        if not isinstance(value, dict):
            problems.append(f"{name} must be a mapping, found {value!r}")
            return {}
        return {str(k): _convert(v, args[1], f"{name}.{k}", problems) for k, v in value.items()}
    return _scalar(value, hint, name, problems)


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
