"""IntRR decodes as its equations say: beams over the network, exact scores, ties told by the UID table."""

from typing import Any

import intrr_reference as reference
import pytest
import torch
from intrr_world import DIGIT, ITEMS, by_uid, make, pack, short_histories
from typed import recording

from pipeline.decoding.beam_search import beam_search
from pipeline.decoding.exhaustive import score_catalogue
from pipeline.strategies.intrr.model import RecursiveModel


class TestDecoding:
    @staticmethod
    @torch.no_grad()
    def brute_force(model: RecursiveModel, histories: list[list[int]]) -> torch.Tensor:
        """Scores [W, I]: each item's log-probability after each history, by the reference."""
        rows = []
        for history in histories:
            state_d = reference.state(model, history)
            scores = torch.stack([-reference.target(model, state_d, number) for number in range(ITEMS)])
            if model.settings.tie_break == "uid":
                scores = by_uid(model, state_d)
            rows.append(scores)
        return torch.stack(rows)

    @pytest.mark.parametrize(
        "settings",
        [{}, {"context": "sum"}, {"tie_break": "uid"}, {"tie_break": "uid", "uid_content": True}],
        ids=["paper", "sum", "uid", "content"],
    )
    def test_a_beam_of_full_width_and_exact_scores_equal_brute_force(self, settings: dict[str, Any]) -> None:
        _, model = make(**settings)
        model.eval()
        histories = short_histories()
        expected_WI = self.brute_force(model, histories)
        scores_WI = score_catalogue(model, pack(histories))
        torch.testing.assert_close(scores_WI.double(), expected_WI, rtol=1e-5, atol=1e-5)
        beams = beam_search(model, pack(histories), ITEMS)
        torch.testing.assert_close(
            beams.scores_WK.double(), expected_WI.sort(1, descending=True).values, rtol=1e-5, atol=1e-5
        )
        assert torch.equal(beams.codes_WKL, model.catalogue.codes_IL[beams.items_WK])
        torch.testing.assert_close(
            expected_WI.gather(1, beams.items_WK), beams.scores_WK.double(), rtol=1e-5, atol=1e-5
        )

    @pytest.mark.parametrize("tie_break", ["digit", "uid"])
    def test_a_narrow_beam_gives_items_their_own_scores(self, tie_break: str) -> None:
        _, model = make(tie_break=tie_break)
        packed = pack(short_histories(9))
        beams = beam_search(model.eval(), packed, 5)
        assert all(len(set(items_K)) == 5 for items_K in beams.items_WK.tolist())
        torch.testing.assert_close(
            score_catalogue(model, packed).gather(1, beams.items_WK), beams.scores_WK, rtol=1e-5, atol=1e-5
        )

    def test_a_free_beam_of_full_width_holds_all_the_probability_and_marks_what_names_no_item(self) -> None:
        _, model = make()
        beams = beam_search(model.eval(), pack(short_histories()), 4 * 3 * DIGIT, constrained=False)
        torch.testing.assert_close(beams.scores_WK.exp().sum(1), torch.ones(4))
        assert ((beams.items_WK >= 0).sum(1) == ITEMS).all()

    def test_a_free_beam_by_uid_names_every_item_and_stays_finite(self) -> None:
        _, model = make(tie_break="uid")
        beams = beam_search(model.eval(), pack(short_histories()), 4 * 3 * DIGIT, constrained=False)
        assert not beams.scores_WK.isnan().any()
        found_W = [sorted(items_K[items_K >= 0].tolist()) for items_K in beams.items_WK]
        assert found_W == [list(range(ITEMS))] * 4

    def test_the_backbone_runs_once_whatever_the_beam(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _, model = make()
        calls: list[torch.Tensor] = []
        monkeypatch.setattr(model.backbone, "read", recording(model.backbone.read, calls))
        beam_search(model.eval(), pack(short_histories()), 30)
        assert len(calls) == 1
