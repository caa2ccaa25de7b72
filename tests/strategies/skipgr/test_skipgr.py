"""What skipgr's decisions do to the loss, its gradient and what is computed."""

import dataclasses
from typing import Any, Literal

import numpy as np
import pytest
import skipgr_reference as reference
import torch
from settings import some
from skipgr_world import ITEMS, LEVELS, WIDTHS, plan, random_scores, scored
from typed import gradient_of, present

from pipeline.backbones.config import BackboneConfig
from pipeline.catalogue import Catalogue
from pipeline.packing.batch import Batch
from pipeline.packing.histories import Histories
from pipeline.packing.shape import Shape
from pipeline.strategies.base import Network, NetworkTraits, Sampler, Strategy
from pipeline.strategies.rastp.config import RastpConfig
from pipeline.strategies.rastp.strategy import PrunedNetwork
from pipeline.strategies.registry import choose_strategies
from pipeline.strategies.skipgr.config import SkipgrConfig
from pipeline.strategies.skipgr.rules import UNSCORED
from pipeline.strategies.skipgr.strategy import SkippingSampler
from pipeline.training.collate import Collator
from pipeline.training.steps import Step
from pipeline.training.windows import Windows


class Toy:
    """A small network, its windows, and a strategy around it."""

    def __init__(self, config: SkipgrConfig, network: Network | None = None, **options: Any) -> None:
        rng = np.random.default_rng(0)
        codes = np.stack(np.unravel_index(rng.permutation(np.prod(WIDTHS))[:ITEMS], WIDTHS), 1)
        self.catalogue, self.plan = Catalogue(codes, WIDTHS), plan(**options)
        self.network = network or Network()
        torch.manual_seed(0)
        small = some(
            BackboneConfig, encoder_layers=2, decoder_layers=1, d_model=16, heads=2, d_head=8, d_ff=32, dropout=0.0
        )
        self.model = self.network.build(small, self.catalogue).train()
        self.sampler = SkippingSampler(config, self.plan, NetworkTraits.of(self.network, small, self.catalogue))
        self.strategy = Strategy(self.network, self.sampler)
        self.ends_W = scored(self.plan)
        first = self.plan.first_U[np.searchsorted(self.plan.first_U, self.ends_W, side="right") - 1]
        self.starts_W = np.maximum(first, self.ends_W - 6)

    def score(self, scores_NL: np.ndarray) -> None:
        self.sampler.store.load(torch.from_numpy(scores_NL))

    def batch(self, epoch: int, shape: Shape | None = None) -> tuple[Batch, Step]:
        """All windows of an epoch that are not skipped, as one batch, and their step."""
        weigh = self.sampler.begin_epoch(epoch)
        weights_W = weigh(self.starts_W, self.ends_W)
        kept_W = np.flatnonzero(weights_W)
        windows = Windows(self.starts_W[kept_W], self.ends_W[kept_W])
        selected = self.sampler.select(epoch, windows.starts_W, windows.ends_W)
        step = Step(epoch, 0, windows, weights_W[kept_W], selected)
        rows_W = np.arange(len(kept_W))
        return Collator(self.plan.items_M, self.catalogue.codes_IL, longest=6)(step, rows_W, shape=shape), step

    def gradient(self, epoch: int) -> torch.Tensor:
        batch, step = self.batch(epoch)
        self.model.zero_grad()
        loss = self.strategy.loss(self.model, batch)
        (loss / self.sampler.divisor(len(step.windows), step.selected)).backward()
        return torch.cat([gradient_of(parameter).flatten() for parameter in self.model.parameters()])


