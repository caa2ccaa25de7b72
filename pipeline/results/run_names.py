"""Name a run by what differs: `rastp t5 beauty s42`, and behind it the settings that another such run has otherwise."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts import fingerprint
from pipeline.project import project_root
from pipeline.results.parameters import value_text

# Settings that change no result: the machine, how a run is saved, and how it is recorded.
NO_DIFFERENCE = ("seed", "track", "train.device", "train.threads", "train.checkpoint_every", "ingest.engine")
SHOWN = 3  # differing settings in a name, at most
# Sections of settings in the order in which a name shows what differs in them.
ORDER = ("evaluate", "split", "train", "backbone", "quantize", "embed", "ingest")


@dataclass(frozen=True, kw_only=True)
class RunName:
    """A run is told from others by its strategy, network, data, seed and settings.

    settings: every setting that can change the result, as text, under its dotted name; the seed is none of them.
    """

    strategy: str
    backbone: str
    data: str
    seed: int
    settings: Mapping[str, str]

    @classmethod
    def of(cls, params: Mapping[str, Any], strategies: Collection[str]) -> "RunName":
        """Name the run of these parameters.

        Args:
            params: every parameter, flat.
            strategies: the names of all strategies; settings of those that are not chosen make no difference.
        """
        strategy = params["strategy"]
        out = {*NO_DIFFERENCE, *(name for name in strategies if name not in strategy.split("+"))}
        return cls(
            strategy=strategy,
            backbone=params["backbone.name"],
            data=data_name(params),
            seed=params["seed"],
            settings={
                key: value_text(value) for key, value in params.items() if not {key, key.partition(".")[0]} & out
            },
        )

    @property
    def setting(self) -> str:
        """Return what the runs of several seeds have in common: `rastp t5 beauty`."""
        return f"{self.strategy} {self.backbone} {self.data}"

    @property
    def base(self) -> str:
        """Return the name of the first such run: `rastp t5 beauty s42`."""
        return f"{self.setting} s{self.seed}"

    def tags(self, interactions: str = "") -> dict[str, str]:
        """Return the tags that group runs and stand as columns of the table of runs.

        Args:
            interactions: content hash of the data, so that a log that grew makes another setting.
        """
        return {
            "strategy": self.strategy,
            "backbone": self.backbone,
            "data": self.data,
            "seed": str(self.seed),
            "base_name": self.base,
            "setting": fingerprint({**self.settings, "interactions": interactions})[:16],
        }

    def beside(self, other: Mapping[str, str] | None, key: str) -> str:
        """Return the run's name.

        Args:
            other: the parameters of the first run with the name `base`; None: there is no other.
            key: tells results apart where no setting differs, such as those of two versions of the code.
        """
        if other is None:
            return self.base
        differing = [name for name, value in self.settings.items() if other.get(name, value) != value]
        differing.sort(key=self._importance)
        if not differing:
            return f"{self.base} #{key[:6]}"
        shown = [f"{name.rpartition('.')[2]}={_short(self.settings[name])}" for name in differing[:SHOWN]]
        more = f" +{len(differing) - SHOWN}" if len(differing) > SHOWN else ""
        return f"{self.base} {' '.join(shown)}{more}"

    def _importance(self, name: str) -> tuple[int, str]:
        section = name.partition(".")[0]
        return (-1 if section in self.strategy.split("+") else ORDER.index(section) if section in ORDER else 99), name


def data_name(params: Mapping[str, Any]) -> str:
    """Return track.dataset_name; where it is empty, `dataset`, or for `custom` the name of the folder of the log."""
    if name := str(params.get("track.dataset_name", "")).strip():
        return name
    if params["dataset"] != "custom":
        return str(params["dataset"])
    path = Path(params["ingest.path"])
    folder = path.parent if path.is_file() else path
    return folder.name or project_root().name


def first_other(runs: Iterable[tuple[str, Mapping[str, str]]], run_id: str) -> Mapping[str, str] | None:
    """Return the parameters of the first of `runs` (id and parameters, the oldest first) that is not `run_id`."""
    return next((params for other, params in runs if other != run_id), None)


def _short(value: str) -> str:
    return value if len(value) <= 24 else f"{value[:21]}..."
