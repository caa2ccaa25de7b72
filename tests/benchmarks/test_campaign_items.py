"""Rows of networks over items: they need no item vectors and no Semantic IDs, and their deep ranks are exact."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from campaign_world import campaign_of, entry

from benchmarks.campaign import Campaign
from benchmarks.campaign_rows import ROOT
from pipeline.artifacts import Splits
from pipeline.errors import UserError
from pipeline.generator import load_generator
from pipeline.packing.histories import Histories
from pipeline.results.compact_ranks import read_compact

OF_IDS: dict[str, Any] = {
    "backbone__name": "gr",
    "backbone__content": False,
    "backbone__temperature": 0.05,
    "train__windows": "sequences",
    "train__targets": "all",
    "evaluate__filter_seen": True,
}
# Packages that a machine with nothing but PyTorch may lack
MISSING = ("dvc", "mlflow", "faiss", "duckdb")


def without_vectors(folder: Path, *entries: Any) -> Campaign:
    """A campaign whose data has no item vectors."""
    campaign_of(folder, list(entries))
    shutil.rmtree(folder / "data/world/embeddings", ignore_errors=True)
    return campaign_of(folder, list(entries))


def worked(campaign: Campaign, folder: Path) -> dict[str, Any]:
    """The result of the campaign's first row, made in a process that can import none of `MISSING`."""
    row = campaign.rows[0]
    inputs = {name: str(path.resolve()) for name, path in campaign.inputs(row).items()}
    folder.mkdir()
    (folder / "spec.json").write_text(json.dumps({"params": row.params.plain(), "inputs": inputs, "engine": "x"}))
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({MISSING})); from pathlib import Path; "
        f"from benchmarks.campaign_worker import run; run(Path({str(folder)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def brute_force(folder: Path, splits: Splits, beam: int, *, drop_seen: bool) -> list[int]:
    """The rank of each test item among the logits of one forward pass per user; 0 beyond `beam`."""
    model = load_generator(folder / "generator").model.eval()
    ranks = []
    for user, position in zip(*splits.targets("test"), strict=True):
        index = np.arange(max(int(splits.offsets[user]), position - splits.max_history), position)
        history, target = np.asarray(splits.items_N)[index], int(splits.items_N[position])
        packed = Histories.pack(
            history, np.array([0, len(index)]), torch.device("cpu"), times_N=np.asarray(splits.timestamps_N)[index]
        )
        with torch.no_grad():
            logits = model(packed, torch.tensor([target]))[0][0].float().numpy()
        order = [item for item in np.argsort(-logits, kind="stable") if not (drop_seen and item in history)][:beam]
        ranks.append(order.index(target) + 1 if target in order else 0)
    return ranks


@pytest.mark.parametrize(("beam", "network"), [(12, "gr"), (200, "sasrec")])
def test_a_row_of_ids_alone_runs_without_vectors_and_ranks_exactly_by_both_rules(
    tmp_path: Path, beam: int, network: str
) -> None:
    row = entry(**{**OF_IDS, "backbone__name": network, "evaluate__beam": beam})
    campaign = without_vectors(tmp_path, row)
    result = worked(campaign, tmp_path / "row")
    splits = Splits.read(campaign.inputs(campaign.rows[0])["splits"])
    users = read_compact(tmp_path / "row/ranks.npz")[0].users
    for column, drop_seen in (("rank", True), ("other_rank", False)):
        expected = brute_force(tmp_path / "row", splits, beam, drop_seen=drop_seen)
        assert users[column].tolist() == expected
        rule = "seen_dropped" if drop_seen else "seen_included"
        for k in (10, 50, 200):
            known = result["quality"].get(f"{rule}_recall_at_{k}")
            hits = [1 <= rank <= k for rank in expected]
            assert known == (pytest.approx(np.mean(hits)) if k <= beam else None)
    if beam == 200:
        assert {"recall_at_200", "ndcg_at_200", "seen_included_ndcg_at_200"} <= set(result["quality"])
    assert not (tmp_path / "data/world/sids").exists()


def test_the_key_of_a_row_of_ids_alone_is_the_same_with_vectors_at_hand(tmp_path: Path) -> None:
    """A row that reads vectors needs them, by its Semantic IDs or by the content of its items."""
    rows = [entry(**OF_IDS), entry(**{**OF_IDS, "backbone__content": True}), entry()]
    whole = campaign_of(tmp_path, rows)
    keys = [whole.key(row) for row in whole.rows]
    bare = without_vectors(tmp_path, *rows)
    assert bare.key(bare.rows[0]) == keys[0]
    for row in bare.rows[1:]:
        with pytest.raises(UserError, match="no folder embeddings"):
            bare.key(row)
