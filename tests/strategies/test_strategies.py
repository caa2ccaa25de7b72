"""What a strategy may change, seen from the trainer, and that `full` changes nothing."""

from typing import Any

import numpy as np
import pytest
import torch
from settings import some
from torch import nn

from pipeline.backbones import build_backbone
from pipeline.backbones.config import BackboneConfig
from pipeline.catalogue import Catalogue
from pipeline.packing.batch import Batch
from pipeline.packing.histories import Histories
from pipeline.strategies.base import Network, Sampler, Strategy
from pipeline.strategies.registry import choose_strategies, settings_types, specs

WIDTHS = (5, 3, 2)


def small_batch(windows: int = 9) -> tuple[Catalogue, Batch]:
    rng = np.random.default_rng(0)
    catalogue = Catalogue(np.stack(np.unravel_index(np.arange(30), WIDTHS), 1), WIDTHS)
    lengths = rng.integers(1, 6, size=windows)
    histories = Histories.pack(rng.integers(30, size=lengths.sum()), np.concatenate([[0], np.cumsum(lengths)]))
    targets_W = torch.from_numpy(rng.integers(30, size=windows))
    weights_W = torch.from_numpy(rng.random(windows).astype(np.float32) * 3)
    codes_WL = catalogue.codes_IL[targets_W]
    return catalogue, Batch(histories=histories, targets_W=targets_W, codes_WL=codes_WL, weights_W=weights_W)


def small_model(catalogue: Catalogue) -> nn.Module:
    torch.manual_seed(0)
    config = some(
        BackboneConfig, encoder_layers=1, decoder_layers=1, d_model=16, heads=2, d_head=8, d_ff=32, dropout=0.0
    )
    return build_backbone(config, catalogue)


def test_the_loss_is_the_weighted_sum_of_negative_log_probabilities_over_levels_and_windows() -> None:
    catalogue, batch = small_batch()
    model = small_model(catalogue)
    expected = 0.0
    for level, logits_WV in enumerate(model(batch.histories, batch.targets_W)):
        probabilities_WV = torch.softmax(logits_WV.double(), dim=1)
        for row, target in enumerate(batch.targets_W):
            code = catalogue.codes_IL[target, level]
            expected -= float(batch.weights_W[row]) * float(probabilities_WV[row, code].log().detach())
    assert float(Strategy(Network(), Sampler()).loss(model, batch).detach()) == pytest.approx(expected, rel=1e-6)


def test_the_loss_is_float32_under_autocast() -> None:
    catalogue, batch = small_batch()
    model = small_model(catalogue)
    exact = Strategy(Network(), Sampler()).loss(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = Strategy(Network(), Sampler()).loss(model, batch)
    assert rounded.dtype == torch.float32
    assert float(rounded.detach()) == pytest.approx(float(exact.detach()), rel=0.02)
    assert not torch.equal(rounded, exact)


def test_full_changes_nothing() -> None:
    chosen = choose_strategies("full", {})
    unread: Any = None
    assert type(chosen.network()) is Network
    assert type(chosen.sampler(unread, unread)) is Sampler
    assert chosen.input_tokens_per_item(3, True) == 4


@pytest.mark.parametrize("name", specs())
def test_every_strategy_that_params_yaml_may_name_can_be_built(name: str) -> None:
    chosen = choose_strategies(name, {name: some(kind) for name, kind in settings_types().items()})
    assert isinstance(chosen.network(), Network)


@pytest.mark.parametrize("name", specs())
def test_one_token_per_item_is_said_alike_by_spec_and_network(name: str) -> None:
    chosen = choose_strategies(name, {name: some(kind) for name, kind in settings_types().items()})
    assert chosen.network().whole_items == (chosen.input_tokens_per_item(3, True) == 1)


@pytest.mark.parametrize(("text", "section"), [("rastp", None), ("rastp", [1]), (3, {}), (None, {})])
def test_what_is_no_strategy_or_no_section_is_a_value_error(
    text: Any, section: dict[str, Any] | list[int] | None
) -> None:
    with pytest.raises(ValueError, match=r"must be a mapping|is not known"):
        choose_strategies(text, {"rastp": section})


def test_what_composes_is_a_network_and_a_sampler() -> None:
    """Neither strategy wraps the other, so that neither can forget what the other changes."""
    for spec in specs().values():
        for other in spec.composes_with:
            assert bool(spec.network) != bool(specs()[other].network)
            assert bool(spec.sampler) != bool(specs()[other].sampler)
