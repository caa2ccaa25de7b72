"""The demo's images through a tiny Qwen2.5-VL, under real DVC."""

import json
from pathlib import Path

import pytest
from project_folder import Repository, stages_run
from tiny_qwen import save_qwen

from pipeline.artifacts import Embeddings, read_parquet

pytestmark = pytest.mark.slow


def test_images_and_texts_of_the_demo_become_codes_and_nothing_runs_twice(
    repository: Repository, tmp_path: Path
) -> None:
    model = save_qwen(tmp_path / "model")
    repository.run(
        "python",
        "-m",
        "pipeline",
        "preset",
        "qwen2.5-vl-7b",
        "--set",
        f"embed.model={model}",
        "--set",
        "embed.batch_tokens=4096",
    )
    assert stages_run(repository.run("dvc", "repro", "quantize")) == ["check", "embed", "quantize"]
    embedded = Embeddings.read(repository.path / "data/embeddings")
    assert embedded.encoder["images"] == embedded.encoder["items"] == len(embedded.vectors_Id)
    assert (embedded.encoder["images_rejected"], embedded.encoder["items_without_text"]) == (0, 0)
    assert len(read_parquet(repository.path / "data/embeddings/rejects.parquet")) == 0
    assert json.loads((repository.path / "data/sids/quality.json").read_text())["items"] == len(embedded.vectors_Id)
    assert stages_run(repository.run("dvc", "repro", "quantize")) == []
