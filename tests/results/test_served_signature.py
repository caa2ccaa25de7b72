"""The model that MLflow serves answers by the rule for seen items of its evaluation, where a request does not say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from synthetic_runs import ranks_of

from pipeline.results import mlflow_model


@pytest.mark.parametrize("drops", [True, False, None])
def test_a_request_that_does_not_say_gets_the_rule_of_the_evaluation(
    drops: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: dict[str, Any] = {}
    monkeypatch.setattr(mlflow.pyfunc, "save_model", lambda *_, **facts: saved.update(facts))
    monkeypatch.setattr(mlflow_model, "read_parquet", lambda _: pd.DataFrame({"raw_id": ["a", "b"]}))
    monkeypatch.setattr(mlflow_model, "serving_facts", lambda _: {})
    monkeypatch.setattr(mlflow_model, "companions", lambda *_: {})
    monkeypatch.setattr(mlflow_model, "_forget_paths", lambda _: None)
    origin = None if drops is None else replace(ranks_of(np.array([1, 2])).origin, filter_seen=drops)
    mlflow_model.write_model(tmp_path / "model", tmp_path, tmp_path, origin=origin)
    defaults = {spec.name: spec.default for spec in saved["signature"].params}
    assert defaults == {"k": 10, "filter_seen": bool(drops)}
