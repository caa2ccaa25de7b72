"""What skipgr skips: its decisions and its store against the paper's equations, written slowly."""

import dataclasses
from typing import Literal

import numpy as np
import pytest
import skipgr_reference as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from settings import some
from skipgr_world import LEVELS, RULES, Rule, decide, plan, random_scores, scored

from pipeline.hashing import hasher, unit
from pipeline.strategies.skipgr.config import SkipgrConfig
from pipeline.strategies.skipgr.rules import SEQUENCE, TIE, UNSCORED, Rules, lowest, mean_without_rounding_up
from pipeline.strategies.skipgr.store import ScoreStore


class TestTokens:
    @pytest.mark.parametrize("ratios", [(0.1, 0.1), (0.05, 0.4), (0.0, 0.5)])
    @pytest.mark.parametrize("rule", ["low_entropy", "high_entropy"])
    def test_the_lowest_share_of_each_level_is_skipped_ties_by_the_hash(
        self, ratios: tuple[float, float], rule: Rule
    ) -> None:
        of = plan()
        rules, scores_NL, index_M = (
            Rules(some(SkipgrConfig, rule=rule, level_ratios=ratios), of, LEVELS),
            random_scores(of),
            scored(of),
        )
        decisions, sign = rules.decide(scores_NL, 2), -1 if rule == "high_entropy" else 1
        for level, ratio in enumerate(ratios):
            ties = rules._hash(2, TIE + level)(index_M.astype(np.uint64)).tolist()
            hits, threshold = reference.lowest_share((sign * scores_NL[index_M, level]).tolist(), ratio, ties)
            assert set(np.flatnonzero(decisions.skip_ML[:, level])) == {int(index_M[index]) for index in hits}
            assert decisions.thresholds_E[level] == sign * threshold

    @settings(max_examples=30)
    @given(st.integers(1, 200), st.floats(0, 0.99), st.integers(1, 5))
    def test_the_share_that_is_skipped_is_the_ratio_however_many_ties(
        self, count: int, ratio: float, kinds: int
    ) -> None:
        rng = np.random.default_rng(count)
        chosen, _ = lowest(rng.integers(0, kinds, count).astype(float), ratio, np.arange(count), hasher(count))
        assert abs(chosen.sum() - ratio * count) <= 0.5

    def test_other_ties_are_skipped_in_another_epoch_and_none_is_preferred(self) -> None:
        of = plan()
        scores_NL = random_scores(of)
        scores_NL[scored(of)] = 0.5
        times_N = sum(
            Rules(some(SkipgrConfig, token_ratio=0.3), of, LEVELS).decide(scores_NL, 1 + p % 11).skip_ML[:, 0]
            + Rules(some(SkipgrConfig, token_ratio=0.3), dataclasses.replace(of, seed=p), LEVELS)
            .decide(scores_NL, 1)
            .skip_ML[:, 0]
            for p in range(200)
        )
        assert times_N[scored(of)].min() > 40
        assert times_N[scored(of)].max() < 220

    def test_the_digit_goes_with_the_last_code_unless_it_is_scored_itself(self) -> None:
        decisions = decide(some(SkipgrConfig, token_ratio=0.3))
        assert (decisions.skip_ML[:, 2] == decisions.skip_ML[:, 1]).all()
        of = plan()
        for rules in (
            Rules(some(SkipgrConfig, token_ratio=0.3, include_digit=True), of, LEVELS),
            Rules(some(SkipgrConfig, token_ratio=0.3), of, LEVELS, digit=False),
        ):
            own = rules.decide(random_scores(of), 1)
            assert own.thresholds_E.shape == (3,)
            assert not (own.skip_ML[:, 2] == own.skip_ML[:, 1]).all()

    def test_what_has_no_score_is_kept(self) -> None:
        of = plan()
        decisions = decide(some(SkipgrConfig, token_ratio=0.9), of=of)
        others = np.setdiff1d(np.arange(len(of.items_M)), scored(of))
        assert set(of.first_U) <= set(others)
        assert not decisions.skip_ML[others].any()
        assert (decisions.sequence_weights_M[others] == 1).all()


