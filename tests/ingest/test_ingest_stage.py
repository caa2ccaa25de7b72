"""The stage as a whole: the same bytes every time, the demo, and the real datasets."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from raw_logs import SHARED, Ingest, csv_text, interactions, write

from pipeline.ingest.stage import _replace
from pipeline.metric_names import MEASURED
from pipeline.stopping import Stopped

BEAUTY, SPORTS, MOVIES = (SHARED / name for name in ("amazon-beauty", "amazon-sports", "movielens-latest-small"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_a_second_run_gives_the_same_bytes(ingest: Ingest, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = [
        (f"u{user}", f"i{item}", 1_400_000_000 + time, "" if bad else 1)
        for user, item, time, bad in zip(
            rng.integers(0, 300, 20_000),
            rng.integers(0, 100, 20_000),
            rng.integers(0, 99, 20_000),
            rng.random(20_000) < 0.005,
            strict=True,
        )
    ]
    path = write(tmp_path / "log.csv.gz", csv_text(rows, "user,item,timestamp,click"))
    first = ingest(path, minimum={"click": 1})
    assert first.rejects
    before = content(first.folder)
    assert content(ingest(path, minimum={"click": 1}).folder) == before
    tables = {f"{name}.parquet" for name in ("interactions", "users", "items", "rejects", "cut")}
    assert set(before) == tables | {"ingest.json", "manifest.json"}
    assert not MEASURED & set(first.summary)


def test_a_smaller_memory_limit_changes_nothing(ingest: Ingest, tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", csv_text(interactions()))
    assert content(ingest(path, memory_limit="100MB").folder) == content(ingest(path).folder)


def test_no_path_of_this_machine_is_in_the_outputs(ingest: Ingest, tmp_path: Path) -> None:
    write(tmp_path / "raw" / "interactions.csv", csv_text([*interactions(), ("", "i1", 1)]))
    result = ingest(tmp_path / "raw", max_reject_rate=0.5)
    assert all(str(tmp_path).encode() not in bytes_ for bytes_ in content(result.folder).values())


def test_ingest_json_counts_before_and_after_each_filter(ingest: Ingest, tmp_path: Path) -> None:
    rows: list[tuple[Any, ...]] = [(*row, 1) for row in interactions()] + [
        ("u9", "i0", 1_400_000_000, 1),
        ("u8", "i0", 1_400_000_000, 0),
    ]
    rows += [rows[0], ("", "", "", "")]
    path = write(tmp_path / "log.csv", csv_text(rows, "user,item,timestamp,click") + ",i1,5,1\n")
    summary = ingest(path, minimum={"click": 1}, max_reject_rate=0.1).summary
    assert (summary["users"], summary["items"], summary["interactions"]) == (6, 6, 36)
    assert (summary["rows_read"], summary["rejected"]) == (40, 1)  # a row of nothing but empty fields is no row
    assert [tuple(step.values()) for step in summary["steps"]] == [
        ("usable rows", 39, 8, 6),
        ("minimum click >= 1", 38, 7, 6),
        ("earliest of each user and item", 37, 7, 6),
        ("5-core", 36, 6, 6),
    ]
    assert (summary["k_core"], summary["minimum"]) == (5, {"click": 1})
    assert summary["columns"] == {"user": "user", "item": "item", "timestamp": "timestamp", "click": "click"}
    assert len(summary["sha256"]["log.csv"]) == 64


@pytest.mark.slow
def test_the_demo_goes_the_ordinary_way_on_its_clicks(ingest: Ingest, root: Path) -> None:
    result = ingest(root / "data" / "demo", "demo")
    assert result.summary["users"] > 1500
    assert result.summary["items"] > 900
    assert result.rejects == []
    assert set(result.frame("interactions").click) == {1.0}
    images = result.frame("items").image
    assert all((result.folder / "raw" / image).is_file() for image in images)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("folder", "counts"), [(BEAUTY, (22_363, 12_101, 198_502)), (SPORTS, (35_598, 18_357, 296_337))]
)
def test_amazon_comes_out_as_the_literature_counts_it(
    ingest: Ingest, folder: Path, counts: tuple[int, int, int]
) -> None:
    if not folder.exists():
        pytest.skip("no shared data")
    result = ingest(folder)
    assert (result.summary["users"], result.summary["items"], result.summary["interactions"]) == counts
    assert result.rejects == []
    raw = pd.read_csv(folder / "interactions.csv.gz").astype({"user": str, "asin": str})
    order = np.lexsort([np.arange(len(raw)), raw.unix_time.to_numpy(), pd.factorize(raw.user)[0]])
    assert result.rows == list(raw.iloc[order].itertuples(index=False, name=None))
    items = pd.read_csv(folder / "items.csv.gz", dtype=str)
    assert result.frame("items").raw_id.tolist() == items.asin.tolist()
    vectors = np.load(folder / "minilm_embeddings.npy")
    np.testing.assert_array_equal(np.stack(result.frame("items").vector.tolist()), vectors.astype(np.float32))


@pytest.mark.shared
def test_movielens_latest_small_goes_through_its_recipe(ingest: Ingest) -> None:
    if not MOVIES.exists():
        pytest.skip("no shared data")
    result = ingest(MOVIES, "movielens-latest")
    assert (result.summary["users"], result.summary["items"], result.summary["interactions"]) == (610, 3650, 90_274)
    first = result.frame("items").iloc[0]
    assert (first.title, first.categories) == ("Toy Story (1995)", "Adventure, Animation, Children, Comedy, Fantasy")
    ratings = pd.read_csv(MOVIES / "ratings.csv")
    while True:  # a slow 5-core
        often = ratings.groupby("movieId").userId.transform("size").ge(5) & ratings.groupby("userId").userId.transform(
            "size"
        ).ge(5)
        if often.all():
            break
        ratings = ratings[often]
    expected = ratings.astype({"userId": str, "movieId": str})[["userId", "movieId", "timestamp"]]
    assert sorted(result.rows) == sorted(expected.itertuples(index=False, name=None))


@pytest.mark.parametrize("error", [Stopped, OSError])
@pytest.mark.parametrize("moment", [0, 1])
def test_an_end_while_the_folder_is_replaced_leaves_the_older_one(
    error: type[BaseException], moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    rename, renamed = Path.rename, list[Path]()

    def ends(self: Path, target: Path) -> Path:
        renamed.append(self)
        if len(renamed) == moment + 1:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", ends)
    with pytest.raises(error):
        _replace(tmp_path / "old", tmp_path / "new")
    assert (tmp_path / "old/file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