class TestLoss:
    def test_the_scores_are_the_entropies_of_the_step_in_nats(self) -> None:
        toy = Toy(some(SkipgrConfig))
        batch, _ = toy.batch(0)
        toy.strategy.loss(toy.model, batch)
        scores_NL = toy.sampler.store.merge()
        for level, logits_WV in enumerate(toy.model(batch.histories, batch.targets_W)):
            for slot, probabilities in zip(
                present(batch.slots_W).tolist(), logits_WV.double().softmax(1).tolist(), strict=True
            ):
                assert scores_NL[slot, level] == pytest.approx(reference.entropy(probabilities), abs=1e-5)
        assert set(np.flatnonzero(scores_NL[:, 0] != UNSCORED)) == set(scored(toy.plan))

    def test_they_are_float32_from_bfloat16_logits(self) -> None:
        toy = Toy(some(SkipgrConfig))
        with torch.autocast("cpu", torch.bfloat16):
            toy.strategy.loss(toy.model, toy.batch(0)[0])
        scores_M = toy.sampler.store.merge()[scored(toy.plan), 0]
        assert scores_M.dtype == np.float32
        assert len(np.unique(scores_M)) > 0.9 * len(scores_M)

    def test_the_loss_is_the_weighted_sum_over_tokens_that_are_not_skipped(self) -> None:
        toy = Toy(some(SkipgrConfig, token_ratio=0.3))
        toy.score(random_scores(toy.plan))
        batch, step = toy.batch(1)
        ours = toy.strategy.loss(toy.model, batch)
        skip_ML, expected = toy.sampler.decisions.skip_ML, 0.0
        weight_of = dict(zip(step.windows.ends_W.tolist(), step.weights_W.tolist(), strict=True))
        assert batch.histories.decoder_positions is not None
        plain = dataclasses.replace(batch.histories, decoder_positions=None)
        for level, logits_WV in enumerate(toy.model(plain, batch.targets_W)):
            for row, end in enumerate(present(batch.slots_W).tolist()):
                if not skip_ML[end, level]:
                    logp_V = logits_WV[row].double().log_softmax(0)
                    expected -= weight_of[end] * float(logp_V[batch.codes_WL[row, level]].detach())
        assert float(ours.detach()) == pytest.approx(expected, rel=1e-5)
        assert not any(skip_ML[end].all() for end in present(batch.slots_W).tolist())

    def test_the_sequence_weighted_gradient_is_unbiased(self) -> None:
        """The mean over many draws, with frozen scores, is within its standard error of the full gradient."""
        toy = Toy(some(SkipgrConfig, token_ratio=0.0, sequence_ratio=0.5))
        scores_NL, draws = random_scores(toy.plan), []
        full = toy.gradient(0)
        for seed in range(150):
            toy.sampler.rules.plan = dataclasses.replace(toy.plan, seed=seed)
            toy.score(scores_NL)
            toy.sampler.epoch = -1
            draws.append(toy.gradient(1))
        drawn = torch.stack(draws)
        directions = torch.nn.functional.normalize(
            torch.cat([full[None], torch.randn(40, len(full), generator=torch.Generator().manual_seed(0))]), dim=1
        )
        projected, wanted = drawn @ directions.T, directions @ full
        errors = (projected.mean(0) - wanted) / (projected.std(0) / len(draws) ** 0.5)
        assert errors.abs().max() < 4
        assert errors.square().mean() < 2
        assert (projected.std(0) > 0).all()

    @pytest.mark.parametrize(
        ("apply_to", "distance", "cosine"), [("loss", 0.154, 0.995), ("input", 0.094, 0.996), ("both", 0.175, 0.991)]
    )
    def test_skipped_tokens_bias_the_gradient_by_as_much_as_the_documentation_says(
        self, apply_to: Literal["loss", "input", "both"], distance: float, cosine: float
    ) -> None:
        toy = Toy(some(SkipgrConfig, token_ratio=0.1, sequence_ratio=0.0, apply_to=apply_to))
        full = toy.gradient(0)
        toy.score(random_scores(toy.plan))
        skipped = toy.gradient(1)
        assert float((skipped - full).norm() / full.norm()) == pytest.approx(distance, abs=0.01)
        assert float(torch.cosine_similarity(skipped, full, dim=0)) == pytest.approx(cosine, abs=0.002)

    def test_kept_divides_by_the_items_that_are_left(self) -> None:
        toy = Toy(some(SkipgrConfig, token_ratio=0.3, normalise="kept"))
        toy.score(random_scores(toy.plan))
        _, step = toy.batch(1)
        kept = sum(not skip for end in step.windows.ends_W for skip in toy.sampler.decisions.skip_ML[end])
        assert toy.sampler.divisor(len(step.windows), step.selected) == pytest.approx(kept / 3)
        nominal = Toy(some(SkipgrConfig))
        assert nominal.sampler.divisor(7, nominal.batch(0)[1].selected) == 16

    def test_windows_that_only_fill_a_batch_leave_no_score(self) -> None:
        toy = Toy(some(SkipgrConfig))
        batch, _ = toy.batch(0)
        weights_W = batch.weights_W.clone()
        weights_W[::2] = 0
        toy.strategy.loss(toy.model, dataclasses.replace(batch, weights_W=weights_W))
        found = toy.sampler.store.merge()[:, 0] != UNSCORED
        assert set(np.flatnonzero(found)) == set(present(batch.slots_W)[1::2].tolist())

    @pytest.mark.parametrize("unit_", ["token", "item"])
    def test_filling_a_batch_to_its_shape_changes_neither_loss_nor_scores(
        self, unit_: Literal["token", "item"]
    ) -> None:
        toy = Toy(some(SkipgrConfig, token_ratio=0.4, apply_to="both", input_unit=unit_))
        found = []
        for shape in (None, Shape(400, 1600)):
            toy.score(random_scores(toy.plan))
            toy.sampler.epoch = -1
            batch, _ = toy.batch(1, shape)
            loss = toy.strategy.loss(toy.model, batch)
            found.append((float(loss.detach()), toy.sampler.store.merge(), len(batch.targets_W)))
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
        np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-5)
        assert found[0][2] < found[1][2] == 400

    def test_validation_leaves_no_score_and_is_the_loss_of_full(self) -> None:
        toy = Toy(some(SkipgrConfig))
        step = Step(0, 0, Windows(toy.starts_W, toy.ends_W), np.ones(len(toy.ends_W), np.float32))
        batch = Collator(toy.plan.items_M, toy.catalogue.codes_IL)(step, np.arange(len(toy.ends_W)))
        assert torch.equal(toy.strategy.loss(toy.model, batch), Strategy(Network(), Sampler()).loss(toy.model, batch))
        assert (toy.sampler.store.merge() == UNSCORED).all()


