"""Trials that run a stage at the bounds of a knob: its smallest value, its largest one, and each word that it takes."""

import json
import random
import resource
import signal
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml

from benchmarks.torture.files import key_lines, replaced
from benchmarks.torture.process import forked
from benchmarks.torture.project import WRITES, copy, remove
from benchmarks.torture.trial import FAIL, OK, REFUSED, Trial, World
from pipeline.config import Params
from pipeline.knobs import Between, types_of
from pipeline.strategies.registry import settings_types

# Section of params.yaml -> the stages that run with the value, one after the other
STAGES_OF = {
    "seed": ("train",),
    "ingest": ("ingest",),
    "embed": ("embed",),
    "quantize": ("quantize",),
    "split": ("split", "count"),
    "backbone": ("train",),
    "train": ("train",),
    "dense": ("dense",),
    "evaluate": ("count", "evaluate"),
}
DOWNLOADED = {("embed", "encoder"): ("text", "multimodal")}  # words that need a model from the network
LONG = 20.0  # seconds after which a stage is told to stop: many values mean hours, and the stage must say that it works
MEMORY = 6 * 2**30  # bytes of addresses that a stage may have
NEXT = 1e-9  # how far from a bound that does not belong to the range


def bounds_of_knobs() -> Iterator[Trial]:
    """Give a trial per value at the bounds of a key, which runs the stages that read the key."""
    for (section, key), values in knob_values(settings_types()).items():
        for value in values:
            yield _bound(section, key, value)


def knob_values(strategies: dict[str, type]) -> dict[tuple[str, str], list[Any]]:
    """Return the values at the bounds of each key, by section and key ("" where the section is a value).

    Args:
        strategies: the settings' types, by section.
    """
    found: dict[tuple[str, str], list[Any]] = {}
    for section, hint in types_of(Params).items():
        kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if section in STAGES_OF:
            keys = types_of(kind) if hasattr(kind, "__dataclass_fields__") else {"": hint}
            found |= {(section, key): extremes(one) for key, one in keys.items()}
    for section, kind in strategies.items():
        found |= {(section, key): extremes(one) for key, one in types_of(kind).items()}
    left = {
        names: [value for value in values if value not in DOWNLOADED.get(names, ())] for names, values in found.items()
    }
    return {names: values for names, values in left.items() if values}


def extremes(hint: Any) -> list[Any]:
    """Return the smallest and the largest value of a type with bounds, and the words of a literal.

    Annotated[int, Between(1, 32)] -> [1, 32]
    """
    if get_origin(hint) is Annotated:
        kind, bounds = get_args(hint)[:2]
        if not isinstance(bounds, Between):
            return extremes(kind)
        least = bounds.least + NEXT * bounds.above
        most = bounds.most - NEXT * bounds.below
        return [kind(least), kind(most)] if kind in (int, float) else []
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if get_origin(hint) in (typing.Union, types.UnionType):
        return [value for one in get_args(hint) for value in extremes(one)]
    return [True, False] if hint is bool else []


def _bound(section: str, key: str, value: Any) -> Trial:
    def run(world: World, _: random.Random) -> tuple[str, str]:
        folder = copy(world.reference, world.scratch / "bound")
        path = folder / "params.yaml"
        text = path.read_text()
        if section not in STAGES_OF:
            text = replaced(text, key_lines(text, "strategy", ""), section)
            text = replaced(text, key_lines(text, "rastp", "after_layer"), "1")  # the project's encoder has one layer
        path.write_text(replaced(text, key_lines(text, section, key), yaml.safe_dump(value).splitlines()[0]))
        told = ""
        for stage in STAGES_OF.get(section, ("train",)):
            remove(folder, stage)
            ended = forked([stage], folder, kill=(signal.SIGTERM, LONG), before=_limit_memory)
            if fault := ended.fault():
                return FAIL, fault
            if ended.code == 128 + signal.SIGTERM:
                # At work, and stopped as told: it must have said that this takes long.
                return (OK, "long, and says so") if " left" in ended.text else (FAIL, f"{LONG:.0f} s without a word")
            if ended.code:
                said = ended.text.strip().splitlines()
                error = next((line for line in said if line.startswith("error:")), "")
                return (REFUSED, error[:160]) if error else (FAIL, f"exit code {ended.code}: {ended.text[-200:]}")
            if broken := _not_finite(folder, stage):
                return FAIL, f"silent: {broken}"
            told = f"{ended.seconds:.1f} s"
        return OK, told

    return Trial("stages at the bounds of a knob", f"bound-{section}-{key}-{value}", run)


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _not_finite(folder: Path, stage: str) -> str:
    """Return the file of a stage and the key in it that is no finite number; "" where there is none."""
    for name in WRITES[stage]:
        path = folder / name
        for file in path.glob("*.json") if path.is_dir() else [path]:
            if file.suffix == ".json" and file.exists():
                for key, value in json.loads(file.read_text()).items():
                    if isinstance(value, float) and not abs(value) < float("inf"):
                        return f"{file.name}: {key} is {value}"
    return ""
