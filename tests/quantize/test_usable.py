"""Vectors that no quantizer can use are refused in one line, with the items."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from settings import read_params

from pipeline.artifacts import Interactions, write_json, write_parquet, write_tensors
from pipeline.errors import UserError
from pipeline.quantize.stage import run
from pipeline.quantize.usable import check_vectors

RAW_IDS = [f"v{number}" for number in range(8)]


def with_value(value: float, items: slice = slice(2, 4)) -> np.ndarray:
    vectors_Id = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    vectors_Id[items, 1] = value
    return vectors_Id


@pytest.mark.parametrize("method", ["rkmeans", "rqvae", "vqvae", "simvq"])
@pytest.mark.parametrize(
    ("vectors_Id", "said"),
    [
        (with_value(np.nan), "2 of 8 items have NaN or infinite numbers in their embedding, first: v2, v3"),
        (with_value(np.inf), "2 of 8 items have NaN or infinite"),
        (with_value(1e38), r"2 of 8 items have numbers beyond 1e\+15 in their embedding, first: v2, v3"),
        (with_value(-1e38, slice(0, 8)), r"8 of 8 items have numbers beyond 1e\+15"),
        (np.zeros((8, 4), np.float32), "the embeddings of all 8 items are zero"),
        (with_value(1) * np.float32(1e-38), "the embeddings of all 8 items are zero, or smaller than 1e-15"),
        (with_value(1)[:7], r"the embeddings have the shape \[7, 4\], and there are 8 items"),
        (with_value(1)[:, 1], r"the embeddings have the shape \[8\]"),
    ],
    ids=["nan", "inf", "large", "all large", "zeros", "tiny", "fewer", "flat"],
)
def test_the_stage_names_them_and_writes_nothing(method: str, vectors_Id: Any, said: str, tmp_path: Path) -> None:
    write_tensors(
        tmp_path / "embeddings/embeddings.safetensors", {"vectors": vectors_Id}
    )  # not `Embeddings`: rows alone
    write_json(tmp_path / "embeddings/embeddings.json", {})
    items = pd.DataFrame({"item_id": np.arange(8, dtype=np.int32), "raw_id": RAW_IDS})
    write_parquet(Interactions(tmp_path).items, items)
    params = read_params({"quantize": {"method": method, "codes": 2, "normalize_input": False}})
    with pytest.raises(UserError, match=said) as caught:
        run(params, embeddings=tmp_path / "embeddings", interactions=tmp_path, output=tmp_path / "sids")
    assert "\n" not in caught.value.what
    assert not (tmp_path / "sids").exists()


def test_usable_vectors_pass_and_so_does_a_width_of_0() -> None:
    check_vectors(with_value(0.0), RAW_IDS)
    check_vectors(with_value(1e15), RAW_IDS)
    check_vectors(np.zeros((8, 0), np.float32), RAW_IDS)