class TestWhatIsComputed:
    def test_targets_lose_the_decoder_positions_of_their_last_skipped_tokens(self) -> None:
        toy = Toy(some(SkipgrConfig, token_ratio=0.4, sequence_ratio=0.0))
        toy.score(random_scores(toy.plan))
        _, step = toy.batch(1)
        for end, length in zip(step.windows.ends_W, present(present(step.selected).decoded_W), strict=True):
            skip = toy.sampler.decisions.skip_ML[end].tolist()
            while skip and skip[-1]:
                skip.pop()
            assert length == len(skip) > 0

    def test_they_are_scored_again_every_few_epochs_outside_of_the_loss(self) -> None:
        toy = Toy(some(SkipgrConfig, token_ratio=0.4, sequence_ratio=0.0, rescore_every=3))
        toy.score(random_scores(toy.plan))
        before = toy.sampler.store.merge()
        for epoch in (1, 2, 3):
            batch, _ = toy.batch(epoch)
            gone = toy.sampler.decisions.skip_ML.copy()
            toy.score(before)
            toy.strategy.loss(toy.model, batch)
            fresh_NL = (toy.sampler.store.merge() != before)[scored(toy.plan)]
            suffix_ML = gone[scored(toy.plan)][:, ::-1].cumprod(1)[:, ::-1].astype(bool)
            assert (fresh_NL == (~suffix_ML | (epoch == 3))).all()
            if epoch == 3:
                assert batch.histories.decoder_positions is None
                assert len(batch.targets_W) == len(scored(toy.plan))
                assert (present(batch.counted_WL).numpy() == ~gone[present(batch.slots_W).numpy()]).all()
            toy.score(before)

    @pytest.mark.parametrize("unit_", ["token", "item"])
    def test_histories_lose_their_skipped_tokens_but_never_everything(self, unit_: Literal["token", "item"]) -> None:
        toy = Toy(some(SkipgrConfig, token_ratio=0.6, sequence_ratio=0.0, apply_to="input", input_unit=unit_))
        toy.score(random_scores(toy.plan))
        toy.starts_W[::2] = toy.ends_W[::2] - 1
        _, step = toy.batch(1)
        assert len(step.windows) == len(scored(toy.plan))
        selected = present(step.selected)
        assert selected.counted_WL.all()
        index, emptied, tokens = 0, 0, 0
        for start, end in zip(step.windows.starts_W, step.windows.ends_W, strict=True):
            kept_NL = ~toy.sampler.decisions.skip_ML[start:end]
            if unit_ == "item":
                kept_NL = np.repeat(kept_NL.any(1, keepdims=True), 3, 1)
            if not kept_NL.any():
                kept_NL[-1], emptied = True, emptied + 1
            rows = slice(index, index + end - start)
            if unit_ == "item":
                assert (present(selected.stays_N)[rows] == kept_NL.all(1)).all()
            else:  # a separator stays with any token of its item
                expected_NS = np.concatenate([kept_NL, kept_NL.any(1, keepdims=True)], 1)
                assert (present(selected.tokens_NS)[rows] == expected_NS).all()
            index, tokens = index + end - start, tokens + int(kept_NL.sum() + kept_NL.any(1).sum())
        assert emptied > 0
        assert step.tokens(LEVELS + 1) == tokens
        assert step.items_W.min() > 0

    @pytest.mark.parametrize("apply_to", ["loss", "input", "both"])
    def test_apply_to_says_which_side(self, apply_to: Literal["loss", "input", "both"]) -> None:
        toy = Toy(some(SkipgrConfig, token_ratio=0.4, apply_to=apply_to))
        toy.score(random_scores(toy.plan))
        selected = present(toy.batch(1)[1].selected)
        assert (selected.tokens_NS is None) == (apply_to == "loss")
        assert selected.counted_WL.all() == (apply_to == "input")
        assert (selected.decoded_W is None) == (apply_to == "input")

    def test_with_every_window_of_a_target_only_the_longest_scores_it(self) -> None:
        toy = Toy(some(SkipgrConfig), one_per_target=False)
        first_U, max_history = toy.plan.first_U.tolist(), 6
        pairs = [
            (start, end)
            for end in toy.ends_W.tolist()
            for start in range(max(max(f for f in first_U if f < end), end - max_history), end)
        ]
        toy.sampler.begin_epoch(0)
        slots_W = toy.sampler.select(0, *np.array(pairs).T).slots_W
        writers = [pair for pair, slot in zip(pairs, slots_W, strict=True) if slot != toy.sampler.store.dummy_slot]
        assert writers == list(zip(toy.starts_W.tolist(), toy.ends_W.tolist(), strict=True))

    def test_frozen_scores_stay(self) -> None:
        toy = Toy(some(SkipgrConfig, rule="static_low_entropy"))
        toy.strategy.loss(toy.model, toy.batch(0)[0])
        before = toy.sampler.store.merge()
        toy.strategy.loss(toy.model, toy.batch(1)[0])
        assert (before[scored(toy.plan)] != UNSCORED).all()
        assert (toy.sampler.store.merge() == before).all()

    def test_the_rule_loss_goes_by_the_loss(self) -> None:
        toy = Toy(some(SkipgrConfig, rule="loss"))
        batch, _ = toy.batch(0)
        total = toy.strategy.loss(toy.model, batch)
        assert toy.sampler.store.merge()[scored(toy.plan)].sum() == pytest.approx(float(total.detach()), rel=1e-5)


