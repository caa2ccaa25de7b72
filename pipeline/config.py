"""Build frozen dataclasses from params.yaml, and back.

An unknown key or a bad value is an error that names the nearest valid one, or the bounds of the value. A missing key is
an error too, because nothing here has a default: presets/demo.yaml alone says the defaults.

Each section's dataclass lives in the folder that it is for (`pipeline/training/config.py`, ...), so that changing one
knob's definition re-runs only the stages that read it; this file puts them together.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pipeline.backbones.config import CAUSAL, BackboneConfig
from pipeline.dense.config import DenseConfig
from pipeline.embed.config import EmbedConfig
from pipeline.errors import RESTORE, UserError, nearest
from pipeline.evaluate.config import EvaluateConfig
from pipeline.ingest.config import IngestConfig
from pipeline.knobs import Between, Text, read_section, types_of
from pipeline.quantize.config import QuantizeConfig
from pipeline.split.config import SplitConfig
from pipeline.strategies.registry import ChosenStrategies, choose_strategies, settings_types
from pipeline.track.config import TrackConfig
from pipeline.training.config import TrainConfig
from pipeline.yaml_files import parse_yaml, read_text

MOST_LINES = 30  # of problems that are listed
MIGRATE = "`python -m pipeline migrate` adds missing keys to params.yaml, with their defaults"
DATASETS = (
    "demo",
    "amazon-beauty",
    "amazon-sports",
    "amazon-toys",
    "amazon-2014",
    "amazon-2018",
    "amazon-2023",
    "movielens-1m",
    "movielens-20m",
    "movielens-32m",
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

    seed: Annotated[int, Between(0, 2**32 - 1)]  # what NumPy and scikit-learn take
    strategy: Annotated[str, Text(1, 200)]
    dataset: Annotated[str, Text(1, 100)]
    ingest: IngestConfig
    embed: EmbedConfig
    quantize: QuantizeConfig
    split: SplitConfig
    backbone: BackboneConfig
    train: TrainConfig
    strategies: Mapping[str, Any]
    dense: DenseConfig
    evaluate: EvaluateConfig
    track: TrackConfig

    def __post_init__(self) -> None:
        strategies = choose_strategies(self.strategy, self.strategies)
        if self.train.task == "ranking":
            self._check_ranking(strategies)
        strategies.check(self)
        if self.train.targets == "all" and self.backbone.name not in CAUSAL:
            raise ValueError(
                f"train.targets all needs a backbone where no item sees a later one, and "
                f"{self.backbone.name} is none: set backbone.name to {' or '.join(CAUSAL)}"
            )
        if self.dataset not in DATASETS:
            raise ValueError(f"dataset '{self.dataset}' is not known, {nearest(self.dataset, DATASETS)}")
        self.ingest.check_actions_of(self.dataset)
        if self.backbone.actions and not self.ingest.actions:
            raise ValueError(
                "backbone.actions reads what users did with items, and ingest.actions names no column of the log: name "
                "some there (docs/actions.md), or set backbone.actions to false"
            )
        if self.ingest.files and self.dataset != "custom":
            raise ValueError(f"ingest.files is for the dataset custom; {self.dataset} knows the names of its files")
        if self.evaluate.ranking == "dense" and not self.dense.enabled:
            raise ValueError(
                "evaluate.ranking dense needs the dense retriever, and dense.enabled is false: set it to true, or "
                "choose another evaluate.ranking"
            )
        if self.embed.encoder == "none" and self.quantize.interactions != 1:
            raise ValueError(
                "embed.encoder none makes no vectors, so that Semantic IDs come from interactions alone: set "
                "quantize.interactions to 1, or choose another embed.encoder"
            )

    def _check_ranking(self, strategies: ChosenStrategies) -> None:
        """Raise ValueError where settings mean nothing for predicted actions."""
        if not self.backbone.actions:
            raise ValueError(
                "train.task ranking predicts actions, which a network has with backbone.actions alone: set it to true, "
                f"with backbone.name {' or '.join(CAUSAL)}"
            )
        if changed := [spec.name for spec in strategies.specs if spec.network]:
            raise ValueError(
                f"train.task ranking trains the plain network, and strategy {' and '.join(changed)} changes how codes "
                "are read: set strategy to full or skipgr, or train.task to retrieval"
            )
        if self.evaluate.ranking != "generator":
            raise ValueError(
                f"evaluate.ranking {self.evaluate.ranking} ranks items, and train.task ranking predicts actions: set "
                "evaluate.ranking to generator, or train.task to retrieval"
            )

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
    text = read_text(path, "every command reads its settings from it", "run from the folder that holds params.yaml")
    return build_params(parse_yaml(text, str(path)), str(path))


def build_params(raw: Any, source: str = "params.yaml") -> Params:
    """Check a parsed mapping against the dataclasses.

    Raises:
        UserError: listing every unknown key, bad value and missing key (at most `MOST_LINES`), and how to go on.
    """
    problems: list[str] = []
    missing: list[str] = []
    params = _build(raw if raw is not None else {}, problems, missing)
    if params is None:
        fix = "\n".join([RESTORE] * bool(problems) + [MIGRATE] * bool(missing))
        lines = problems + missing
        more = [f"and {len(lines) - MOST_LINES:,} more"] if len(lines) > MOST_LINES else []
        raise UserError("\n".join(lines[:MOST_LINES] + more), f"{source} was refused as a whole, nothing ran", fix)
    return params


def _plain(section: Any) -> dict[str, Any]:
    """Return the keys of a section as plain YAML values."""
    values = {f.name: getattr(section, f.name) for f in dataclasses.fields(section)}
    return {name: _listed(value) for name, value in values.items()}


def _listed(value: Any) -> Any:
    """Return a value of a section as YAML has it: with lists in place of tuples."""
    if isinstance(value, dict):
        return {key: _listed(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _build(raw: Any, problems: list[str], missing: list[str]) -> Params | None:
    """Build the parameters. Return None, with lines in `problems` and `missing`, where that fails."""
    # At the top, the sections of strategies stand for the field `strategies`.
    hints = {name: hint for name, hint in types_of(Params).items() if name != "strategies"} | settings_types()
    values = read_section(Params, raw, "", problems, missing, hints=hints)
    if values is None:
        return None
    values["strategies"] = {name: values.pop(name) for name in settings_types()}
    try:
        return Params(**values)
    except ValueError as error:
        problems.append(str(error))
        return None