class TestSequences:
    @pytest.mark.parametrize("unit_", ["user", "window"])
    @pytest.mark.parametrize("rule", ["low_entropy", "high_entropy", "loss"])
    def test_those_below_the_mean_are_skipped_by_a_draw_or_weigh_more(
        self, unit_: Literal["user", "window"], rule: Rule
    ) -> None:
        of = plan()
        config = some(SkipgrConfig, rule=rule, sequence_unit=unit_, sequence_ratio=0.4)
        rules, scores_NL = Rules(config, of, LEVELS), random_scores(of, ties=False)
        decisions, sign = rules.decide(scores_NL, 3), -1 if rule == "high_entropy" else 1
        first = of.first_U.tolist()
        means = reference.mean_scores(
            {int(n): (sign * scores_NL[n, :2].astype(float)).tolist() for n in scored(of)}, first, unit_
        )
        below = reference.below_mean(means)
        for position in scored(of).tolist():
            sequence = reference.sequence_of(position, first, unit_)
            draw = unit(rules._hash(3, SEQUENCE)(np.array([sequence], np.uint64)))[0]
            expected = (0 if draw < 0.4 else 1 / 0.6) if sequence in below else 1
            assert decisions.sequence_weights_M[position] == np.float32(expected)
        assert decisions.mean == pytest.approx(sign * sum(means.values()) / len(means))
        assert len(set(decisions.sequence_weights_M)) == 3

    def test_equal_scores_are_not_below_their_mean(self) -> None:
        """A plain float mean of equal numbers may exceed the numbers, and all would be skipped (InfoBatch#25)."""
        for value in np.random.default_rng(0).random(50):
            for count in (3, 7, 1000):
                assert mean_without_rounding_up(np.full(count, value)) == value

    def test_a_share_that_is_asked_for_is_realised(self) -> None:
        of = plan(users=4000)
        for unit_ in ("user", "window"):
            config = some(SkipgrConfig, sequence_share=0.3, sequence_unit=unit_)
            weights_M = Rules(config, of, LEVELS).decide(random_scores(of), 1).sequence_weights_M[scored(of)]
            assert (weights_M == 0).mean() == pytest.approx(0.3, abs=0.02)
            assert weights_M.mean() == pytest.approx(1, abs=0.03)

    def test_no_weight_is_above_the_largest(self) -> None:
        config = some(SkipgrConfig, sequence_share=0.9, max_weight=3.0)
        decisions = decide(config)
        assert decisions.sequence_weights_M.max() == pytest.approx(3)
        assert decisions.ratio == pytest.approx(2 / 3)
        with pytest.raises(ValueError, match="weighs what is kept by 10, above"):
            some(SkipgrConfig, sequence_ratio=0.9)


class TestRules:
    @pytest.mark.parametrize("rule", RULES)
    def test_the_same_scores_give_the_same_decisions_and_each_rule_skips_its_share(self, rule: Rule) -> None:
        of = plan(users=300)
        config = some(SkipgrConfig, rule=rule, token_ratio=0.2)
        first, again = (decide(config, 1, of) for _ in range(2))
        for name, value in vars(first).items():
            np.testing.assert_array_equal(value, getattr(again, name))
        assert first.skip_ML[scored(of), 0].mean() == pytest.approx(0.2, abs=0.001)
        assert (first.sequence_weights_M[scored(of)] == 0).mean() == pytest.approx(0.15, abs=0.05)
        assert (first.skip_ML != decide(dataclasses.replace(config, rule="low_entropy"), 1, of).skip_ML).any() != (
            rule in ("low_entropy", "static_low_entropy", "loss")
        )

    def test_only_static_random_skips_the_same_in_every_epoch(self) -> None:
        for rule in RULES:
            config = some(SkipgrConfig, rule=rule)
            same = (decide(config, 1).sequence_weights_M == decide(config, 2).sequence_weights_M).all()
            assert same == (rule == "static_random"), rule

    def test_random_step_draws_anew_for_every_window_that_an_item_is_in(self) -> None:
        of = plan(users=200)
        rules = Rules(some(SkipgrConfig, rule="random_step", token_ratio=0.2), of, LEVELS)
        decisions = rules.decide(random_scores(of), 1)
        index_M = scored(of)
        one, other = (rules.skips_of_inputs(decisions, 1, index_M, np.full(len(index_M), end)) for end in (5, 6))
        assert (one != other).any()
        for skip_ML in (one, other):
            assert skip_ML[:, 0].mean() == pytest.approx(0.2, abs=0.03)
        assert not rules.skips_of_inputs(decisions, 1, of.first_U, of.first_U).any()

    def test_the_first_epoch_and_the_annealed_ones_skip_nothing(self) -> None:
        of = plan(epochs=9.5)
        config = some(SkipgrConfig, anneal_epochs=3)
        skipping = [p for p in range(10) if decide(config, p, of).skip_ML.any()]
        assert skipping == [1, 2, 3, 4, 5]  # epochs 6, 7, 8 and the half epoch 9 are full
        assert [p for p in range(10) if decide(some(SkipgrConfig), p, of).skip_ML.any()] == list(range(1, 10))


class TestStore:
    def test_processes_take_over_what_the_others_wrote(self) -> None:
        rng = np.random.default_rng(0)
        summands: list[torch.Tensor] = []
        total: list[torch.Tensor] = []

        def collect(tensor: torch.Tensor) -> torch.Tensor:
            summands.append(tensor)
            return tensor

        def give(_: torch.Tensor) -> torch.Tensor:
            return total[0]

        stores = [ScoreStore(10, LEVELS, torch.device("cpu"), collect) for _ in range(2)]
        expected = np.full((10, LEVELS), UNSCORED, np.float32)
        for _ in range(3):
            written = rng.permutation(10)[:6]
            for store, slots in zip(stores, np.split(written, 2), strict=True):
                scores_RL = rng.random((4, LEVELS)).astype(np.float32)
                slots_LR = torch.tensor([*slots, store.dummy_slot]).expand(LEVELS, -1)
                store.write(slots_LR, torch.from_numpy(scores_RL.T))
                expected[slots] = scores_RL[:3]
            held = [(store.scores_F.clone(), store._merged_F.clone()) for store in stores]
            summands.clear()
            for store in stores:
                store.sum = collect
                store.merge()
            total[:] = [summands[0] + summands[1]]
            for store, (scores_F, merged_F) in zip(stores, held, strict=True):
                store.scores_F.copy_(scores_F)
                store._merged_F.copy_(merged_F)
                store.sum = give
                np.testing.assert_array_equal(store.merge(), expected)
