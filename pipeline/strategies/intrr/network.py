"""The recursive assignment network (RAN) of IntRR: from a signal to a distribution over the codes of each level.

Wang et al., "IntRR: A Framework for Integrating SID Redistribution and Length Reduction", 2026, section 3.2. The
signal is what is known of an item (its UID embedding) or of a user (the backbone's state); the context is what the
levels above came to. One network, two modes: what a level passes on is a mixture of its codebook (redistribution, Eq.
6) or the vector of a given code (teacher forcing).

Shape legend: X signals (of items, windows or beams), d model width, L code levels, V codes of one level.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Mix = Literal["soft", "straight_through"]
Context = Literal["last", "sum"]


class Fusion(nn.Module):
    """MLP[signal || context] of Eq. 4: 2d -> hidden -> d, ReLU.

    The first layer is two, one per half of its input: the half of a signal is then computed once for all its beams.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.signal = nn.Linear(width, hidden)
        self.context = nn.Linear(width, hidden, bias=False)
        self.out = nn.Linear(hidden, width)
        with torch.no_grad():
            for layer, inputs in ((self.signal, 2 * width), (self.context, 2 * width), (self.out, hidden)):
                layer.weight.normal_(std=inputs**-0.5)
            for layer in (self.signal, self.out):
                layer.bias.zero_()

    def forward(self, signal_Xd: Tensor, context_Xd: Tensor) -> Tensor:
        return self.out(F.relu(self.signal(signal_Xd) + self.context(context_Xd)))


class RecursiveAssignmentNetwork(nn.Module):
    """L codebooks of trainable vectors, and an MLP for every level but the first.

    Scores, softmax and mixtures are float32 also under autocast: rounded to bfloat16, near codes would tie.

    Args:
        widths: codes of each level.
        width: of the model, d.
        hidden: of the MLPs.
        mix: what an item's level passes on in redistribution mode: the mixture (Eq. 6), or the likeliest code's vector
            with the mixture's gradient.
        context: what the next level sees of those above it: the last one, or the sum of all.
    """

    def __init__(self, widths: tuple[int, ...], width: int, hidden: int, mix: Mix = "soft", context: Context = "last"):
        super().__init__()
        self.levels, self.mix, self.context = len(widths), mix, context
        self.codebooks = nn.ParameterList(nn.Parameter(torch.randn(codes, width) * width**-0.5) for codes in widths)
        self.fusions = nn.ModuleList(Fusion(width, hidden) for _ in widths[1:])

    def logits(self, level: int, signal_Xd: Tensor, context_Xd: Tensor | None) -> Tensor:
        """Eq. 4 and 5 before the softmax, [X, V]. `context_Xd` is None at level 0 (the paper's first)."""
        query_Xd = signal_Xd if context_Xd is None else self.fusions[level - 1](signal_Xd, context_Xd)
        codebook_Vd = self.codebooks[level]
        with torch.autocast(codebook_Vd.device.type, enabled=False):
            return query_Xd.to(codebook_Vd.dtype) @ codebook_Vd.T

    def extend(self, context_Xd: Tensor | None, passed_Xd: Tensor) -> Tensor:
        """The context after one more level passed something on."""
        return passed_Xd if context_Xd is None or self.context == "last" else context_Xd + passed_Xd

    def redistribute(self, signal_Xd: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Redistribution mode: (sum over levels of what each passes on [X, d], Eq. 7; the logits of each level)."""
        total_Xd: Tensor | None = None
        context_Xd, logits = None, []
        for level in range(self.levels):
            logits.append(self.logits(level, signal_Xd, context_Xd))
            passed_Xd = self._mixture(level, logits[-1])
            total_Xd = passed_Xd if total_Xd is None else total_Xd + passed_Xd
            context_Xd = self.extend(context_Xd, passed_Xd)
        assert total_Xd is not None
        return total_Xd, logits

    def _mixture(self, level: int, logits_XV: Tensor) -> Tensor:
        codebook_Vd = self.codebooks[level]
        with torch.autocast(codebook_Vd.device.type, enabled=False):
            weights_XV = logits_XV.softmax(-1)
            if self.mix == "straight_through":
                hard_XV = F.one_hot(weights_XV.argmax(-1), len(codebook_Vd)).to(weights_XV.dtype)
                weights_XV = hard_XV + weights_XV - weights_XV.detach()
            return weights_XV @ codebook_Vd

    def teach(self, signal_Xd: Tensor, codes_XL: Tensor) -> list[Tensor]:
        """Teacher-forcing mode: the logits of each level, [X, V], each knowing the true codes above it."""
        context_Xd, logits = None, []
        for level in range(self.levels):
            logits.append(self.logits(level, signal_Xd, context_Xd))
            context_Xd = self.extend(context_Xd, F.embedding(codes_XL[:, level], self.codebooks[level]))
        return logits

    def look_up(self, codes_XL: Tensor) -> Tensor:
        """Sum over levels of the codes' vectors, [X, d]."""
        return torch.stack(
            [F.embedding(codes_XL[:, level], codebook) for level, codebook in enumerate(self.codebooks)]
        ).sum(0)


def negative_log_likelihood(logits: list[Tensor], codes_XL: Tensor) -> Tensor:
    """Cross-entropy summed over levels, float32 [X]: a term of Eq. 8 or 10."""
    return torch.stack(
        [
            F.cross_entropy(logits_XV.float(), codes_XL[:, level], reduction="none")
            for level, logits_XV in enumerate(logits)
        ]
    ).sum(0)
