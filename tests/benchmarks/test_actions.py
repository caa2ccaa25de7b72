"""The padded HSTU that benchmarks/actions.py measures computes the loss of the backbone `gr`, and its gradients."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import actions
from actions_models import PaddedHstu

from pipeline.backbones import build_backbone
from pipeline.catalogue import Catalogue
from pipeline.strategies.base import Network, Sampler, Strategy


def test_the_padded_network_has_the_loss_and_the_gradients_of_gr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "LONGEST", 30)
    monkeypatch.setattr(actions, "BATCHES", 1)
    config = replace(actions.config_of("gr-large"), decoder_layers=2, dropout=0.0)
    names = np.arange(actions.ITEMS)[:, None]
    catalogue = Catalogue(names, (actions.ITEMS,), digit=False, trained_I=np.ones(actions.ITEMS, bool))
    ours = build_backbone(config, catalogue).eval()
    theirs = PaddedHstu(config, actions.ITEMS, 30).eval()
    weights, names_of_theirs = theirs.state_dict(), {}
    for name, value in ours.state_dict().items():
        value.normal_(std=0.3) if value.is_floating_point() else None
        match = name.replace("blocks.", "layers.").replace("bias.weight", "position_bias")
        if match in weights:
            weights[match] = value
            names_of_theirs[name] = match
    theirs.load_state_dict(weights)
    (batch,), (items,) = actions.batches_of(actions.Users(7), 7, torch.device("cpu"))
    expected = Strategy(Network(), Sampler()).loss(ours, batch) / items
    found = theirs(*actions._padded(batch, 7))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.autograd.backward([found, expected])
    gradients = {name: value.grad for name, value in theirs.named_parameters()}
    assert len(gradients) == sum(1 for _ in ours.parameters())
    for name, value in ours.named_parameters():
        torch.testing.assert_close(gradients[names_of_theirs[name]], value.grad, rtol=2e-3, atol=2e-4)
