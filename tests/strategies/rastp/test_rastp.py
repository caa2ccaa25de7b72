"""RASTP against its equations and against the authors' code, both written slowly, on ragged random batches."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import rastp_reference as reference
import torch
from settings import read_params, some
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typed import gradient_of, present, recording, total

from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.t5 import T5, EncoderOutput
from pipeline.catalogue import Catalogue
from pipeline.decoding.beam_search import beam_search
from pipeline.decoding.exhaustive import score_catalogue
from pipeline.errors import UserError
from pipeline.ops.attention import attention
from pipeline.ops.layout import Group, Layout
from pipeline.packing.histories import Histories
from pipeline.packing.pruning import PrunedTokens
from pipeline.strategies.base import Network
from pipeline.strategies.rastp.config import RastpConfig
from pipeline.strategies.rastp.pruner import Pruner, best_of_segments
from pipeline.strategies.rastp.strategy import PrunedNetwork

WIDTHS, ITEMS = (7, 6, 5, 3), 60
CASES: dict[str, dict[str, Any]] = {
    "the paper's": {},
    "after layer 1": {"after_layer": 1},
    "after the last layer": {"after_layer": 3},
    "half": {"keep": 0.5},
    "l1": {"score": "l1"},
    "l2": {"score": "l2"},
    "attention": {"score": "attention"},
    "separators compete": {"separators": "compete"},
    "items": {"unit": "item"},
    "items with separators": {"unit": "item", "separators": "compete"},
    "no positions": {"keep_positions": False},
    "at least 9": {"min_tokens": 9},
    "no least": {"min_tokens": 1},
    "the last item": {"keep_last_item": True, "keep": 0.1, "min_tokens": 1},
    "the last item, separators compete": {"keep_last_item": True, "keep": 0.2, "separators": "compete"},
    "the last item, items": {"keep_last_item": True, "keep": 0.2, "unit": "item"},
    "a third of 40 positions": {"base": "padded", "base_length": 40},
    "a third of 23 positions": {"base": "padded", "base_length": 23, "keep_last_item": True},
    "a third of 40 positions, separators compete": {"base": "padded", "base_length": 40, "separators": "compete"},
    "a third of 40 positions, items": {"base": "padded", "base_length": 40, "unit": "item"},
}
RELEASED: dict[str, Any] = {
    "min_tokens": 1,
    "separators": "compete",
    "base": "padded",
    "keep_positions": False,
    "padded_queries": "count",
    "score_dropout": "after",
}


def catalogue() -> Catalogue:
    rng = np.random.default_rng(0)
    return Catalogue(rng.permutation(np.unique(rng.integers(0, WIDTHS, (4 * ITEMS, 4)), axis=0))[:ITEMS], WIDTHS)


def make_model(strategy: Network, dtype: torch.dtype = torch.float64, **config: Any) -> T5:
    """A small T5 whose position bias is large enough to matter, in evaluation mode."""
    torch.manual_seed(0)
    small = {
        "encoder_layers": 3,
        "decoder_layers": 1,
        "d_model": 16,
        "heads": 3,
        "d_head": 8,
        "d_ff": 32,
        "dropout": 0.0,
        "relative_max_distance": 24,
    }
    model = strategy.build(some(BackboneConfig, **small | config), catalogue())
    assert isinstance(model, T5)
    with torch.no_grad():
        model.encoder_bias.weight.normal_()
    return model.to(dtype).eval()


def ragged(count: int = 9, longest: int = 8, seed: int = 0) -> list[list[int]]:
    """Histories of many lengths, the shortest a single item."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, ITEMS, length).tolist() for length in [1, 2, longest, *rng.integers(1, longest, count - 3)]]


def pack(windows: list[list[int]], pad_to: int = 0) -> Histories:
    offsets = np.concatenate([[0], np.cumsum([len(window) for window in windows])])
    return Histories.pack(np.concatenate(windows).astype(np.int64), offsets, pad_to=pad_to)


def rows(encoded: EncoderOutput) -> Iterator[torch.Tensor]:
    """The real states of each window, in packed order."""
    start, lengths = 0, encoded.layout.lengths_W
    capacities = [group.keys for group in encoded.layout.groups for _ in range(group.sequences)]
    for index, capacity in enumerate(capacities):
        yield encoded.states_Td[start : start + (capacity if lengths is None else int(lengths[index]))]
        start += capacity


