"""Check that the data which the trials of `tune` read was made with the settings of params.yaml.

The best settings become a preset that `dvc repro` evaluates, and `dvc repro` makes the data by params.yaml. On other
data the trials would choose settings for another problem.
"""

from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from pipeline.artifacts import EMBEDDINGS, INTERACTIONS, SPLITS, Splits
from pipeline.config import Params, build_params
from pipeline.errors import UserError
from pipeline.knobs import short

LOCK = Path("dvc.lock")
MADE = {  # stage -> its folder, and what it reads of params.yaml
    "ingest": (INTERACTIONS, ("dataset", "ingest")),
    "embed": (EMBEDDINGS, ("embed",)),
    "split": (SPLITS, ("split",)),
}
SUMMARISED = ("protocol", "ties", "max_history", "valid_from", "test_from")  # of `split`, where splits.json has them
FIX = "dvc repro split embed, then run the same command again"


def check_data(params: Params, splits: Splits, lock: Path = LOCK) -> None:
    """Compare params.yaml with what splits.json and dvc.lock say of data/interactions, data/embeddings and data/splits.

    The seed counts where it decided on the order of ties. A stage that dvc.lock does not record is not compared.

    Raises:
        UserError: a setting is another one than that of the data.
    """
    plain = params.plain()
    for key in SUMMARISED:
        made = splits.summary.get(key, plain["split"][key])
        if made != plain["split"][key]:
            raise _other(SPLITS, f"split.{key}", made, plain["split"][key])
    recorded = _recorded(lock)
    for stage, (folder, sections) in MADE.items():
        found = recorded.get(stage, {})
        for section in sections:
            if section in found and (other := _first_other(plain, section, found[section])):
                raise _other(folder, *other)
    seed = recorded.get("split", {}).get("seed", params.seed)
    if params.split.ties == "shuffled" and seed != params.seed:
        raise _other(SPLITS, "seed", seed, params.seed)


def _recorded(lock: Path) -> dict[str, dict[str, Any]]:
    """Return stage -> what dvc.lock recorded of params.yaml; nothing where the file is missing or damaged."""
    try:
        stages = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"]
        return {name: dict(stages[name]["params"]["params.yaml"]) for name in MADE if name in stages}
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError, yaml.YAMLError):
        return {}


def _first_other(plain: dict[str, Any], section: str, recorded: Any) -> tuple[str, Any, Any] | None:
    """Return the first key of a section that differs, with its recorded value and that of params.yaml."""
    raw = deepcopy(plain)
    raw[section] = recorded
    with suppress(UserError):  # of a version with other keys
        recorded = build_params(raw, str(LOCK)).plain()[section]  # 1e6 and 1000000 are one value
    if not isinstance(recorded, dict) or not isinstance(plain[section], dict):
        return None if recorded == plain[section] else (section, recorded, plain[section])
    for key, value in plain[section].items():
        if key in recorded and recorded[key] != value:
            return f"{section}.{key}", recorded[key], value
    return None


def _other(folder: Path, key: str, made: Any, wanted: Any) -> UserError:
    return UserError(
        f"{folder} was made with {key} {short(made)}, and params.yaml says {short(wanted)}",
        f"trials read {folder} as it is",
        FIX,
    )
