"""The causal backbones through the train stage: what is learned, and what is counted where every item is a target."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_world import TinyWorld, make_params

from pipeline.artifacts import read_json
from pipeline.catalogue import Catalogue
from pipeline.decoding.ranking import rank_targets
from pipeline.distributed import World
from pipeline.generator import load_generator
from pipeline.manifest import unsealed
from pipeline.packing.histories import Histories
from pipeline.strategies.base import Network, Sampler, Strategy
from pipeline.training.collate import Collator
from pipeline.training.loader import BatchLoader
from pipeline.training.windows import Epochs

BACKBONES = [{"name": "decoder"}, {"name": "sasrec"}, {"name": "hstu"}, {"name": "hstu", "hstu_attention": "softplus"}]
FAST: dict[str, Any] = {"learning_rate": 0.02, "max_windows": 2500, "validate_every": 20}


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda backbone: "-".join(backbone.values()))
def test_a_backbone_learns_is_saved_and_ranks_as_on_its_best_validation(
    world: TinyWorld, backbone: dict[str, str]
) -> None:
    # A step of `sasrec` has four times the windows: an item is one position, not three codes and a separator.
    tokens = {"batch_tokens": 100} if backbone["name"] == "sasrec" else {}
    timings = world.train(make_params(backbone=backbone, train=FAST | tokens))
    history = pd.read_csv(world.folder / "run/reports/history.csv")
    assert history["train_loss"].iloc[-1] < 0.75 * history["train_loss"].iloc[0]
    assert history["recall_at_10"].max() > 0.5  # by chance: 0.25
    loaded = load_generator(world.folder / "run/generator")
    ranking = rank_targets(loaded.model, loaded.catalogue, world.splits, "valid", beam=10)
    found = np.mean((ranking.ranks_U > 0) & (ranking.ranks_U <= 10))
    assert found == pytest.approx(history["recall_at_10"].max(), abs=1e-6)
    assert "samples_trained" not in timings, "it would be windows_trained again"
    assert timings["keep_rate"] == 1


@pytest.mark.parametrize("name", ["decoder", "hstu", "sasrec"])
def test_with_every_item_as_a_target_samples_are_the_items_of_the_histories(world: TinyWorld, name: str) -> None:
    params = make_params(
        backbone={"name": name}, train={**FAST, "targets": "all", "windows": "sequences", "max_windows": 1000}
    )
    timings = world.train(params)
    per_item = 1 if name == "sasrec" else world.sids.codes_IL.shape[1] + params.backbone.separators
    assert timings["samples_trained"] * per_item == timings["tokens_trained"]
    assert timings["samples_trained"] > 3 * timings["windows_trained"]
    assert timings["samples_per_second"] == pytest.approx(
        timings["windows_per_second"] * timings["samples_trained"] / timings["windows_trained"]
    )
    path = world.folder / "run/reports/timings.json"
    assert unsealed(path, read_json(path), "train") == timings
    history = pd.read_csv(world.folder / "run/reports/history.csv")
    assert history["train_loss"].iloc[0] < 2 * np.log(world.sids.widths).sum()  # per sample, not per window
    assert history["recall_at_10"].max() > 0.4  # by chance: 0.25
    world.train(params, "again")
    assert world.written() == world.written("again")


def test_the_loss_with_all_targets_is_the_sum_over_the_prefixes_of_each_window(world: TinyWorld) -> None:
    params = make_params(backbone={"name": "hstu", "dropout": 0.0}, train={"targets": "all"})
    codes_IL = torch.from_numpy(world.sids.codes_IL).long()
    strategy = Strategy(Network(), Sampler())
    torch.manual_seed(0)
    model = strategy.network.build(params.backbone, Catalogue(world.sids.codes_IL, world.sids.widths)).double()
    items_N, times_N = np.asarray(world.splits.items_N), np.asarray(world.splits.timestamps_N)
    epochs = Epochs(world.splits, "prefixes", 0)
    collator = Collator(items_N, codes_IL, times_M=times_N, longest=world.splits.max_history, all_targets=True)
    loader = BatchLoader(epochs, collator, World(), budget=params.train.batch_tokens, input_tokens_per_item=4)
    step, (batch,) = next(iter(loader.rest_of_epoch(0, 0, None)))
    expected = torch.zeros((), dtype=torch.float64)
    samples = 0
    for start, end in zip(step.windows.starts_W, step.windows.ends_W, strict=True):
        for target in range(start + 1, end + 1):
            own = Histories.pack(items_N[start:target], np.array([0, target - start]), times_N=times_N[start:target])
            target_1 = torch.tensor([int(items_N[target])])
            for level, logits_1V in enumerate(model(own, target_1)):
                expected = expected - logits_1V[0].log_softmax(-1)[codes_IL[target_1, level]].sum()
            samples += 1
    assert collator.samples(step) == samples
    batch = replace(batch, weights_W=batch.weights_W.double())
    assert strategy.loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-5)
