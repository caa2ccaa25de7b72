"""Promote a run's model: register it, give it the alias `champion` and publish it, if it is not worse than the one now.

The ranks of the champion's evaluation lie in the published folder beside its model, so the two are compared user by
user, as `compare` does.
"""

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.results.compare import compare
from pipeline.results.comparison_text import comparison_text
from pipeline.results.predictions import Predictions
from pipeline.results.ranks import no_ranks
from pipeline.results.registry import Registered, champion, download_version, register
from pipeline.results.runs import read_run
from pipeline.serving.publish import CURRENT, RANKS, Published, add, answers_alike, current, held, move, staged

METRIC = "recall_at_10"
GOOD_ENOUGH = ("better", "not worse")


@dataclass(frozen=True)
class Promotion:
    """A promotion says which version has the alias now, and the comparison that allowed it."""

    published: Published
    comparison: str  # text; empty where there was nothing to compare with
    new: bool  # this call moved the alias


def promote(
    run: str, name: str, experiment: str, folder: Path, *, samples: int = 2000, force: bool = False
) -> Promotion:
    """Promote the model of a run.

    Args:
        run: what `compare` takes for a run, such as `workspace` or the name of an experiment.
        name: registered model. experiment: MLflow's experiment where `track` logged the model.
        folder: where the model is published; the alias and the folder always name one model.
        force: promote without a comparison, such as after a new split, whose users differ.

    Raises:
        UserError: the run's model was not logged, or it is not shown to be as good as the champion.
    """
    tested = read_run(run).ranks
    if isinstance(tested, Predictions):
        raise no_ranks(run)
    candidate = tested.origin.served
    with held(folder):
        now = current(folder)
        _check_owner(folder, now, name)
        drop_seen = tested.origin.filter_seen
        if now is not None and answers_alike(folder, now, candidate, drop_seen=drop_seen):
            return Promotion(now, "", new=False)
        text = "" if now is None or force else _comparison(run, folder, samples)
        registered = register(name, experiment, candidate, drop_seen=drop_seen)
        with staged(folder) as partial:
            made = add(folder, download_version(registered, partial), candidate, registered)
        move(folder, made, name)
        return Promotion(made, text, new=True)


def _check_owner(folder: Path, now: Published | None, name: str) -> None:
    """Check that folder and alias name one model. Raises UserError where somebody moved one of them alone."""
    served: Registered | None = now.registered if now else None
    crowned = champion(name)
    if served == crowned:
        return
    raise UserError(
        f"the alias champion of {name} is at {_version(crowned)}, and {folder} serves {_version(served)}",
        "alias and folder move together, and one of them was moved by other means",
        "name the folder that follows the alias (--published DIR), or another track.model_name",
    )


def _version(registered: Registered | None) -> str:
    return f"version {registered.version} of {registered.name}" if registered else "no registered version"


def _comparison(run: str, folder: Path, samples: int) -> str:
    """Return the comparison with the champion as text. Raises UserError where it does not allow the promotion."""
    report = compare([f"champion={folder / CURRENT / RANKS}", f"candidate={run}"], samples=samples)
    compared = [row for table in report.tables for row in table.comparisons if row.differences]
    if not compared:
        raise UserError(
            f"{run} is not promoted: it cannot be compared with the champion",
            "; ".join(report.notes) or "the two were evaluated by different protocols",
            "evaluate it as the champion was; --force promotes all the same",
        )
    (found,) = compared
    text = comparison_text(report)
    (difference,) = [entry for entry in found.differences if entry.metric == METRIC]
    if difference.verdict not in GOOD_ENOUGH:
        raise UserError(
            f"{run} is not promoted: its {METRIC} is {difference.verdict} ({difference.reference:.4f} to "
            f"{difference.value:.4f}, 95% interval of the difference {difference.low:+.4f} to {difference.high:+.4f})",
            "a model is promoted where it is better or not worse than the champion",
            "train it longer or on more seeds; --force promotes all the same",
        )
    return text
