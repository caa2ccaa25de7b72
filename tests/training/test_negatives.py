"""The softmax over drawn items: its normaliser and its gradient are, in the mean, those of the whole catalogue."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import SMALL, catalogue_of_items
from settings import some

from pipeline.backbones import build_backbone
from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.sasrec import SasRec
from pipeline.packing.batch import Batch
from pipeline.packing.histories import Histories
from pipeline.training.negatives import Negatives

ITEMS = 40


@pytest.fixture
def batch() -> Batch:
    rng = np.random.default_rng(3)
    histories = Histories.pack(rng.integers(0, ITEMS, 20), np.array([0, 4, 9, 14, 20]))
    targets_W = torch.tensor([1, 7, 7, 30])
    return Batch(histories=histories, targets_W=targets_W, codes_WL=targets_W[:, None], weights_W=torch.ones(4))


@pytest.fixture
def counts_I() -> np.ndarray:
    """Few items have most interactions, and some have none."""
    return np.maximum(60 // np.arange(1, ITEMS + 1) - 2, 0)


@pytest.fixture
def model() -> SasRec:
    torch.manual_seed(0)
    made = build_backbone(some(BackboneConfig, name="sasrec", **SMALL), catalogue_of_items(ITEMS)).eval()
    assert isinstance(made, SasRec)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.2)
    return made.double()


def test_items_are_drawn_as_often_as_is_corrected_for(batch: Batch, counts_I: np.ndarray) -> None:
    negatives = Negatives(counts_I, 2000, seed=1)
    drawn_I = np.zeros(ITEMS)
    for epoch in range(50):
        sampled = negatives.sampled(batch, epoch, 0, 0).sampled
        assert sampled is not None
        assert torch.equal(sampled.log_expected_M, torch.from_numpy(negatives.log_expected_I)[sampled.items_M])
        drawn_I += np.bincount(sampled.items_M.numpy(), minlength=ITEMS)
    np.testing.assert_allclose(drawn_I / 50, np.exp(negatives.log_expected_I), rtol=0.12)
    assert np.exp(negatives.log_expected_I).sum() == pytest.approx(2000, rel=1e-5)


def test_draws_follow_from_seed_epoch_position_and_part(batch: Batch, counts_I: np.ndarray) -> None:
    def items(seed: int, *where: int) -> list[int]:
        sampled = Negatives(counts_I, 64, seed).sampled(batch, *where).sampled
        assert sampled is not None
        return sampled.items_M.tolist()

    assert items(1, 2, 3, 0) == items(1, 2, 3, 0)
    others = ((1, 2, 3, 0), (2, 2, 3, 0), (1, 3, 3, 0), (1, 2, 4, 0), (1, 2, 3, 1))
    assert len({tuple(items(*words)) for words in others}) == 5


def test_the_normaliser_is_that_of_the_catalogue_in_the_mean(model: SasRec, batch: Batch, counts_I: np.ndarray) -> None:
    (logits_WI,) = model(batch.histories, batch.targets_W)
    negatives = Negatives(counts_I, 32, seed=1)
    total_W = torch.zeros(4, dtype=torch.float64)
    for epoch in range(800):
        drawn = negatives.sampled(batch, epoch, 0, 0)
        assert drawn.codes_WL.tolist() == [[0]] * 4
        (logits_WC,) = model(drawn.histories, drawn.targets_W, drawn.sampled)
        torch.testing.assert_close(logits_WC[:, 0], logits_WI.gather(1, batch.codes_WL)[:, 0])
        total_W += logits_WC.detach().exp().sum(1)
    torch.testing.assert_close(total_W / 800, logits_WI.detach().exp().sum(1), rtol=0.05, atol=0)


def test_the_gradient_comes_near_that_of_the_whole_softmax(model: SasRec, batch: Batch, counts_I: np.ndarray) -> None:
    def gradients(drawn: Batch) -> list[torch.Tensor]:
        sampled = () if drawn.sampled is None else (drawn.sampled,)
        (logits_WC,) = model(drawn.histories, drawn.targets_W, *sampled)
        loss = F.cross_entropy(logits_WC, drawn.codes_WL[:, 0])
        return list(torch.autograd.grad(loss, list(model.parameters())))

    whole = gradients(batch)
    negatives = Negatives(counts_I, 512, seed=1)
    sums = [torch.zeros_like(gradient) for gradient in whole]
    for epoch in range(100):
        for total, gradient in zip(sums, gradients(negatives.sampled(batch, epoch, 0, 0)), strict=True):
            total += gradient / 100
    for total, gradient in zip(sums, whole, strict=True):
        assert (total - gradient).norm() < 0.05 * gradient.norm()