class TestEveryItemATarget:
    @pytest.mark.parametrize("once", [True, False])
    def test_the_loss_and_the_scores_are_those_of_each_position(self, once: bool) -> None:
        """The loss of a causal backbone equals that of one target at a time."""
        toy = Toy(some(SkipgrConfig, token_ratio=0.3), all_targets=True, each_target_once=once)
        config = some(
            BackboneConfig, name="decoder", decoder_layers=1, d_model=16, heads=2, d_head=8, d_ff=32, dropout=0.0
        )
        toy.model = toy.network.build(config, toy.catalogue).train()
        toy.score(random_scores(toy.plan))
        weigh = toy.sampler.begin_epoch(1)
        ends_W = toy.plan.end_U[toy.plan.end_U - toy.plan.first_U > 1] - 1
        starts_W = np.maximum(toy.plan.first_U[toy.plan.end_U - toy.plan.first_U > 1], ends_W - 6)
        kept_W = np.flatnonzero(weigh(starts_W, ends_W))
        windows, weights_W = Windows(starts_W[kept_W], ends_W[kept_W]), weigh(starts_W, ends_W)[kept_W]
        step = Step(1, 0, windows, weights_W, toy.sampler.select(1, windows.starts_W, windows.ends_W))
        found = []
        for shape in (None, Shape(60, 260)):
            toy.score(random_scores(toy.plan))
            collate = Collator(toy.plan.items_M, toy.catalogue.codes_IL, longest=6, all_targets=True)
            batch = collate(step, np.arange(len(windows)), shape=shape)
            found.append((float(toy.strategy.loss(toy.model, batch).detach()), toy.sampler.store.merge()))
        before, expected, skip_ML = random_scores(toy.plan), 0.0, toy.sampler.decisions.skip_ML
        for start, end, weight in zip(windows.starts_W, windows.ends_W, weights_W, strict=True):
            for target in range(start + 1, end + 1):
                history = Histories.pack(toy.plan.items_M[start:target], np.array([0, target - start]))
                item = torch.tensor([int(toy.plan.items_M[target])])
                for level, logits_1V in enumerate(toy.model(history, item)):
                    logp_V = logits_1V[0].detach().double().log_softmax(0)
                    if not skip_ML[target, level]:
                        expected -= weight * float(logp_V[toy.catalogue.codes_IL[item, level]])
                    if once or target == end:
                        before[target, level] = reference.entropy(logp_V.exp().tolist())
        for loss, scores_NL in found:
            assert loss == pytest.approx(expected, rel=1e-4)
            np.testing.assert_allclose(scores_NL, before, atol=1e-4)


