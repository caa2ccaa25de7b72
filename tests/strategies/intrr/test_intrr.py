"""IntRR against its equations, written slowly, on random batches of ragged windows."""

import re
from dataclasses import replace
from typing import Any, Literal

import intrr_reference as reference
import numpy as np
import pytest
import torch
from intrr_world import DIGIT, ITEMS, batches_of, bucket_mates, catalogue, make, pack, step_of
from settings import read_params, some
from typed import gradient_of, present, recording, total

from pipeline.backbones.config import BackboneConfig
from pipeline.catalogue import Catalogue
from pipeline.decoding.beam_search import beam_search
from pipeline.decoding.exhaustive import score_catalogue
from pipeline.errors import UserError
from pipeline.packing.shape import Shape
from pipeline.strategies.intrr.config import IntrrConfig
from pipeline.strategies.intrr.model import RecursiveModel
from pipeline.strategies.intrr.network import negative_log_likelihood
from pipeline.strategies.intrr.strategy import RecursiveNetwork
from pipeline.training.collate import Collator
from pipeline.training.config import TrainConfig
from pipeline.training.optimizer import build_optimizer

CASES: dict[str, dict[str, Any]] = {
    "the paper's": {},
    "straight through": {"mix": "straight_through"},
    "sum of levels": {"context": "sum"},
    "a UID table of its own width": {"uid_dim": 5},
    "occurrences": {"alignment_items": "batch_occurrences"},
    "all": {"alignment_items": "all"},
    "no teacher forcing": {"ablation": "no_teacher_forcing"},
    "no alignment": {"ablation": "no_alignment"},
    "no redistribution": {"ablation": "no_redistribution"},
    "no sharing": {"ablation": "no_sharing"},
    "UIDs held at their size": {"uid_norm": 0.3},
    "UIDs of their own width held at their size": {"uid_norm": 0.3, "uid_dim": 5, "alignment": 0.0},
    "content beside UIDs": {"uid_content": True},
    "content beside UIDs of their own width": {"uid_content": True, "uid_dim": 5, "uid_norm": 0.3},
    "hard codes, occurrences and content": {
        "mix": "straight_through",
        "alignment_items": "batch_occurrences",
        "uid_content": True,
    },
    "on a decoder": {"backbone": "decoder"},
    "on HSTU": {"backbone": "hstu"},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_loss_and_gradients_equal_the_equations(settings: dict[str, Any]) -> None:
    strategy, model = make(**settings)
    model.train()
    _, (batch,), windows = batches_of(strategy, model)
    batch.weights_W.fill_(1)
    strategy.loss(model, batch).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    recommendation, alignment = reference.losses(model, windows)
    weight = 0 if settings.get("ablation") == "no_alignment" else settings.get("alignment", 0.1)
    expected = recommendation / len(windows) + weight * alignment  # Eq. 11, of means
    if norm := settings.get("uid_norm"):
        expected = expected + norm * reference.uid_norm(model, windows)
    torch.testing.assert_close(strategy.loss(model, batch).double() / len(windows), expected, rtol=1e-5, atol=1e-5)
    (len(windows) * expected).backward()
    for name, parameter in model.named_parameters():
        assert gradient_of(parameter).abs().max() > 0, name
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_every_item_can_be_the_target_of_those_before_it() -> None:
    strategy, model = make(backbone="decoder")
    _, (batch,), windows = batches_of(strategy, model.train(), all_targets=True)
    batch.weights_W.fill_(1)
    samples = [
        (history[:end], [*history, target][end]) for history, target in windows for end in range(1, len(history) + 1)
    ]
    recommendation, _ = reference.losses(model, samples)
    alignment = reference.losses(model, windows)[1]  # over all items of the windows
    expected = recommendation + 0.1 * len(samples) * alignment
    torch.testing.assert_close(strategy.loss(model, batch).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"alignment_items": "batch_occurrences"}, {"alignment_items": "all"}])
