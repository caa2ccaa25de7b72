"""Write the best settings of a search as a preset of your own, and say how the trials ended."""

from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.manifest import write_bytes
from pipeline.presets.document import DEFAULTS, PARAMS, PRESETS, dump, leaves, parse_document, read_yaml
from pipeline.presets.kinds import WHOLE, owned
from pipeline.presets.tuning import TuningSearch, TuningTrial, words_of

SOURCE = "# Source: `python -m pipeline tune`"


def may_write(path: Path) -> None:
    """Raise UserError unless a preset of `tune` may be written there."""
    if path.suffix != ".yaml":
        raise UserError(f"{path} does not end in .yaml", "a preset is a file presets/NAME.yaml", "name another file")
    if path.exists() and SOURCE not in path.read_text(errors="replace"):
        raise UserError(f"{path} is there and was not written by tune", "it stays as it is", "name another file")


def trial_table(search: TuningSearch) -> str:
    """Return a line per trial, the best first."""
    lines = [f"{'trial':>5}  {search.select:>14}  {'windows':>11}  {'seconds':>7}  settings"]
    for trial, result in search.finished():
        figures = f"{result['value']:>14.4f}  {int(result['windows']):>11,}  {result['seconds']:>7.0f}"
        lines.append(f"{trial.number:>5}  {figures}  {trial.words}")
    for trial in search.trials:
        if trial.result is None:
            said = f"failed: {search.failed[trial.number]}" if trial.number in search.failed else "no result"
            lines.append(f"{trial.number:>5}  {said}: {trial.words}")
    return "\n".join(lines)


def write_preset(path: Path, trial: TuningTrial, result: dict[str, Any], search: TuningSearch, space: Path) -> None:
    """Write all settings of a trial as a whole preset. Raises UserError as `may_write`."""
    may_write(path)
    name = path.stem
    # What a trial left alone is written as params.yaml has it: 1/3 and not 0.333.
    written = {**dict(leaves(parse_document(read_yaml(PARAMS), PARAMS))), **trial.changes}
    values = {key: written[key] for key in owned(WHOLE, written)}
    defaults = dict(leaves(parse_document(read_yaml(PRESETS / DEFAULTS), PRESETS / DEFAULTS)))
    lines = [
        f"# Whole: the best of {len(search.finished())} trials of {space.name}, chosen on validation",
        f"{SOURCE}; {search.select} {result['value']:.4f} on validation, seed {trial.params.seed}; test not read",
        f"# What it changed: {words_of(trial.changes) or 'nothing; the settings of the start were the best'}",
        f"# Command: python -m pipeline preset {name} && dvc repro",
    ]
    document: dict[str, Any] = {}
    for key, value in values.items():
        section, _, leaf = key.rpartition(".")
        (document.setdefault(section, {}) if section else document)[leaf] = value
    section = ""
    for line in dump(document).splitlines():
        if line.endswith(":") and not line.startswith((" ", "-")):
            section = line[:-1] + "."
        key = (section if line.startswith(" ") else "") + line.strip().partition(":")[0]
        differs = key in values and values[key] != defaults.get(key)
        plain = differs and not isinstance(values[key], list | dict) and not isinstance(defaults.get(key), list | dict)
        lines.append(f"{line}  # default: {_written(defaults[key])}" if plain else line)
    write_bytes(path, ("\n".join(lines) + "\n").encode())


def _written(value: Any) -> str:
    """Return a value as YAML writes it."""
    return dump({"key": value}).strip().removeprefix("key: ")
