"""Stage dense makes the dense retriever: a small network over items, trained beside the generator of any strategy.

The retriever is the backbone `sasrec` by the settings of `dense:`. It reads neither Semantic IDs nor the settings of
strategies, `backbone` or `train`, so that an experiment with those never trains it again. models/dense has the form of
models/generator. With `dense.enabled: false` the folder says so, and nothing is trained.

Torch is loaded only where something is trained.
"""

from pathlib import Path
from typing import Any, Protocol

from pipeline.artifacts import EMBEDDINGS, INTERACTIONS, REPORTS, SCRATCH, SPLITS, write_json
from pipeline.dense.config import DenseConfig
from pipeline.manifest import seal, sealed
from pipeline.metric_names import DENSE_REPORT
from pipeline.printing import say

RETRIEVER = Path("models/dense")


class DenseParams(Protocol):
    """`DenseParams` declares what this stage reads of params.yaml."""

    @property
    def seed(self) -> int: ...

    @property
    def dataset(self) -> str: ...

    @property
    def dense(self) -> DenseConfig: ...


def run(
    params: DenseParams,
    *,
    interactions: Path = INTERACTIONS,
    embeddings: Path = EMBEDDINGS,
    splits: Path = SPLITS,
    output: Path = RETRIEVER,
    reports: Path = REPORTS,
    scratch: Path = SCRATCH,
) -> dict[str, Any]:
    """Train the retriever and write models/dense and reports/dense.json; with `enabled` false say so in both.

    Returns:
        What dense.json holds.

    Raises:
        UserError: an input is missing or does not fit the others, the loss diverges, a checkpoint is damaged, or the
            disk is full.
    """
    if params.dense.enabled:
        from pipeline.dense.retriever import Inputs, train_retriever

        report = train_retriever(
            params.dense,
            Inputs(interactions, embeddings, splits),
            seed=params.seed,
            dataset=params.dataset,
            output=output,
            reports=reports,
            scratch=scratch,
        )
    else:
        report = {"enabled": False}
        for left in (file for file in output.glob("*") if file.is_file()):  # of an earlier model
            left.unlink()
        write_json(output / "config.json", report)
        seal(output, "dense")
        write_json(reports / DENSE_REPORT, sealed(report, reports, ()))
        say("dense: dense.enabled is false, so no retriever is trained")
    return report