def test_the_loss_of_a_step_does_not_depend_on_its_parts(settings: dict[str, Any]) -> None:
    strategy, model = make(**settings)
    whole, *parts = (
        sum(strategy.loss(model.train(), batch).item() for batch in batches_of(strategy, model, count)[1])
        for count in (1, 2, 3)
    )
    assert parts == pytest.approx([whole, whole], rel=1e-5)


@pytest.mark.parametrize("settings", [{}, {"alignment_items": "batch_occurrences"}])
def test_windows_that_only_fill_a_batch_up_change_nothing(settings: dict[str, Any]) -> None:
    strategy, model = make(**settings)
    items_N = np.random.default_rng(2).integers(ITEMS, size=60)
    step = step_of(items_N)
    collate = Collator(items_N, model.catalogue.codes_IL, longest=5, weigh_items=strategy.network.items)
    item_counts = collate.count_items(step)
    batches = [
        collate(step, np.arange(8), shape=shape, item_counts=item_counts)
        for shape in (None, Shape(12, int(step.windows.lengths_W.sum()) + 9))
    ]
    assert [len(batch.targets_W) for batch in batches] == [8, 12]
    assert not present(item_counts).counts_I[items_N[:9]].all()
    plain, filled = (strategy.loss(model, batch).item() for batch in batches)
    assert filled == pytest.approx(plain, rel=1e-6)


def test_a_part_without_windows_has_no_loss() -> None:
    strategy, model = make()
    items_N = np.random.default_rng(2).integers(ITEMS, size=60)
    step = step_of(items_N)
    collate = Collator(items_N, model.catalogue.codes_IL, weigh_items=strategy.network.items)
    batch = collate(step, np.zeros(0, np.int64), item_counts=collate.count_items(step))
    assert strategy.loss(model, batch).item() == 0


def test_weights_of_windows_do_not_touch_the_alignment() -> None:
    strategy, model = make()
    _, (batch,), _ = batches_of(strategy, model)
    logits, alignment = model(batch.histories, batch.codes_WL, batch.distinct)
    loss_W = negative_log_likelihood(logits, batch.codes_WL)
    expected = (loss_W * batch.weights_W).sum() + 0.1 * alignment
    torch.testing.assert_close(strategy.loss(model, batch), expected)


def test_a_sample_aligns_items_of_the_whole_catalogue() -> None:
    strategy, model = make(alignment_items="sample", alignment_sample=4000)
    step, (batch,), _ = batches_of(strategy, model)
    costs = torch.stack([reference.item(model, number)[1] for number in range(ITEMS)])
    _, alignment = model(batch.histories, batch.codes_WL, batch.distinct)
    assert alignment.item() / len(step.windows) == pytest.approx(costs.mean().item(), rel=0.03)


def test_the_loss_is_float32_under_autocast() -> None:
    strategy, model = make()
    model = model.float().train()
    _, (batch,), _ = batches_of(strategy, model)
    exact = strategy.loss(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = strategy.loss(model, batch)
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)


