"""The quantize stage: what it writes, and what it makes of real vectors."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
from settings import some, some_params

from pipeline.artifacts import Embeddings, Sids, read_parquet, write_parquet
from pipeline.errors import UserError
from pipeline.quantize.config import QuantizeConfig
from pipeline.quantize.stage import check_collisions, make_sids, run

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
SMALL = some(QuantizeConfig, levels=2, codes=8, iterations=10, max_collision_rate=1.0)
TRAINED: dict[str, Any] = {"hidden": (8,), "latent": 4, "max_steps": 60, "batch_items": 32}

Method = Literal["rkmeans", "rqvae", "vqvae", "simvq"]


def vectors(items: int = 90) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(items, 6)).astype(np.float32)


def run_in(
    folder: Path, config: QuantizeConfig, seed: int = 42, output: str = "sids", **columns: Any
) -> dict[str, Any]:
    """The stage on `vectors()` and a catalogue of 90 items with these columns."""
    Embeddings(vectors(), {"name": "test"}).write(folder / "embeddings")
    names = [f"v{item:02d}" for item in range(90)]
    items = pd.DataFrame({"item_id": np.arange(90, dtype=np.int32), "raw_id": names, **columns})
    write_parquet(folder / "interactions" / "items.parquet", items)
    return run(
        some_params(seed=seed, quantize=config),
        embeddings=folder / "embeddings",
        interactions=folder / "interactions",
        output=folder / output,
    )


@pytest.mark.parametrize("method", ["rkmeans", "rqvae", "vqvae", "simvq"])
def test_every_item_gets_a_sid_of_its_own_with_the_digit_last(method: Method, tmp_path: Path) -> None:
    summary = run_in(tmp_path, replace(SMALL, method=method, **TRAINED))
    sids = Sids.read(tmp_path / "sids")
    assert sids.codes_IL.shape == (90, 3)
    assert sids.digit
    assert len(set(map(tuple, sids.codes_IL.tolist()))) == 90
    assert (sids.codes_IL < sids.widths).all()
    assert sids.widths == (8, 8, sids.quality["largest_group"])
    assert sids.quality == summary
    assert {"level_1", "level_2"} <= set(sids.codebooks)
    assert read_parquet(tmp_path / "sids" / "sids.parquet")["item_id"].tolist() == list(range(90))
    assert len((tmp_path / "sids/levels.csv").read_text().splitlines()) == 3


def test_a_second_run_writes_the_same_bytes_and_another_seed_other_codes(tmp_path: Path) -> None:
    written = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_in(tmp_path, SMALL, seed, output=name)
        written[name] = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
    assert written["a"] == written["b"]
    assert written["a"]["sids.parquet"] != written["c"]["sids.parquet"]


def test_without_a_digit_items_of_equal_codes_share_a_sid(tmp_path: Path) -> None:
    with_digit = make_sids(vectors(), SMALL, 1)
    summary = run_in(tmp_path, replace(SMALL, collisions="none"), seed=1)
    sids = Sids.read(tmp_path / "sids")
    assert (sids.codes_IL == with_digit.codes_IL[:, :-1]).all()
    assert (sids.widths, sids.digit, summary["largest_group"]) == ((8, 8), False, with_digit.widths[-1])


@pytest.mark.parametrize("method", ["rkmeans", "vqvae"])
def test_sinkhorn_tells_all_items_apart_without_a_digit_and_says_what_it_cost(method: Method) -> None:
    config = replace(SMALL, method=method, codes=20, **TRAINED)
    plain, spread = (make_sids(vectors(), replace(config, collisions=how), 1) for how in ("none", "sinkhorn"))
    assert (spread.codes_IL[:, 0] == plain.codes_IL[:, 0]).all()
    assert len(set(map(tuple, spread.codes_IL.tolist()))) == 90
    assert (spread.widths, spread.digit, spread.quality["collision_rate"]) == ((20, 20), False, 0.0)
    assert spread.quality["quantizer_collision_rate"] == plain.quality["collision_rate"] > 0
    error = "relative_reconstruction_error"
    assert plain.quality[error] < spread.quality[error] < plain.quality[error] + 0.5


def test_categories_are_compared_where_the_log_has_them(tmp_path: Path) -> None:
    assert run_in(tmp_path, SMALL)["category_agreement_by_chance"] is None
    mixed = ["a", "b", None] * 30
    assert run_in(tmp_path, SMALL, categories=mixed)["category_agreement_by_chance"] == pytest.approx(29 / 59, abs=1e-4)


def test_too_many_collisions_fail_with_advice_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"of items share their codes with another, quantize.max_collision_rate allows "
        r"10.0%; the largest group has \d+ items",
    ) as caught:
        run_in(tmp_path, replace(SMALL, max_collision_rate=0.1))
    assert "raise quantize.codes or quantize.levels" in caught.value.fix
    assert caught.value.fix.splitlines()[-1].startswith("mend the value, then `dvc repro`")
    assert not (tmp_path / "sids").exists()


def test_the_advice_follows_from_the_figures_and_its_limit_is_one_that_passes() -> None:
    quality = {
        "collision_rate": 0.6213,
        "largest_group": 9,
        "identical_vectors": 0.5,
        "items": 100,
        "colliding_pairs": 0.05,
        "level_1": {"used_codes": 3},
        "level_2": {"used_codes": 8},
    }
    config = replace(SMALL, method="simvq", max_collision_rate=0.2, normalize_residuals=False)
    with pytest.raises(UserError) as caught:
        check_collisions(quality, config)
    for words in (
        "50.0% of items have the same vector as another item",
        "a level uses 3 of its 8 codes",
        "another quantize.learning_rate",
        "switch on quantize.normalize_residuals",
        "quantize.max_collision_rate=0.63",
    ):
        assert words in caught.value.fix
    check_collisions(quality, replace(config, max_collision_rate=0.63))
    alone = {**quality, "interactions": {"share": 1.0, "items_without_vector": 7}}
    with pytest.raises(UserError) as caught:
        check_collisions(alone, config)
    assert "7 items have no vector from interactions; raise quantize.interaction_window" in caught.value.fix
    assert "embed.template" not in caught.value.fix


def test_normalised_input_makes_the_length_of_a_vector_irrelevant() -> None:
    scaled = vectors() * np.exp2(np.arange(90) % 5)[:, None].astype(np.float32)  # powers of two: exact in float32
    assert (make_sids(vectors(), SMALL, 1).codes_IL == make_sids(scaled, SMALL, 1).codes_IL).all()
    plain = some(QuantizeConfig, levels=2, codes=8, iterations=10, normalize_input=False)
    assert (make_sids(vectors(), plain, 1).codes_IL != make_sids(scaled, plain, 1).codes_IL).any()


def test_a_digit_width_of_its_own_becomes_the_last_level_width() -> None:
    assert make_sids(vectors(), some(QuantizeConfig, levels=2, codes=8, digit_width=50), 1).widths == (8, 8, 50)


def test_importing_the_stage_loads_no_faiss() -> None:
    import subprocess
    import sys

    code = "import sys, pipeline.quantize.stage; print('faiss' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="no shared data")
def test_on_amazon_beauty_18_percent_collide_and_plain_residuals_collide_more() -> None:
    minilm = np.load(SHARED / "amazon-beauty" / "minilm_embeddings.npy").astype(np.float32)
    normalised = make_sids(minilm, some(QuantizeConfig, iterations=15), 42).quality
    plain = make_sids(minilm, some(QuantizeConfig, iterations=15, normalize_residuals=False), 42).quality
    assert normalised["collision_rate"] == pytest.approx(0.182, abs=0.025)  # over seeds: 0.174 to 0.199
    assert normalised["two_level_prefixes"] == pytest.approx(6863, rel=0.05)
    assert plain["collision_rate"] > normalised["collision_rate"] + 0.01


def test_too_many_collisions_name_sizes_that_are_enough(tmp_path: Path) -> None:
    """The advice of the stage is followed, and the stage then passes."""
    few = replace(SMALL, codes=4, max_collision_rate=0.3)
    with pytest.raises(UserError, match="of items share their codes") as caught:
        run_in(tmp_path, few)
    found = re.search(r"about quantize\.codes=(\d+) or quantize\.levels=(\d+)\)", caught.value.fix)
    assert found, caught.value.fix
    assert run_in(tmp_path, replace(few, codes=int(found[1])))["collision_rate"] <= 0.3
    assert run_in(tmp_path, replace(few, levels=int(found[2])))["collision_rate"] <= 0.3


def test_a_sample_is_named_with_what_it_can_have_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quality = run_in(tmp_path, replace(SMALL, points_per_code=5))
    assert [(level["points"], level["items"]) for level in quality["sampled"]] == [(40, 90)] * 2
    assert "k-means learned from 40 of 90 items (quantize.points_per_code)" in capsys.readouterr().out
    assert "sampled" not in run_in(tmp_path, SMALL)
    assert "learned from" not in capsys.readouterr().out