def test_a_checkpoint_holds_what_it_always_held() -> None:
    """A checkpoint of an earlier version, which also holds the state of a strategy inside, is resumed."""
    toy, other = Toy(some(SkipgrConfig)), Toy(some(SkipgrConfig))
    toy.batch(0)
    state = toy.sampler.state_dict()
    assert set(state) == {"scores", "snapshot", "pass_index", "seconds", "journal"}
    assert set(state["journal"]) == {"rows", "histograms", "by_level", "by_bin"}
    other.sampler.load_state_dict({**state, "seconds": 3.0, "inner": {}})
    assert other.sampler.epoch == 0
    assert other.sampler.report.figures()["bookkeeping_seconds"] == 3.0


def test_an_epoch_has_its_row_also_before_its_first_step_and_without_any() -> None:
    toy = Toy(some(SkipgrConfig, first_skipping_epoch=1))
    for epoch in range(3):
        toy.score(random_scores(toy.plan))
        toy.sampler.begin_epoch(epoch)
    rows = toy.sampler.report.tables(3, 4)["passes"]
    assert [row["pass"] for row in rows] == [0, 1, 2]
    assert [row["tokens_skipped"] != 0 for row in rows] == [False, True, True]
    assert [row["pass"] for row in toy.sampler.state_dict()["journal"]["rows"]] == [0, 1, 2]


class TestComposition:
    def test_ratios_of_0_are_the_strategy_inside(self) -> None:
        sections = {"skipgr": some(SkipgrConfig, token_ratio=0.0, sequence_ratio=0.0), "rastp": some(RastpConfig)}
        config = some(BackboneConfig, encoder_layers=2, d_model=16, heads=2, d_head=8, d_ff=32)
        catalogue = Toy(some(SkipgrConfig)).catalogue
        for text, network in (("skipgr", Network), ("rastp+skipgr", PrunedNetwork)):
            chosen = choose_strategies(text, sections)
            built = chosen.network()
            assert type(built) is network
            assert type(chosen.sampler(plan(), NetworkTraits.of(built, config, catalogue))) is Sampler

    def test_rastp_prunes_what_skipgr_left(self) -> None:
        config = some(SkipgrConfig, token_ratio=0.6, apply_to="both", input_unit="item")
        toy = Toy(config, PrunedNetwork(some(RastpConfig, after_layer=1, min_tokens=2)))
        toy.score(random_scores(toy.plan))
        batch, step = toy.batch(1)
        assert toy.model.pruner is not None
        assert batch.histories.lengths.sum() == step.items_W.sum() < step.windows.lengths_W.sum()
        kept_NS = toy.model.kept_tokens(batch.histories)
        assert len(kept_NS) == step.items_W.sum()
        codes_W = np.add.reduceat(
            kept_NS[:, :LEVELS].sum(1).numpy(), np.cumsum(batch.histories.lengths) - batch.histories.lengths
        )
        assert (codes_W == np.maximum(batch.histories.lengths, 2)).all()  # a third of 3 codes per item, at least 2
        toy.strategy.loss(toy.model, batch).backward()

    def test_a_strategy_of_one_token_per_item_loses_whole_items_only(self) -> None:
        class OneToken(Network):
            whole_items = True

        toy = Toy(some(SkipgrConfig, token_ratio=0.6, apply_to="both", sequence_ratio=0.0), OneToken())
        toy.score(random_scores(toy.plan))
        _, step = toy.batch(1)
        selected = present(step.selected)
        assert selected.counted_WL.all()
        assert selected.decoded_W is None
        assert selected.tokens_NS is None
        assert selected.lost > 0
        assert len(step.windows) < len(scored(toy.plan))