class TestItemVectors:
    def test_the_catalogue_s_are_computed_once_and_anew_after_training_went_on(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, model = make()
        calls: list[Any] = []
        monkeypatch.setattr(model, "_redistribute", recording(model._redistribute, calls))
        before_Id = model.eval().item_vectors().clone()
        kept_Id = model.item_vectors()
        assert len(calls) == 1
        expected_Id = torch.stack([reference.item(model, number)[0] for number in range(ITEMS)])
        torch.testing.assert_close(before_Id, expected_Id.detach())
        model.train()
        with torch.no_grad():
            model.uid.weight.neg_()
        model.eval().sizes(pack([[1]]))  # as a recorded search does, which reads the same memory again
        assert not torch.allclose(kept_Id, before_Id)
        assert model.item_vectors() is kept_Id
        assert len(calls) == 2

    def test_training_refuses_the_vectors_of_another_step(self) -> None:
        strategy, model = make()
        _, (batch,), _ = batches_of(strategy, model)
        with pytest.raises(ValueError, match="distinct items"):
            model.train()(batch.histories, batch.codes_WL)

    def test_items_of_one_semantic_id_differ_by_their_uid_alone(self) -> None:
        """All codes but the digit are equal; without redistribution the vectors differ by the digit's vector alone."""
        first, second = bucket_mates()
        _, model = make()
        assert not torch.allclose(*model.eval().item_vectors()[[first, second]])
        _, model = make(ablation="no_redistribution")
        vectors_Id, codes_IL = model.eval().item_vectors(), model.catalogue.codes_IL
        digits_Vd = model.ran.codebooks[-1]
        torch.testing.assert_close(
            vectors_Id[first] - vectors_Id[second],
            (digits_Vd[codes_IL[first, -1]] - digits_Vd[codes_IL[second, -1]]).detach(),
        )

    def test_weights_are_distributions_over_each_level(self) -> None:
        _, model = make()
        weights = model.eval().code_shares(torch.arange(ITEMS))
        assert [w.shape[1] for w in weights] == [4, 3, DIGIT]
        for level, w in enumerate(weights):
            expected = torch.stack([reference.walk(model.ran, model.uid.weight[i])[0][level] for i in range(ITEMS)])
            torch.testing.assert_close(w, expected.detach())

    def test_without_redistribution_they_are_the_items_own_codes(self) -> None:
        _, model = make(ablation="no_redistribution", alignment=0.0)
        for level, w in enumerate(model.eval().code_shares(torch.arange(ITEMS))):
            assert w.argmax(1).tolist() == model.catalogue.codes_IL[:, level].tolist()
            assert w.sum(1).tolist() == [1] * ITEMS


class TestAblations:
    def test_without_alignment_equals_a_weight_of_zero(self) -> None:
        losses = []
        for settings in ({"ablation": "no_alignment"}, {"alignment": 0.0}):
            strategy, model = make(**settings)
            losses.append(strategy.loss(model.train(), batches_of(strategy, model)[1][0]).item())
        assert losses[0] == losses[1]

    def test_validation_is_teacher_forced_and_knows_no_alignment_under_every_ablation(self) -> None:
        for ablation in ("none", "no_teacher_forcing", "no_redistribution", "no_sharing"):
            strategy, model = make(ablation=ablation)
            _, (batch,), windows = batches_of(strategy, model.eval())
            batch.weights_W.fill_(1)
            expected = -total(score_catalogue(model, pack([history]))[0, number] for history, number in windows)
            plain = replace(batch, distinct=None)
            assert strategy.loss(model, plain).item() == pytest.approx(expected.item(), rel=1e-5)

    def test_a_uid_table_that_nothing_reads_does_not_exist(self) -> None:
        _, model = make(ablation="no_redistribution", alignment=0.0)
        assert not [name for name in model.state_dict() if name.startswith("uid")]

    def test_the_two_sides_share_nothing_but_the_backbone_without_sharing(self) -> None:
        strategy, model = make(ablation="no_sharing", alignment=0.0)
        _, (batch,), _ = batches_of(strategy, model.train())
        states_Wd = torch.randn(len(batch.targets_W), 8, dtype=torch.float64)
        torch.cat(model._targets(states_Wd, batch.codes_WL), 1).square().sum().backward()
        assert all(parameter.grad is None for parameter in present(model.items_ran).parameters())
        assert all(parameter.grad is not None for parameter in model.ran.parameters())


class TestTheUids:
    @torch.no_grad()
    def test_may_begin_at_their_codes_which_have_half_of_level_1(self) -> None:
        strategy, model = make(uid_start="codes")
        strategy.network.start_from(model, {})
        codes_I = model.catalogue.codes_IL[:, 0]
        shares_V = torch.zeros(4, dtype=torch.float64)
        for number in range(ITEMS):
            distributions, _ = reference.walk(model.ran, model.uid.weight[number].double())
            shares_V[codes_I[number]] = distributions[0][codes_I[number]]
        assert float(shares_V.mean()) == pytest.approx(0.5, abs=1e-4)
        assert model.uid_content is None
        for code in range(4):
            rows = model.uid.weight[codes_I == code]
            torch.testing.assert_close(rows, rows[:1].expand_as(rows))
            assert float(torch.cosine_similarity(rows[0], model.ran.codebooks[0][code], dim=0)) == pytest.approx(1)

    @torch.no_grad()
    def test_begin_at_their_codes_with_content_too_and_have_it_drawn_otherwise(self) -> None:
        strategy, model = make(uid_start="codes", uid_content=True)
        strategy.network.start_from(model, {})
        torch.testing.assert_close(model._signal(torch.arange(ITEMS)), model.uid.weight)
        _, drawn = make(uid_content=True, uid_dropout=0.5)
        both_Xd = drawn.eval()._signal(torch.arange(ITEMS))
        expected_Xd = torch.stack([reference.signal(drawn, number) for number in range(ITEMS)])
        torch.testing.assert_close(both_Xd, expected_Xd)
        assert float((both_Xd - drawn.uid.weight).std()) == pytest.approx(1, abs=0.2)  # as the rows
        drawn.train()
        mean_Xd = torch.stack([drawn._signal(torch.arange(ITEMS)) for _ in range(4000)]).mean(0)
        torch.testing.assert_close(mean_Xd, expected_Xd, atol=0.15, rtol=0)  # the rows alone lose entries

    def test_with_content_need_it(self) -> None:
        network = RecursiveNetwork(some(IntrrConfig, uid_content=True, digit_width=DIGIT))
        with pytest.raises(ValueError, match="no content vectors"):
            network.build(some(BackboneConfig), catalogue())

    def test_lose_entries_in_training_alone(self) -> None:
        _, plain = make()
        _, model = make(uid_dropout=0.5)
        items_X = torch.arange(ITEMS)
        torch.testing.assert_close(model.eval()._signal(items_X), plain.eval()._signal(items_X))
        model.train()
        ratio = torch.stack([model._signal(items_X) for _ in range(400)]) / model.uid.weight
        assert set(ratio.detach().round(decimals=6).unique().tolist()) == {0.0, 2.0}
        assert float(ratio.detach().mean()) == pytest.approx(1, abs=0.02)

    @pytest.mark.parametrize("optimizer", ["adam", "adamw"])
    @pytest.mark.parametrize("norm", [0.0, 0.3])
    def test_are_left_alone_by_weight_decay_where_a_loss_holds_their_size(
        self, optimizer: Literal["adam", "adamw"], norm: float
    ) -> None:
        _, model = make(uid_norm=norm)
        before = {name: parameter.detach().clone() for name, parameter in model.float().named_parameters()}
        config = some(TrainConfig, optimizer=optimizer, learning_rate=0.01, weight_decay=0.1)
        rule = build_optimizer(model, config)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        rule.step()
        moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
        assert ("uid.weight" in moved) == (norm == 0)
        assert "ran.codebooks.0" in moved

    def test_are_refused_at_their_codes_with_a_width_of_their_own(self) -> None:
        with pytest.raises(UserError, match="uid_start codes"):
            read_params({"strategy": "intrr", "intrr": {"uid_start": "codes", "uid_dim": 7}})
        with pytest.raises(UserError, match=r"set intrr\.uid_content=false, or intrr\.ablation=none"):
            read_params({"strategy": "intrr", "intrr": {"uid_content": True, "ablation": "no_redistribution"}})


def test_the_entropy_of_the_mixtures_is_told_by_level() -> None:
    strategy, model = make(digit_width=0)
    model.eval()
    distributions = [reference.walk(model.ran, model.uid.weight[number])[0] for number in range(ITEMS)]
    codes_IL = model.catalogue.codes_IL.tolist()
    expected = []
    own = []
    for level in range(3):
        expected.append(sum(float(-(p[level] * p[level].log()).sum()) for p in distributions) / ITEMS)
        own.append(sum(float(p[level][codes_IL[item][level]]) for item, p in enumerate(distributions)) / ITEMS)
    (line,) = strategy.network.remarks(model)
    figures = [float(number) for number in re.findall(r"\d+\.\d+", line)]
    assert figures[0:6:2] == pytest.approx(expected, abs=0.006)
    assert figures[1:6:2] == pytest.approx(np.log(model.catalogue.widths), abs=0.006)
    assert figures[6:] == pytest.approx(own, abs=0.0006)
    with torch.no_grad():
        model.uid.weight.mul_(0.001)
    assert "level 1 of the items' mixtures is all but uniform" in strategy.network.remarks(model.train().eval())[1]


class TestTheQuantizersCodebooks:
    @pytest.mark.parametrize("width", [3, 8, 20])
    def test_keep_their_geometry_as_far_as_the_widths_allow(self, width: int) -> None:
        strategy, model = make(codebooks="quantizer")
        books = {
            "level_1": np.random.default_rng(4).normal(size=(4, width)).astype(np.float32) + 5,
            "level_2": np.ones((3, width), np.float32),
            "encoder.weight": np.zeros((2, 2), np.float32),
        }
        before = [book.detach().clone() for book in model.ran.codebooks]
        strategy.network.start_from(model, books)
        first, second, digit = model.ran.codebooks
        assert first.square().mean().sqrt().item() == pytest.approx(8**-0.5)
        if width <= 8:
            theirs = torch.pdist(torch.from_numpy(books["level_1"]).double())
            ratio = torch.pdist(first) / theirs
            torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(second, before[1], msg="centroids without spread")
        torch.testing.assert_close(digit, before[2])

    def test_are_not_looked_at_by_default(self) -> None:
        strategy, model = make()
        before = [book.detach().clone() for book in model.ran.codebooks]
        strategy.network.start_from(model, {"level_1": np.ones((4, 3), np.float32)})
        torch.testing.assert_close(list(model.ran.codebooks), before)


class TestTheDigit:
    def test_may_be_missing_so_that_items_share_their_semantic_ids(self) -> None:
        codes_IL = catalogue().codes_IL[:, :-1]
        torch.manual_seed(0)
        network = RecursiveNetwork(some(IntrrConfig, hidden=12))
        config = some(BackboneConfig, encoder_layers=1, d_model=8, heads=2, d_head=4, d_ff=16, dropout=0.0)
        model = network.build(config, Catalogue(codes_IL, (4, 3), digit=False)).double().eval()
        assert isinstance(model, RecursiveModel)
        assert [len(book) for book in model.ran.codebooks] == [4, 3]
        beams = beam_search(model, pack([[1, 2], [3]]), ITEMS)
        assert [sorted(items_K) for items_K in beams.items_WK.tolist()] == [list(range(ITEMS))] * 2
        with torch.no_grad():
            state_d = reference.state(model, [3])
            expected_I = torch.stack([-reference.target(model, state_d, number) for number in range(ITEMS)])
        torch.testing.assert_close(beams.scores_WK[1].double(), expected_I[beams.items_WK[1]], rtol=1e-5, atol=1e-5)

    def test_has_a_width_of_its_own(self) -> None:
        _, model = make()
        assert [len(book) for book in model.ran.codebooks] == [4, 3, DIGIT]
        _, model = make(digit_width=0)
        assert [len(book) for book in model.ran.codebooks] == list(catalogue().widths)

    def test_that_cannot_tell_a_group_apart_is_refused_by_the_group_s_name(self) -> None:
        largest = catalogue().widths[-1]
        with pytest.raises(UserError) as refused:
            make(digit_width=largest - 1)
        first, _ = bucket_mates()
        codes = catalogue().codes_IL[first, :-1].tolist()
        assert f"{largest} items share the codes {codes}: item_id {first}, " in str(refused.value)
        assert f"set intrr.digit_width to {largest} or more" in str(refused.value)


@pytest.mark.slow
def test_the_network_compiles_for_a_gpu_without_a_break_and_computes_the_same() -> None:
    """The backend traces the forward and the backward pass but generates no code, so that the test runs anywhere."""
    strategy, model = make(mix="straight_through", uid_content=True)
    _, (batch,), _ = batches_of(strategy, model.float().train())
    gradients = []
    for compiled in (False, True):
        if compiled:
            model.compiled_items, model.compiled_targets = (  # type: ignore[assignment]  # compiling hides the types
                torch.compile(side, backend="aot_eager", fullgraph=True, dynamic=True)
                for side in (model._items, model._targets)
            )
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            strategy.loss(model, batch).backward()
        gradients.append([gradient_of(parameter).clone() for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=0.02, atol=0.02)
