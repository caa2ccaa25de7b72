"""The embed stage: what it writes, counts and refuses, with the encoders that need no model."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from settings import some, some_params

from pipeline.artifacts import Embeddings, Interactions, write_parquet
from pipeline.embed.config import EmbedConfig
from pipeline.embed.stage import run
from pipeline.errors import UserError

TITLES = ["red lipstick", "blue lipstick", None, "garden hose", "garden rake", "  "]
VECTORS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


@pytest.fixture
def interactions(tmp_path: Path) -> Path:
    """data/interactions/ with six items, two of them without any text, and a vector for each item."""
    items = pd.DataFrame(
        {
            "item_id": np.arange(6, dtype=np.int32),
            "raw_id": [f"r{i}" for i in range(6)],
            "title": TITLES,
            "vector": list(VECTORS),
        }
    )
    write_parquet(Interactions(tmp_path / "interactions").items, items)
    return tmp_path / "interactions"


def embed(folder: Path, config: EmbedConfig, name: str = "out") -> tuple[Embeddings, dict[str, Any]]:
    summary = run(
        some_params(embed=config), interactions=folder, output=folder.parent / name, scratch=folder.parent / "s"
    )
    return Embeddings.read(folder.parent / name), summary


def test_tfidf_gives_one_row_per_item_and_counts_those_without_text(
    interactions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embeddings, summary = embed(interactions, some(EmbedConfig))
    assert embeddings.vectors_Id.shape == (6, 4)  # four texts allow no more
    assert (
        embeddings.encoder
        == summary
        == {
            "encoder": "tfidf",
            "items": 6,
            "dimensions": 4,
            "zero_vectors": 2,
            "template": ["{title}", "{categories}", "{description}"],
            "items_without_text": 2,
        }
    )
    assert (embeddings.vectors_Id[[2, 5]] == 0).all()
    assert "2 items have a vector of zeros, 2 of them because they have no text" in capsys.readouterr().out


def test_a_second_run_writes_the_same_bytes_whatever_the_seed(interactions: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        run(some_params(seed=seed), interactions=interactions, output=interactions.parent / name)
    for path in (interactions.parent / "a").iterdir():
        assert path.read_bytes() == (interactions.parent / "b" / path.name).read_bytes()


def test_precomputed_takes_the_vectors_that_came_with_the_dataset(
    interactions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(Interactions(interactions).items)
    embeddings, summary = embed(interactions, some(EmbedConfig, encoder="precomputed", path=path))
    assert (embeddings.vectors_Id == VECTORS).all()
    assert (summary["matched_by"], summary["unused_rows"], summary["file"]) == ("id", 0, "items.parquet")
    assert "by id (raw_id): 6 of 6 items found; 0 rows of the file belong to no item" in capsys.readouterr().out
    assert summary["fingerprint"]


def test_without_ids_the_line_says_that_vectors_were_matched_by_order(
    interactions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "v.npy", VECTORS)
    embed(interactions, some(EmbedConfig, encoder="precomputed", path=str(tmp_path / "v.npy")))
    assert "vectors of v.npy were matched by order: row i is item i of items.parquet" in capsys.readouterr().out


def test_nan_or_infinite_numbers_name_the_first_items(interactions: Path, tmp_path: Path) -> None:
    broken = VECTORS.copy()
    broken[1, 0], broken[4, 2] = np.nan, np.inf
    np.save(tmp_path / "v.npy", broken)
    with pytest.raises(UserError, match="2 of 6 items have NaN or infinite numbers in their embedding, first: r1, r4"):
        embed(interactions, some(EmbedConfig, encoder="precomputed", path=str(tmp_path / "v.npy")))


def test_rows_of_zeros_are_counted_and_nothing_but_zeros_is_refused(interactions: Path, tmp_path: Path) -> None:
    partly = VECTORS.copy()
    partly[3] = 0
    np.save(tmp_path / "v.npy", partly)
    config = some(EmbedConfig, encoder="precomputed", path=str(tmp_path / "v.npy"))
    assert embed(interactions, config)[1]["zero_vectors"] == 1
    np.save(tmp_path / "v.npy", np.zeros((6, 4)))
    with pytest.raises(UserError, match="the embeddings of all items are zero"):
        embed(interactions, config)


def test_a_template_that_no_item_can_fill_is_refused(interactions: Path) -> None:
    with pytest.raises(UserError, match="no item has a text") as caught:
        embed(interactions, some(EmbedConfig, template=("{description}",)))
    assert "the items have the columns item_id, raw_id, title" in caught.value.why


def test_an_unknown_field_of_the_template_is_refused(interactions: Path) -> None:
    with pytest.raises(UserError, match="the field 'tittle'"):
        embed(interactions, some(EmbedConfig, template=("{tittle}",)))


def test_vectors_are_no_text(interactions: Path) -> None:
    with pytest.raises(UserError, match="the field 'vector'"):
        embed(interactions, some(EmbedConfig, template=("{vector}",)))


def test_a_failed_run_leaves_what_was_there(interactions: Path) -> None:
    before = embed(interactions, some(EmbedConfig))[0].vectors_Id
    with pytest.raises(UserError):
        embed(interactions, some(EmbedConfig, template=("{tittle}",)))
    assert (Embeddings.read(interactions.parent / "out").vectors_Id == before).all()
