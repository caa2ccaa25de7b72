"""What all networks share, whatever they are."""

from typing import Literal

import pytest
import torch
from networks import MakeBatch, MakeCausal, MakeModel
from settings import some
from torch import nn

from pipeline.backbones.t5 import T5
from pipeline.packing.backbone import Backbone, evaluating, require_eval
from pipeline.strategies.rastp.config import RastpConfig
from pipeline.strategies.rastp.strategy import PrunedNetwork


def test_a_network_that_lacks_a_part_cannot_be_built() -> None:
    class Half(Backbone):
        def compile_training(self) -> None:
            pass

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]  # on purpose


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_from_before_comes_back_also_after_an_error(training: bool) -> None:
    model = nn.Linear(1, 1).train(training)

    def fail() -> None:
        with evaluating(model):
            require_eval(model)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert model.training == training


def test_a_model_that_trains_is_not_decoded() -> None:
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        require_eval(nn.Linear(1, 1).train())


@pytest.mark.parametrize("name", ["decoder", "hstu", "sasrec", "gr"])
def test_where_nothing_prunes_all_tokens_are_kept_and_no_one_is_called(
    make_causal: MakeCausal, make_batch: MakeBatch, name: Literal["decoder", "hstu", "sasrec", "gr"]
) -> None:
    model = make_causal(name)
    calls: list[int] = []
    histories, _ = make_batch(model)
    kept_NS = model.kept_tokens(histories, lambda: calls.append(1))
    assert kept_NS.shape == (len(histories.items_N), len(model.token_names))
    assert kept_NS.all()
    assert not calls


def test_the_hook_is_called_once_between_the_blocks_that_see_all_tokens_and_the_others(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    plain = make_model(encoder_layers=3)
    model = PrunedNetwork(some(RastpConfig, after_layer=2, at_eval=False)).build(plain.config, plain.catalogue).eval()
    assert isinstance(model, T5)
    seen: list[str] = []
    for number, block in enumerate(model.encoder, start=1):
        block.attention.register_forward_hook(lambda *_, number=number: seen.append(f"block {number}"))
    histories, _ = make_batch(model)
    with torch.no_grad():
        kept_NS = model.kept_tokens(histories, lambda: seen.append("hook"))
    assert seen == ["block 1", "block 2", "hook", "block 3"]
    assert not kept_NS.all()
