"""The attention mass that each key receives (RASTP, Eq. 5), out of the attention call itself."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typed import present

from pipeline.ops.attention import attention
from pipeline.ops.layout import Layout, Mass


class TestAttentionMass:
    """The mass comes out of the attention call itself. With one-hot values, the output is the weights."""

    LAYOUT = Layout.packed(torch.tensor([1, 4, 3, 6, 2]), 6, capacities_W=torch.tensor([4, 4, 4, 6, 6]))

    def weights(
        self, layout: Layout, dropout: float
    ) -> Callable[[Mass | None], tuple[torch.Tensor, torch.Tensor | None]]:
        """A call that takes a `Mass`. Its output is the weights [T, H, longest keys]; all calls drop the same."""
        torch.manual_seed(1)
        q, k = torch.randn(2, 24, 3, 6, dtype=torch.float64)
        position_S = torch.cat([torch.arange(group.keys).repeat(group.sequences) for group in layout.groups])
        v = torch.nn.functional.one_hot(position_S, 6).double()[:, None].expand(-1, 3, -1)

        def call(mass: Mass | None) -> tuple[torch.Tensor, torch.Tensor | None]:
            torch.manual_seed(2)
            return attention(q, k, v, layout, dropout=dropout, mass=mass)

        return call

    @pytest.mark.parametrize("after_dropout", [False, True])
    @pytest.mark.parametrize("padded_queries", [False, True])
    def test_is_the_sum_of_weights_over_heads_and_queries(self, after_dropout: bool, padded_queries: bool) -> None:
        dropped_THK, mass_S = self.weights(self.LAYOUT, 0.4)(Mass(after_dropout, padded_queries))
        whole_THK, _ = self.weights(self.LAYOUT, 0.0)(Mass())
        weights_TK = (dropped_THK if after_dropout else whole_THK).sum(1)
        start = 0
        for group, lengths in zip(self.LAYOUT.groups, present(self.LAYOUT.lengths_W).split([3, 2]), strict=True):
            for real in lengths.tolist():
                own = slice(start, start + group.keys)
                queries = weights_TK[own][:, : group.keys]
                expected = (queries if padded_queries else queries[:real]).sum(0)
                torch.testing.assert_close(present(mass_S)[own], expected)
                start += group.keys

    def test_asking_for_it_changes_no_output_and_costs_no_product(self) -> None:
        outputs, flops = [], []
        for mass in (None, Mass()):
            with FlopCounterMode(display=False) as counter:
                result = self.weights(self.LAYOUT, 0.2)(mass)
            outputs.append(result[0])
            flops.append(counter.get_total_flops())
        assert torch.equal(*outputs)
        assert flops[0] == flops[1] > 0

    def test_carries_no_gradient(self) -> None:
        q, k, v = torch.randn(3, 24, 3, 5, requires_grad=True)
        out, mass = attention(q, k, v, self.LAYOUT, mass=Mass())
        assert out.requires_grad
        assert not present(mass).requires_grad
