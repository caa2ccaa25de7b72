"""`quantize.interactions`: what the stage joins, measures and prints, and that 0 changes no byte."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from settings import read_params, some, some_params

from pipeline.artifacts import Embeddings, Interactions, Sids, Splits, TrainingPart, write_parquet
from pipeline.embed.stage import run as embed
from pipeline.errors import UserError
from pipeline.quantize.config import QuantizeConfig
from pipeline.quantize.cooccurrence import interaction_vectors
from pipeline.quantize.interactions import join_interactions
from pipeline.quantize.stage import run as quantize
from pipeline.split.config import SplitConfig
from pipeline.split.stage import split_log

ITEMS = 60
SMALL: dict[str, Any] = {"levels": 2, "codes": 8, "iterations": 10, "max_collision_rate": 1.0, "device": "cpu"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """data/ with 60 items in four groups that users stay in, of which the last item occurs nowhere."""
    rng = np.random.default_rng(1)
    users_N = np.repeat(np.arange(80), 8)
    items_N = (rng.integers(0, 15, len(users_N)) * 4 + users_N % 4).astype(np.int32)
    items_N[items_N == ITEMS - 1] = 3
    splits = split_log(
        users_N,
        items_N,
        np.arange(len(users_N)),
        users=80,
        items=ITEMS,
        config=some(SplitConfig, protocol="leave_one_out"),
        seed=1,
    )
    splits.write(tmp_path / "splits")
    items = pd.DataFrame({"item_id": np.arange(ITEMS, dtype=np.int32), "raw_id": [f"r{i}" for i in range(ITEMS)]})
    write_parquet(Interactions(tmp_path / "interactions").items, items)
    Embeddings(rng.normal(size=(ITEMS, 6)), {"encoder": "tfidf"}).write(tmp_path / "embeddings")
    return tmp_path


def run(data: Path, output: str = "sids", **changes: Any) -> Sids:
    quantize(
        some_params(seed=1, quantize=some(QuantizeConfig, **SMALL, **changes)),
        embeddings=data / "embeddings",
        interactions=data / "interactions",
        splits=data / "splits",
        output=data / output,
    )
    return Sids.read(data / output)


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_share_of_0_reads_no_split_and_the_other_keys_change_no_byte(data: Path) -> None:
    run(data, interactions=0.0)
    for path in (data / "splits").iterdir():
        path.unlink()
    sids = run(data, "other", interactions=0.0, interaction_window=1, interaction_shift=9.0, interaction_dimensions=1)
    assert written(data / "sids") == written(data / "other")
    assert "interactions" not in sids.quality
    with pytest.raises(UserError, match=r"items_N.npy is not here"):
        run(data, interactions=0.5)


@pytest.mark.parametrize("share", [0.0001, 0.3, 1.0])
def test_inner_products_are_the_weighted_mean(data: Path, share: float) -> None:
    content_Id = Embeddings.read(data / "embeddings").vectors_Id
    content_Id[5] = 0  # an item without a text
    part = TrainingPart.read(data / "splits")
    config = some(QuantizeConfig, interactions=share, interaction_dimensions=10)
    joined = join_interactions(content_Id, part, config)
    window, shift = config.interaction_window, config.interaction_shift
    related_Id = interaction_vectors(part, ITEMS, window=window, shift=shift, dimensions=10).vectors_Id
    unit_Id = content_Id / np.maximum(np.linalg.norm(content_Id, axis=1), 1e-30)[:, None]
    expected_II = (1 - share) * unit_Id @ unit_Id.T + share * related_Id @ related_Id.T
    assert joined.vectors_Id.dtype == np.float32
    assert np.allclose(joined.vectors_Id @ joined.vectors_Id.T, expected_II, rtol=0, atol=1e-5)


def test_the_report_says_how_much_came_from_interactions(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_content = run(data, interactions=1e-9).quality["interactions"]
    by_related = run(data, interactions=1.0).quality["interactions"]
    assert by_content["content_neighbour_agreement"][0] > by_related["content_neighbour_agreement"][0]
    assert by_content["interaction_neighbour_agreement"][0] < by_related["interaction_neighbour_agreement"][0]
    assert {key: by_related[key] for key in ("share", "window", "shift", "items_without_vector")} == {
        "share": 1.0,
        "window": 5,
        "shift": 1.0,
        "items_without_vector": 1,
    }
    out = capsys.readouterr().out
    assert "quantize: a share of 1 comes from interactions: " in out
    assert "1 items have no vector from them" in out


def test_users_groups_become_codes_without_any_text(data: Path) -> None:
    """The content is noise. Items that users have together share first codes, others do not."""
    embed(
        read_params({"embed": {"encoder": "none"}, "quantize": {"interactions": 1.0}}),
        interactions=data / "interactions",
        output=data / "embeddings",
        scratch=data / "scratch",
    )
    assert Embeddings.read(data / "embeddings").vectors_Id.shape == (ITEMS, 0)
    sids = run(data, interactions=1.0, normalize_residuals=False)
    assert sids.quality["interactions"]["content_neighbour_agreement"] is None
    groups = [set(sids.codes_IL[group : ITEMS - 1 : 4, 0].tolist()) for group in range(4)]
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert written(data / "sids") == written_again(data)


def written_again(data: Path) -> dict[str, bytes]:
    run(data, "again", interactions=1.0, normalize_residuals=False)
    return written(data / "again")


def test_embeddings_of_another_log_are_refused(data: Path) -> None:
    Embeddings(np.ones((20, 3)), {}).write(data / "embeddings")
    with pytest.raises(UserError, match=r"the embeddings have the shape \[20, 3\], and there are \d+ items"):
        run(data, interactions=0.5)


def test_only_three_files_of_the_split_are_read(data: Path) -> None:
    before = run(data, interactions=0.5).codes_IL
    for name in {*Splits.ARRAYS} - {"items_N", "offsets", "train_end"}:
        (data / "splits" / f"{name}.npy").unlink()
    (data / "splits/splits.json").unlink()
    assert (run(data, interactions=0.5).codes_IL == before).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantize": {"interactions": 1.2}}, r"quantize\.interactions is .*, expected a number from 0 to 1"),
        ({"quantize": {"interactions": -0.1}}, r"quantize\.interactions is .*, expected a number from 0 to 1"),
        ({"quantize": {"interactions": float("nan")}}, r"quantize\.interactions is .*, expected a number from 0 to 1"),
        ({"quantize": {"interaction_shift": 0.5}}, r"quantize\.interaction_shift is .*, expected a number from 1 to"),
        (
            {"quantize": {"interaction_shift": float("nan")}},
            r"quantize\.interaction_shift is .*, expected a number from 1 to",
        ),
        ({"quantize": {"interaction_window": 0}}, "interaction_window is 0, expected a whole number from 1"),
        ({"quantize": {"interaction_dimensions": 0}}, "interaction_dimensions is 0, expected a whole number from 1"),
        ({"embed": {"encoder": "none"}}, "set quantize.interactions to 1, or choose another embed.encoder"),
        (
            {"embed": {"encoder": "none"}, "quantize": {"interactions": 0.5}},
            "set quantize.interactions to 1, or choose another embed.encoder",
        ),
    ],
)
def test_values_without_a_meaning_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_params(changes)


def test_params_yaml_takes_the_encoder_none_with_interactions_alone() -> None:
    assert read_params({"embed": {"encoder": "none"}, "quantize": {"interactions": 1}}).quantize.interactions == 1.0
