"""The quantize stage: what it writes, and what it makes of real vectors."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts import Embeddings, Sids, read_parquet
from pipeline.config import Params
from pipeline.quantize.config import QuantizeConfig
from pipeline.quantize.stage import make_sids, run

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
SMALL = QuantizeConfig(levels=2, codes=8, iterations=10)


def vectors(items: int = 90) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(items, 6)).astype(np.float32)


def test_every_item_gets_a_sid_of_its_own_with_the_digit_last(tmp_path):
    Embeddings(vectors(), {"name": "test"}).write(tmp_path / "embeddings")
    summary = run(Params(quantize=SMALL), embeddings=tmp_path / "embeddings", output=tmp_path / "sids")
    sids = Sids.read(tmp_path / "sids")
    assert sids.codes_IL.shape == (90, 3)
    assert len(set(map(tuple, sids.codes_IL.tolist()))) == 90
    assert (sids.codes_IL < sids.widths).all()
    assert sids.widths == (8, 8, sids.quality["largest_group"])
    assert sids.quality == summary
    assert sorted(sids.codebooks) == ["level_1", "level_2"]
    assert read_parquet(tmp_path / "sids" / "sids.parquet")["item_id"].tolist() == list(range(90))


def test_a_second_run_writes_the_same_bytes_and_another_seed_other_codes(tmp_path):
    Embeddings(vectors(), {"name": "test"}).write(tmp_path / "embeddings")
    written = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(Params(seed=seed, quantize=SMALL), embeddings=tmp_path / "embeddings", output=tmp_path / name)
        written[name] = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
    assert written["a"] == written["b"]
    assert written["a"]["sids.parquet"] != written["c"]["sids.parquet"]


def test_normalised_input_makes_the_length_of_a_vector_irrelevant():
    scaled = vectors() * np.exp2(np.arange(90) % 5)[:, None].astype(np.float32)  # powers of two: exact in float32
    assert (make_sids(vectors(), SMALL, 1).codes_IL == make_sids(scaled, SMALL, 1).codes_IL).all()
    plain = QuantizeConfig(levels=2, codes=8, iterations=10, normalize_input=False)
    assert (make_sids(vectors(), plain, 1).codes_IL != make_sids(scaled, plain, 1).codes_IL).any()


def test_a_digit_width_of_its_own_becomes_the_last_level_width():
    assert make_sids(vectors(), QuantizeConfig(levels=2, codes=8, digit_width=50), 1).widths == (8, 8, 50)


def test_importing_the_stage_loads_no_faiss():
    import subprocess
    import sys

    code = "import sys, pipeline.quantize.stage; print('faiss' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the real data sets are not here")
def test_on_amazon_beauty_18_percent_collide_and_plain_residuals_collide_more():
    minilm = np.load(SHARED / "amazon-beauty" / "minilm_embeddings.npy").astype(np.float32)
    normalised = make_sids(minilm, QuantizeConfig(iterations=15), 42).quality
    plain = make_sids(minilm, QuantizeConfig(iterations=15, normalize_residuals=False), 42).quality
    assert normalised["collision_rate"] == pytest.approx(0.182, abs=0.025)  # over seeds: 0.174 to 0.199
    assert normalised["two_level_prefixes"] == pytest.approx(6863, rel=0.05)
    assert plain["collision_rate"] > normalised["collision_rate"] + 0.01
