"""Residual vector quantization without an encoder, against the same slow reference as residual k-means."""

from typing import Any

import numpy as np
import pytest
import torch
from settings import some
from slow_residual import clouds, follow

from pipeline.quantize import build_quantizer
from pipeline.quantize.config import QuantizeConfig
from pipeline.quantize.vqvae import Level, plus_plus


def config(**changes: Any) -> QuantizeConfig:
    return some(
        QuantizeConfig, **{"method": "vqvae", "levels": 3, "codes": 8, "max_steps": 200, "batch_items": 64, **changes}
    )


@pytest.mark.parametrize("normalize", [True, False])
def test_each_level_gives_the_nearest_code_of_what_the_levels_before_left(normalize: bool) -> None:
    vectors = clouds(1)
    quantized = build_quantizer(config(normalize_residuals=normalize), 3).fit(vectors)
    for item in range(0, len(vectors), 7):
        rebuilt, excess = follow(vectors[item], quantized.codes_IL[item].tolist(), quantized, normalize)
        assert excess < 1e-3  # float32 may take either of two that are equally near
        assert quantized.errors_I[item] == pytest.approx(np.linalg.norm(vectors[item] - rebuilt), abs=1e-3)


def test_gradient_steps_end_where_k_means_does_with_each_code_at_the_mean_of_its_items() -> None:
    vectors = clouds(2)
    quantized = build_quantizer(config(levels=1, max_steps=600, learning_rate=0.05), 3).fit(vectors)
    for code in np.unique(quantized.codes_IL):
        items = vectors[quantized.codes_IL[:, 0] == code]
        assert np.linalg.norm(quantized.codebooks["level_1"][code] - items.mean(0)) < 0.1 * items.std(0).sum()


def test_equal_input_and_seed_give_equal_bytes() -> None:
    first, second, other = (build_quantizer(config(), seed).fit(clouds(3)) for seed in (1, 1, 2))
    assert first.codes_IL.tobytes() == second.codes_IL.tobytes() != other.codes_IL.tobytes()
    assert first.codebooks["level_3"].tobytes() == second.codebooks["level_3"].tobytes()


def test_k_means_plus_plus_draws_far_rows_more_often_and_none_twice() -> None:
    rows = torch.tensor([[0.0], [0.0], [1.0], [3.0]])
    drawn = [plus_plus(rows, 2, torch.Generator().manual_seed(seed)).tolist() for seed in range(600)]
    after_zero = [second for first, second in drawn if first in (0, 1)]
    assert set(after_zero) == {2, 3}
    assert after_zero.count(3) / len(after_zero) == pytest.approx(0.9, abs=0.05)  # squares 1 and 9
    everything = plus_plus(torch.arange(5.0)[:, None], 5, torch.Generator().manual_seed(0))
    assert sorted(everything.tolist()) == [0, 1, 2, 3, 4]


def test_a_code_without_items_starts_again_at_an_item() -> None:
    model, rows = Level(config(codes=3), 8), torch.from_numpy(clouds(4))
    model.codebook.put(torch.arange(3), torch.stack([rows[0], rows[1], torch.full((8,), 1e3)]))
    model.restart_dead(rows, model.encode(rows).codes_BL, torch.Generator().manual_seed(0))
    vectors = model.codebook.vectors().detach()
    assert torch.equal(vectors[:2], rows[:2])
    assert (rows == vectors[2]).all(1).any()
