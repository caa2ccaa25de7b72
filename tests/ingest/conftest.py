"""One way to run the ingest stage on a test's raw files."""

from pathlib import Path
from typing import Any

import pytest
from raw_logs import Ingest, Ingested
from settings import read_params
from staged_logs import Stage, Staged, stage_files

from pipeline.artifacts import Interactions, read_json
from pipeline.ingest.stage import run


@pytest.fixture
def ingest(tmp_path: Path) -> Ingest:
    """ingest(path, dataset="custom", **ingest settings): runs the stage and reads back what it wrote."""

    def call(path: Path | str, dataset: str = "custom", **settings: Any) -> Ingested:
        params = read_params({"dataset": dataset, "ingest": {"path": str(path), **settings}})
        output = tmp_path / "output" / "interactions"
        run(params, output=output, scratch=tmp_path / "scratch")
        return Ingested(output, read_json(Interactions(output).summary))

    return call


@pytest.fixture
def read_log(tmp_path: Path) -> Stage:
    """read_log(path, dataset="custom", **ingest settings): reads the raw files as the stage does, and no more."""

    def call(path: Path | str, dataset: str = "custom", **settings: Any) -> Staged:
        work = tmp_path / "work"
        work.mkdir(exist_ok=True)
        return stage_files(path, work, dataset, **settings)

    return call
