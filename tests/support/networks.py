"""Random catalogues, windows and models, small enough for slow references."""

import itertools
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pytest
import torch
from settings import some

from pipeline.backbones import build_backbone
from pipeline.backbones.causal import CausalBackbone
from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.t5 import T5
from pipeline.catalogue import Catalogue
from pipeline.packing.backbone import Backbone
from pipeline.packing.histories import Histories

SMALL: dict[str, Any] = {
    "d_model": 16,
    "heads": 3,
    "d_head": 8,
    "d_ff": 32,
    "dropout": 0.0,
    "relative_max_distance": 24,
}


class RandomCodes(Protocol):
    """The fixture `random_codes`."""

    def __call__(self, items: int, widths: tuple[int, ...], seed: int = 0) -> npt.NDArray[np.int64]: ...


class RandomWindows(Protocol):
    """The fixture `random_windows`."""

    def __call__(
        self, count: int, items: int, longest: int = 9, seed: int = 0
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]: ...


class RandomTimes(Protocol):
    """The fixture `random_times`."""

    def __call__(self, offsets: npt.NDArray[np.int64], seed: int = 0) -> npt.NDArray[np.int64]: ...


class MakeModel(Protocol):
    """The fixture `make_model`."""

    def __call__(self, items: int = 60, widths: tuple[int, ...] = (7, 6, 5, 3), seed: int = 0, **config: Any) -> T5: ...


class MakeCausal(Protocol):
    """The fixture `make_causal`."""

    def __call__(
        self,
        name: Literal["decoder", "hstu", "sasrec", "gr"],
        items: int = 60,
        widths: tuple[int, ...] = (7, 6, 5, 3),
        seed: int = 0,
        vectors_only: bool = False,
        action_sizes: tuple[int, ...] = (),
        **config: Any,
    ) -> CausalBackbone[Any]: ...


class MakeBatch(Protocol):
    """The fixture `make_batch`."""

    def __call__(
        self,
        model: Backbone,
        count: int = 12,
        longest: int = 9,
        seed: int = 0,
        pad_to: int = 0,
        all_targets: bool = False,
    ) -> tuple[Histories, torch.Tensor]: ...


def _random_codes(items: int, widths: tuple[int, ...], seed: int = 0) -> npt.NDArray[np.int64]:
    """`items` distinct Semantic IDs in no order, int64 [items, levels]."""
    rng = np.random.default_rng(seed)
    codes = np.unique(rng.integers(0, widths, (4 * items, len(widths))), axis=0)
    return rng.permutation(codes)[:items]


def _random_windows(
    count: int, items: int, longest: int = 9, seed: int = 0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(items of all windows, offsets, target of each window); lengths from 1 on, several of them equal."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], rng.integers(1, longest + 1, count).cumsum()])
    return rng.integers(0, items, offsets[-1]), offsets, rng.integers(0, items, count)


def catalogue_of_items(items: int, seed: int = 0, content: bool = True) -> Catalogue:
    """Items by their index; a fifth is unknown to training. Content vectors have 5 columns and length 1."""
    rng = np.random.default_rng(seed)
    content_IC = rng.normal(size=(items, 5)).astype(np.float32)
    content_IC /= np.linalg.norm(content_IC, axis=1, keepdims=True)
    return Catalogue(
        np.arange(items)[:, None],
        (items,),
        digit=False,
        content_IC=content_IC if content else None,
        trained_I=rng.random(items) < 0.8,
    )


@pytest.fixture
def random_codes() -> RandomCodes:
    return _random_codes


@pytest.fixture
def random_windows() -> RandomWindows:
    return _random_windows


@pytest.fixture
def make_model() -> MakeModel:
    def make(items: int = 60, widths: tuple[int, ...] = (7, 6, 5, 3), seed: int = 0, **config: Any) -> T5:
        """A small T5 in evaluation mode, whose biases are large enough to matter."""
        torch.manual_seed(seed)
        model = build_backbone(
            some(BackboneConfig, **SMALL | config), Catalogue(_random_codes(items, widths, seed), widths)
        )
        assert isinstance(model, T5)
        with torch.no_grad():
            model.encoder_bias.weight.normal_()
            model.decoder_bias.weight.normal_()
        return model.eval()

    return make


@pytest.fixture
def make_causal() -> MakeCausal:
    def make(
        name: Literal["decoder", "hstu", "sasrec", "gr"],
        items: int = 60,
        widths: tuple[int, ...] = (7, 6, 5, 3),
        seed: int = 0,
        vectors_only: bool = False,
        action_sizes: tuple[int, ...] = (),
        **config: Any,
    ) -> CausalBackbone[Any]:
        """A small causal backbone in evaluation mode, all of whose weights are large enough to matter."""
        torch.manual_seed(seed)
        catalogue = Catalogue(_random_codes(items, widths, seed), widths)
        if name in ("sasrec", "gr"):
            catalogue = catalogue_of_items(items, seed)
        catalogue.action_sizes = action_sizes
        model = build_backbone(some(BackboneConfig, name=name, **SMALL | config), catalogue, vectors_only)
        assert isinstance(model, CausalBackbone)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.3)
        return model.eval()

    return make


def _random_times(offsets: npt.NDArray[np.int64], seed: int = 0) -> npt.NDArray[np.int64]:
    """Seconds of the items of windows, ascending within each; two neighbours lie from no time to years apart."""
    rng = np.random.default_rng(seed)
    steps = np.exp(rng.uniform(-2, 19, offsets[-1])).astype(np.int64)
    return np.concatenate([10**9 + steps[a:b].cumsum() for a, b in itertools.pairwise(offsets)])


@pytest.fixture
def random_times() -> RandomTimes:
    return _random_times


@pytest.fixture
def make_batch() -> MakeBatch:
    def make(
        model: Backbone, count: int = 12, longest: int = 9, seed: int = 0, pad_to: int = 0, all_targets: bool = False
    ) -> tuple[Histories, torch.Tensor]:
        """(histories, targets in packed order)."""
        items_N, offsets, targets_W = _random_windows(count, model.catalogue.items, longest, seed)
        sizes = model.action_sizes
        histories = Histories.pack(
            items_N,
            offsets,
            pad_to=pad_to,
            times_N=_random_times(offsets, seed),
            actions_NA=np.random.default_rng(seed).integers(0, sizes, (len(items_N), len(sizes))) if sizes else None,
            all_targets=all_targets,
        )
        return histories, torch.from_numpy(targets_W[histories.order])

    return make