def pruner_of(model: T5) -> Pruner:
    assert isinstance(model.pruner, Pruner)
    return model.pruner


def kept_by(model: T5, histories: Histories) -> torch.Tensor:
    """Which tokens the encoder keeps: bool [N, S]."""
    return present(model.encode(histories).kept_NS)


def kept_positions(encoded: EncoderOutput, histories: Histories) -> list[list[int]]:
    flat = present(encoded.kept_NS).split(histories.lengths_W.tolist())
    return [torch.flatten(kept).nonzero()[:, 0].tolist() for kept in flat]


@pytest.mark.parametrize("pad_to", [0, 40, 43], ids=["packed", "padded", "padded to no whole item"])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_kept_tokens_and_outputs_are_those_of_the_equations(options: dict[str, Any], pad_to: int) -> None:
    config = some(RastpConfig, **options)
    model, windows = make_model(PrunedNetwork(config)), ragged()
    histories = pack(windows, pad_to)
    encoded = model.encode(histories)
    for index, states, kept in zip(histories.order, rows(encoded), kept_positions(encoded, histories), strict=True):
        expected, positions, _ = reference.encode(model, windows[index], config)
        assert kept == positions
        torch.testing.assert_close(states, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("separators", ["keep", "compete"])
def test_a_share_of_a_length_is_the_same_in_packed_and_in_padded_batches(separators: str) -> None:
    """And the published one: a third of 30 items of 4 codes, 40 tokens, whatever the history has."""
    options: dict[str, Any] = {"base": "padded", "separators": separators}
    model, windows = make_model(PrunedNetwork(some(RastpConfig, **options), pad_to=40)), ragged()
    named = make_model(PrunedNetwork(some(RastpConfig, **options, base_length=40)))
    assert pruner_of(named).pad_to == 0  # so that packed batches stay packed
    assert torch.equal(kept_by(model, pack(windows, 40)), kept_by(named, pack(windows)))
    assert not kept_by(named, pack(windows)).all()
    long = make_model(PrunedNetwork(some(RastpConfig, base="padded", base_length=150)))
    histories = pack([list(range(30)), list(range(8)), list(range(20))])
    parts = kept_by(long, histories).split(histories.lengths_W.tolist())
    assert {len(part): int(part[:, :4].sum()) for part in parts} == {30: 40, 20: 40, 8: 32}


@pytest.mark.parametrize("score", ["rastp", "l1", "l2", "attention", "random"])
def test_the_last_item_stays_whatever_its_score(score: str) -> None:
    few: dict[str, Any] = {"score": score, "keep": 0.01, "min_tokens": 1}
    model = make_model(PrunedNetwork(some(RastpConfig, **few, keep_last_item=True)))
    histories = pack(ragged())
    for kept_SN in kept_by(model, histories).split(histories.lengths_W.tolist()):
        assert kept_SN[-1].all()
        assert not kept_SN[:-1].any()


def test_without_separators_every_token_is_scored() -> None:
    config = some(RastpConfig, keep=0.4)
    model, windows = make_model(PrunedNetwork(config), separators=False), ragged()
    histories = pack(windows)
    encoded = model.encode(histories)
    for index, states in zip(histories.order, rows(encoded), strict=True):
        expected, _, _ = reference.encode(model, windows[index], config)
        torch.testing.assert_close(states, expected, rtol=1e-9, atol=1e-9)


def test_the_score_is_attention_mass_times_l1_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    config = some(RastpConfig)
    model, windows = make_model(PrunedNetwork(config)), ragged()
    histories, pruner = pack(windows), pruner_of(model)
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(pruner, "_importance", recording(pruner._importance, seen))
    model.encode(histories)
    expected = [score for index in histories.order for score in reference.encode(model, windows[index], config)[2]]
    torch.testing.assert_close(seen[0], torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=0)


class TestTheReleasedCode:
    @pytest.mark.parametrize("packed", [False, True], ids=["padded batch", "packed batch"])
    def test_is_reproduced_exactly(self, packed: bool) -> None:
        """Where padding counts, the model pads a packed batch itself."""
        model, windows = make_model(PrunedNetwork(some(RastpConfig, **RELEASED), pad_to=40)), ragged()
        histories = pack(windows, 0 if packed else 40)
        encoded = model.encode(histories)
        assert encoded.layout.groups == (Group(len(windows), 13, 13),)
        expected_WPd, mask_WP = reference.released(model, [windows[i] for i in histories.order], 40)
        for states, expected_Pd, mask_P in zip(rows(encoded), expected_WPd, mask_WP, strict=True):
            torch.testing.assert_close(states, expected_Pd[mask_P], rtol=1e-9, atol=1e-9)

    def test_differs_from_the_paper_in_what_it_keeps(self) -> None:
        kept = []
        for options in ({}, RELEASED):
            histories = pack(ragged(), 40)
            kept.append(kept_by(make_model(PrunedNetwork(some(RastpConfig, **options), pad_to=40)), histories))
        assert not torch.equal(kept[0], kept[1])

    def test_prunes_nothing_from_a_window_that_fits_a_third_of_the_padding(self) -> None:
        histories = pack(ragged(), 40)
        kept_NS = kept_by(make_model(PrunedNetwork(some(RastpConfig, **RELEASED), pad_to=40)), histories)
        for items, kept in zip(histories.lengths_W.tolist(), kept_NS.split(histories.lengths_W.tolist()), strict=True):
            assert int(kept.sum()) == min(5 * items, 13)

    def test_dropout_makes_its_score_random_in_training(self) -> None:
        model = make_model(PrunedNetwork(some(RastpConfig, **RELEASED), pad_to=40), torch.float32, dropout=0.3).train()
        kept = [kept_by(model, pack(ragged(), 40)) for _ in range(2)]
        assert not torch.equal(kept[0], kept[1])


class TestPositions:
    def test_the_bias_after_pruning_is_that_of_the_original_positions(self) -> None:
        layout = Layout.packed(
            torch.tensor([3, 3, 5]), 5, positions_S=torch.tensor([0, 4, 9, 1, 2, 3, 2, 3, 5, 7, 8]), reach=10
        )
        q, k, v = torch.randn(3, 11, 2, 4, dtype=torch.float64)
        bias_HQK = torch.randn(2, 10, 10, dtype=torch.float64, requires_grad=True)
        out_THD, _ = attention(q, k, v, layout, bias_HQK)
        expected, grad = [], torch.randn_like(out_THD)
        for start, length in ((0, 3), (3, 3), (6, 5)):
            own, at = slice(start, start + length), present(layout.positions_S)[start : start + length]
            alone = Layout.equal(1, length, q.device)
            expected.append(attention(q[own], k[own], v[own], alone, bias_HQK[:, at][:, :, at])[0])
        torch.testing.assert_close(out_THD, torch.cat(expected))
        torch.testing.assert_close(
            torch.autograd.grad(out_THD, bias_HQK, grad), torch.autograd.grad(torch.cat(expected), bias_HQK, grad)
        )

    def test_without_them_later_blocks_have_no_bias(self) -> None:
        model = make_model(PrunedNetwork(some(RastpConfig, keep_positions=False, after_layer=1)))
        seen = []
        for block in model.encoder:
            block.attention.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
        model.encode(pack(ragged()))
        assert [bias is None for bias in seen] == [False, True, True]


POOLS = [
    {"method": method, "pool_unit": unit, "separators": separators, "keep": keep}
    for method in ("avg_pool", "max_pool")
    for unit in ("token", "item")
    for separators in ("keep", "compete")
    for keep in (Fraction(1, 3), 0.45)
]


class TestPooling:
    @pytest.mark.parametrize("options", POOLS, ids=lambda options: " ".join(map(str, options.values())))
    def test_pools_are_those_of_the_reference(self, options: dict[str, Any]) -> None:
        config = some(RastpConfig, **options | {"keep": float(options["keep"])})
        model, windows = make_model(PrunedNetwork(config)), ragged()
        histories = pack(windows)
        encoded = model.encode(histories)
        for index, states, kept in zip(histories.order, rows(encoded), kept_positions(encoded, histories), strict=True):
            expected, positions = reference.pooled(model, windows[index], config)
            assert kept == positions
            torch.testing.assert_close(states, expected, rtol=1e-9, atol=1e-9)

    def test_a_third_makes_pools_of_three(self) -> None:
        model = make_model(PrunedNetwork(some(RastpConfig, method="avg_pool", separators="compete")))
        encoded = model.encode(pack([[1, 2, 3]]))
        assert kept_positions(encoded, pack([[1, 2, 3]])) == [[0, 3, 6, 9, 12]]


class TestGradients:
    def loss(self, model: T5, histories: Histories) -> torch.Tensor:
        torch.manual_seed(3)
        targets_W = torch.randint(ITEMS, (histories.windows,))
        return total(logits.square().sum() for logits in model(histories, targets_W))

    @pytest.mark.parametrize("options", [{}, {"method": "avg_pool"}, {"method": "max_pool", "pool_unit": "item"}])
    def test_are_the_derivatives_of_the_loss_in_every_parameter(self, options: dict[str, Any]) -> None:
        model, histories = make_model(PrunedNetwork(some(RastpConfig, **options))), pack(ragged())
        self.loss(model, histories).backward()
        for name, parameter in model.named_parameters():
            direction = torch.randn_like(parameter)
            slopes = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    parameter.add_(step * direction)
                    slopes.append(float(self.loss(model, histories)))
                    parameter.sub_(step * direction)
            slope = (slopes[0] - slopes[1]) / 2e-6
            assert float((gradient_of(parameter) * direction).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-4), name

    def test_reach_kept_tokens_only_and_through_them_every_token_of_the_blocks_before(self) -> None:
        model, histories = make_model(PrunedNetwork(some(RastpConfig, after_layer=2))), pack(ragged())
        seen: list[torch.Tensor] = []
        embedded: list[torch.Tensor] = []

        class Watching(Pruner):
            def __call__(self, h_Td: torch.Tensor, *rest: Any, **options: Any) -> tuple[torch.Tensor, PrunedTokens]:
                h_Td.retain_grad()
                seen.append(h_Td)
                return super().__call__(h_Td, *rest, **options)

        def keep_gradient(_: nn.Module, __: Any, out: torch.Tensor) -> None:
            embedded.append(out)
            out.retain_grad()

        pruner_of(model).__class__ = Watching
        model.dropout.register_forward_hook(keep_gradient)
        self.loss(model, histories).backward()
        kept = kept_by(model, histories).flatten()
        reached = gradient_of(seen[0]).abs().sum(1) > 0
        assert torch.equal(reached, kept)
        assert 0 < int(kept.sum()) < len(kept)
        assert (gradient_of(embedded[0]).abs().sum(1) > 0).all()


class TestCost:
    def test_operations_of_the_forward_fall_with_keep(self) -> None:
        flops = {}
        for keep in (1.0, 0.5, 1 / 3):
            for after in (1, 2, 3):
                model = make_model(PrunedNetwork(some(RastpConfig, keep=keep, after_layer=after)), torch.float32)
                with FlopCounterMode(display=False) as counter, torch.no_grad():
                    model(pack(ragged()), torch.arange(9))
                flops[keep, after] = counter.get_total_flops()
        assert flops[1.0, 1] == flops[1.0, 2] == flops[1.0, 3]
        for after in (1, 2, 3):
            assert flops[1.0, after] > flops[0.5, after] > flops[1 / 3, after]
        assert flops[1 / 3, 1] < flops[1 / 3, 2] < flops[1 / 3, 3]

    @pytest.mark.parametrize("options", [{}, {"separators": "compete"}, {"unit": "item"}, {"method": "avg_pool"}])
    def test_later_blocks_have_the_slots_that_are_announced(self, options: dict[str, Any]) -> None:
        strategy, windows = PrunedNetwork(some(RastpConfig, **options)), ragged()
        layout = make_model(strategy).encode(pack(windows)).layout
        announced = strategy.tokens_kept(np.array([len(window) for window in windows]), 5)
        assert sum(group.sequences * group.keys for group in layout.groups) == announced.sum()
        if options == {"separators": "compete"}:
            assert announced.tolist() == [max(len(window) * 5 // 3, 4) for window in windows]

    def test_keep_1_is_full(self) -> None:
        pruned, full = make_model(PrunedNetwork(some(RastpConfig, keep=1.0))), make_model(Network())
        assert pruned.pruner is None
        histories = pack(ragged())
        assert torch.equal(pruned.encode(histories).states_Td, full.encode(histories).states_Td)
        assert PrunedNetwork(some(RastpConfig, keep=1.0)).tokens_kept(np.array([3]), 5) == [15]


class TestInUse:
    def test_evaluation_may_see_all_tokens(self) -> None:
        histories, config = pack(ragged()), some(RastpConfig, at_eval=False)
        model = make_model(PrunedNetwork(config))
        assert torch.equal(model.encode(histories).states_Td, make_model(Network()).encode(histories).states_Td)
        assert len(model.train().encode(histories).states_Td) < len(model.eval().encode(histories).states_Td)

    @pytest.mark.parametrize("options", [{}, {"separators": "compete"}, {"score": "random"}])
    def test_a_window_is_pruned_alike_in_every_batch(self, options: dict[str, Any]) -> None:
        model, windows = make_model(PrunedNetwork(some(RastpConfig, **options))), ragged()
        together = score_catalogue(model, pack(windows))
        alone = torch.cat([score_catalogue(model, pack([window])) for window in windows])
        torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)

    def test_the_beam_finds_what_exact_scoring_finds(self) -> None:
        model, histories = make_model(PrunedNetwork(some(RastpConfig))), pack(ragged())
        best = score_catalogue(model, histories).argmax(1)
        assert torch.equal(beam_search(model, histories, beam=ITEMS).items_WK[:, 0], best)

    def test_random_scores_differ_from_step_to_step_but_not_between_evaluations(self) -> None:
        model, histories = make_model(PrunedNetwork(some(RastpConfig, score="random"))), pack(ragged())
        assert torch.equal(kept_by(model, histories), kept_by(model, histories))
        model.train()
        assert not torch.equal(kept_by(model, histories), kept_by(model, histories))

    def test_bfloat16_keeps_nearly_the_same_tokens(self) -> None:
        model, histories = make_model(PrunedNetwork(some(RastpConfig)), torch.float32), pack(ragged(40))
        exact = kept_by(model, histories)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model.encode(histories)
        assert (present(rounded.kept_NS) == exact).float().mean() > 0.9
        assert rounded.states_Td.dtype == torch.float32


def test_the_best_of_each_segment_are_those_of_a_sort_and_ties_go_to_the_earlier() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 12, 50)
    scores, budget = rng.integers(0, 6, lengths.sum()).astype(float), rng.integers(0, 12, 50)
    first = np.cumsum(lengths) - lengths
    kept = best_of_segments(
        torch.from_numpy(scores),
        torch.from_numpy(np.repeat(np.arange(50), lengths)),
        torch.from_numpy(first),
        torch.from_numpy(budget),
    )
    for begin, length, many in zip(first, lengths, budget, strict=True):
        best = sorted(range(begin, begin + length), key=lambda i: (-scores[i], i))[:many]
        assert kept[begin : begin + length].nonzero()[:, 0].tolist() == sorted(i - begin for i in best)


@pytest.mark.parametrize("pad_to", [0, 40])
def test_each_kept_token_has_one_slot_and_each_dropped_one_none(pad_to: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, histories = make_model(PrunedNetwork(some(RastpConfig))), pack(ragged(), pad_to)
    pruner = pruner_of(model)
    seen: list[PrunedTokens] = []
    monkeypatch.setattr(pruner, "_choose", recording(pruner._choose, seen))
    model.encode(histories)
    (choice,) = seen
    kept_T = (choice.slot_T >= 0).nonzero()[:, 0]
    assert len(kept_T) == int(choice.kept_NS.sum()) == int(choice.taken_W.sum())
    assert torch.equal(choice.source_O[choice.slot_T[kept_T]], kept_T)
    assert len(set(choice.slot_T[kept_T].tolist())) == len(kept_T)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"keep_last_item": True, "method": "avg_pool"}, "keep_last_item is for rastp.method prune"),
        ({"base_length": 150}, "rastp.base is real"),
        ({"base": "padded"}, "rastp.base_length names the positions"),
        ({"base": "padded", "base_length": 150, "padded_queries": "count"}, "need padding"),
    ],
)
def test_what_does_not_go_together_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_params({"strategy": "rastp", "rastp": change})


@pytest.mark.parametrize("change", [{"keep": 0.0}, {"keep": 1.1}, {"min_tokens": 0}, {"after_layer": 0}])
def test_what_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"rastp.{next(iter(change))} is .*, expected"):
        read_params({"rastp": change})


def test_the_smallest_share_leaves_the_fewest_tokens() -> None:
    """It is below the fractions that a share is rounded to, and is not rounded to nothing."""
    pruner = pruner_of(make_model(PrunedNetwork(some(RastpConfig, keep=1e-6, min_tokens=4))))
    assert pruner.budget(10) == 4
