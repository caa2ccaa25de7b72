"""Define what a preset is, and which keys of params.yaml each kind of preset sets.

A preset is a part or a whole, as its first comment line says: `# Part (model): ...` or `# Whole: ...`. A part sets
every key of its kind, and no other. So the second of two parts of one kind leaves nothing of the first, and the
order of parts of different kinds does not matter. A whole sets what the kinds quantizer, model, strategy and retriever
set, and the rest of `split`, because a published figure holds for one protocol. It leaves alone the data, the encoder,
`seed` and `track`. The whole `demo` sets every key: it brings params.yaml back.

A part with the line `# After: NAME` in its head needs columns of the log that the preset NAME sets: params.yaml is
refused where none are set.

`seed`, `track`, `split.protocol`, `split.ties`, `split.valid_from` and `split.test_from` belong to no part. What a user
sets by hand for a machine or a path (`train.device`, `ingest.path`) belongs to the kind of its section like any other
key; the command prints what it changes, and `--set` sets it again.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.presets.document import PRESETS
from pipeline.strategies.registry import settings_types

WHOLE = "whole"
# Sections, and single keys, that a part of each kind sets; the strategies' sections come in by the registry.
PARTS: dict[str, tuple[str, ...]] = {
    "data": ("dataset", "ingest"),
    "encoder": ("embed",),
    "quantizer": ("quantize",),
    "model": ("split.max_history", "backbone", "train", "evaluate"),
    "strategy": ("strategy", *settings_types()),
    "retriever": ("dense",),
}
NOT_OF_A_WHOLE = ("dataset", "ingest", "embed", "seed", "track")
HEAD = re.compile(r"# (?:Part \((?P<kind>\w+)\)|Whole): (?P<summary>.+)")
ADD = "# Add: "


@dataclass(frozen=True)
class Preset:
    """A preset is a file of presets/, as its comment describes it.

    kind: a key of `PARTS`, `WHOLE`, or empty in a file that does not say it.
    add: presets that go with it, a line each: name, cost, and what it reaches with the source of the figure.
    """

    name: str
    kind: str
    summary: str
    add: tuple[str, ...]


def describe(folder: Path = PRESETS) -> dict[str, Preset]:
    """Return every preset by its name: wholes first, then the parts by kind; of one kind by name."""
    order = [WHOLE, *PARTS, ""]
    found = [_read(path) for path in folder.glob("*.yaml")]
    return {preset.name: preset for preset in sorted(found, key=lambda preset: (order.index(preset.kind), preset.name))}


def owned(kind: str, keys: Iterable[str]) -> list[str]:
    """Return those of `keys` (`section.key`) that a preset of this kind sets; for a whole: other than `demo`."""
    if kind == WHOLE:
        return [key for key in keys if not _within(key, NOT_OF_A_WHOLE)]
    return [key for key in keys if _within(key, PARTS[kind])]


def sets(kind: str) -> str:
    """Return the sections and keys of a kind, for the list of presets."""
    if kind == WHOLE:
        return f"everything but {', '.join(NOT_OF_A_WHOLE)}; demo these too"
    return ", ".join(PARTS.get(kind, ["what each names"]))


def _within(key: str, names: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _read(path: Path) -> Preset:
    comment = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    first = comment[0] if comment else ""
    add = tuple(line.removeprefix(ADD) for line in comment if line.startswith(ADD))
    if (head := HEAD.fullmatch(first)) and (head["kind"] or WHOLE) in (WHOLE, *PARTS):
        return Preset(path.stem, head["kind"] or WHOLE, head["summary"], add)
    return Preset(path.stem, "", first.lstrip("# "), add)
