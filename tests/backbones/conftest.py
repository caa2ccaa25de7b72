"""Random catalogues, windows and models, small enough for slow references."""

import numpy as np
import pytest
import torch

from pipeline.backbones import build_backbone
from pipeline.backbones.catalogue import Catalogue
from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.histories import Histories


def _random_codes(items: int, widths: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """`items` distinct Semantic IDs in no order, int64 [items, levels]."""
    rng = np.random.default_rng(seed)
    codes = np.unique(rng.integers(0, widths, (4 * items, len(widths))), axis=0)
    return rng.permutation(codes)[:items]


def _random_windows(count: int, items: int, longest: int = 9,
                    seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(items of all windows, offsets, target of each window); lengths from 1 on, several of them equal."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], rng.integers(1, longest + 1, count).cumsum()])
    return rng.integers(0, items, offsets[-1]), offsets, rng.integers(0, items, count)


@pytest.fixture
def random_codes():
    return _random_codes


@pytest.fixture
def random_windows():
    return _random_windows


@pytest.fixture
def make_model():
    def make(items: int = 60, widths: tuple[int, ...] = (7, 6, 5, 3), seed: int = 0, **config):
        """A small T5 in evaluation mode, whose biases are large enough to matter."""
        torch.manual_seed(seed)
        small = {"d_model": 16, "heads": 3, "d_head": 8, "d_ff": 32, "dropout": 0.0, "relative_max_distance": 24}
        model = build_backbone(BackboneConfig(**small | config), Catalogue(_random_codes(items, widths, seed), widths))
        with torch.no_grad():
            model.encoder_bias.weight.normal_()
            model.decoder_bias.weight.normal_()
        return model.eval()

    return make


@pytest.fixture
def make_batch():
    def make(model, count: int = 12, longest: int = 9, seed: int = 0, pad_to: int = 0):
        """(histories, targets in packed order)."""
        items_N, offsets, targets_W = _random_windows(count, model.catalogue.items, longest, seed)
        histories = Histories.pack(items_N, offsets, pad_to=pad_to)
        return histories, torch.from_numpy(targets_W[histories.order])

    return make
