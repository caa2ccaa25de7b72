"""A small catalogue whose items share codes, intrr's network over it, and what its tests have in common."""

from typing import Any, Literal

import intrr_reference as reference
import numpy as np
import numpy.typing as npt
import torch
from settings import some
from typed import present

from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.t5 import T5
from pipeline.catalogue import Catalogue
from pipeline.packing.batch import Batch
from pipeline.packing.histories import Histories
from pipeline.strategies.base import Sampler, Strategy
from pipeline.strategies.intrr.config import IntrrConfig
from pipeline.strategies.intrr.model import RecursiveModel
from pipeline.strategies.intrr.strategy import RecursiveNetwork
from pipeline.training.collate import Collator
from pipeline.training.steps import Step
from pipeline.training.windows import Windows

ITEMS, DIGIT = 40, 9


def catalogue(content: bool = False) -> Catalogue:
    """40 items in 12 buckets, told apart by a digit, with content vectors if wanted."""
    codes_IL = np.random.default_rng(0).integers(0, (4, 3), (ITEMS, 2))
    digits_I = [int((codes_IL[:item] == codes_IL[item]).all(1).sum()) for item in range(ITEMS)]
    vectors_IC = np.random.default_rng(5).normal(size=(ITEMS, 6)).astype(np.float32)
    content_IC = vectors_IC / np.linalg.norm(vectors_IC, axis=1, keepdims=True) if content else None
    return Catalogue(np.column_stack([codes_IL, digits_I]), (4, 3, max(digits_I) + 1), content_IC=content_IC)


def make(
    seed: int = 0, backbone: Literal["t5", "decoder", "hstu"] = "t5", **settings: Any
) -> tuple[Strategy, RecursiveModel]:
    torch.manual_seed(seed)
    network = RecursiveNetwork(some(IntrrConfig, **{"hidden": 12, "digit_width": DIGIT, **settings}))
    config = some(
        BackboneConfig,
        name=backbone,
        encoder_layers=2,
        decoder_layers=2,
        d_model=8,
        heads=2,
        d_head=4,
        d_ff=16,
        dropout=0.0,
        recency_items=3,
        time_bias=False,
    )
    model = network.build(config, catalogue(content=network.config.uid_content)).double()
    assert isinstance(model, RecursiveModel)
    with torch.no_grad():  # large enough to matter
        recency = [present(model.backbone.recency).weight] if isinstance(model.backbone, T5) else []
        for parameter in (*model.ran.codebooks.parameters(), *recency):
            parameter.normal_()
    return Strategy(network, Sampler()), model


def step_of(items_N: npt.NDArray[np.int64], windows: int = 8, longest: int = 5) -> Step:
    rng = np.random.default_rng(1)
    ends_W = rng.integers(longest + 1, len(items_N), windows)
    weights_W = rng.random(windows).astype(np.float32) * 2
    return Step(0, 0, Windows(ends_W - rng.integers(1, longest + 1, windows), ends_W), weights_W)


def batches_of(
    strategy: Strategy, model: RecursiveModel, parts: int = 1, all_targets: bool = False
) -> tuple[Step, list[Batch], list[tuple[list[int], int]]]:
    """(the step, its parts as batches, its windows as (history, target))."""
    items_N = np.random.default_rng(2).integers(ITEMS, size=60)
    step = step_of(items_N)
    collate = Collator(items_N, model.catalogue.codes_IL, all_targets=all_targets, weigh_items=strategy.network.items)
    rows = np.array_split(np.arange(len(step.windows)), parts)
    batches = [collate(step, own, item_counts=collate.count_items(step)) for own in rows]
    windows = [
        (items_N[a:b].tolist(), int(items_N[b]))
        for a, b in zip(step.windows.starts_W, step.windows.ends_W, strict=True)
    ]
    return step, batches, windows


def bucket_mates() -> tuple[int, int]:
    codes_IL = catalogue().codes_IL
    second = int(codes_IL[:, -1].argmax())
    return int((codes_IL[:, :-1] == codes_IL[second, :-1]).all(1).nonzero()[0]), second


def short_histories(windows: int = 4) -> list[list[int]]:
    items_N = np.random.default_rng(3).integers(ITEMS, size=20)
    return [items_N[i : i + 1 + i % 3].tolist() for i in range(windows)]


def pack(histories: list[list[int]]) -> Histories:
    return Histories.pack(np.concatenate(histories), np.cumsum([0, *map(len, histories)]))


def by_uid(model: RecursiveModel, state_d: torch.Tensor) -> torch.Tensor:
    """The bucket's probability, shared among its items by state x vector."""
    codes_IL, scores = model.catalogue.codes_IL, []
    products_I = torch.stack([reference.item(model, number)[0] @ state_d for number in range(ITEMS)])
    for number in range(ITEMS):
        bucket_I = (codes_IL[:, :-1] == codes_IL[number, :-1]).all(1)
        distributions = reference.walk(model.ran, state_d, codes_IL[number].tolist())[0]
        known = sum(p[code].log() for p, code in zip(distributions[:-1], codes_IL[number], strict=False))
        scores.append(known + products_I[number] - products_I[bucket_I].logsumexp(0))
    return torch.stack(scores)
