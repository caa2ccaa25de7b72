"""The recursive assignment network (RAN) of IntRR turns a signal into a distribution over the codes of each level.

Wang et al., "IntRR: A Framework for Integrating SID Redistribution and Length Reduction", 2026, section 3.2. The
signal is an item's UID embedding, or the backbone's state of a user. The context is a vector of what the earlier levels
passed on. The network has two modes: a level passes on a mixture of its codebook (redistribution, Eq. 6), or the vector
of a given code (teacher forcing).

Shape legend: L levels, V codes of one level, d width of the model; local: X signals (of items, windows or beams).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones.blocks import module_list

Mix = Literal["soft", "straight_through"]
Context = Literal["last", "sum"]


class Fusion(nn.Module):
    """A `Fusion` is the MLP[signal || context] of Eq. 4: 2d -> hidden -> d, ReLU.

    The first layer is split into two, one per half of its input, so that the product of a signal is computed once for
    all beams of the signal.
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
        query_Xd: Tensor = self.out(F.relu(self.signal(signal_Xd) + self.context(context_Xd)))
        return query_Xd


class RecursiveAssignmentNetwork(nn.Module):
    """A `RecursiveAssignmentNetwork` holds L codebooks of trainable vectors, and an MLP for each level but the first.

    Scores, softmax and mixtures are float32 also under autocast: rounded to bfloat16, near codes would tie.

    Args:
        widths: codes of each level.
        width: width of the model, d.
        hidden: width of the MLPs' hidden layer.
        mix: the vector that a level passes on in redistribution mode: `soft` the mixture (Eq. 6), `straight_through`
            the likeliest code's vector with the mixture's gradient.
        context: what a level sees of the levels before it: the last passed vector, or the sum of all.
    """

    def __init__(self, widths: tuple[int, ...], width: int, hidden: int, mix: Mix = "soft", context: Context = "last"):
        super().__init__()
        self.levels = len(widths)
        self.mix = mix
        self.context = context
        self.codebooks = nn.ParameterList(nn.Parameter(torch.randn(codes, width) * width**-0.5) for codes in widths)
        self.fusions = module_list(Fusion(width, hidden) for _ in widths[1:])

    def logits(self, level: int, signal_Xd: Tensor, context_Xd: Tensor | None) -> Tensor:
        """Return the logits [X, V] of a level, Eq. 4 and 5 before the softmax.

        `context_Xd` is None at level 0 (the paper's first).
        """
        query_Xd: Tensor = signal_Xd if context_Xd is None else self.fusions[level - 1](signal_Xd, context_Xd)
        codebook_Vd: Tensor = self.codebooks[level]
        with torch.autocast(codebook_Vd.device.type, enabled=False):
            return query_Xd.to(codebook_Vd.dtype) @ codebook_Vd.T

    def extend(self, context_Xd: Tensor | None, passed_Xd: Tensor) -> Tensor:
        """Return the context after one more level has passed on a vector."""
        return passed_Xd if context_Xd is None or self.context == "last" else context_Xd + passed_Xd

    def redistribute(self, signal_Xd: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Run redistribution mode; return the sum of the passed vectors [X, d], Eq. 7, and the logits of each level."""
        total_Xd: Tensor | None = None
        context_Xd: Tensor | None = None
        logits: list[Tensor] = []  # a call of list[Tensor] would break the compiled graph
        for level in range(self.levels):
            logits.append(self.logits(level, signal_Xd, context_Xd))
            passed_Xd = self._mixture(level, logits[-1])
            total_Xd = passed_Xd if total_Xd is None else total_Xd + passed_Xd
            context_Xd = self.extend(context_Xd, passed_Xd)
        assert total_Xd is not None
        return total_Xd, logits

    def _mixture(self, level: int, logits_XV: Tensor) -> Tensor:
        """Return the vector that a level passes on, [X, d], Eq. 6."""
        codebook_Vd: Tensor = self.codebooks[level]
        with torch.autocast(codebook_Vd.device.type, enabled=False):
            weights_XV = logits_XV.softmax(-1)
            if self.mix == "straight_through":
                # The value is one code's vector, and the gradient that of the mixture.
                hard_XV = F.one_hot(weights_XV.argmax(-1), len(codebook_Vd)).to(weights_XV.dtype)
                weights_XV = hard_XV + weights_XV - weights_XV.detach()
            return weights_XV @ codebook_Vd

    def teach(self, signal_Xd: Tensor, codes_XL: Tensor) -> list[Tensor]:
        """Run teacher-forcing mode; return the logits [X, V] of each level, given the true codes of earlier levels."""
        context_Xd: Tensor | None = None
        logits: list[Tensor] = []  # a call of list[Tensor] would break the compiled graph
        for level in range(self.levels):
            logits.append(self.logits(level, signal_Xd, context_Xd))
            context_Xd = self.extend(context_Xd, F.embedding(codes_XL[:, level], self.codebooks[level]))
        return logits

    def look_up(self, codes_XL: Tensor) -> Tensor:
        """Return the sum over levels of the codes' vectors, [X, d]."""
        return torch.stack(
            [F.embedding(codes_XL[:, level], codebook) for level, codebook in enumerate(self.codebooks)]
        ).sum(0)


def negative_log_likelihood(logits: list[Tensor], codes_XL: Tensor) -> Tensor:
    """Return the cross-entropy summed over levels, float32 [X]: a term of Eq. 8 or 10.

    `ops.levels.cross_entropies` is not called: a compiled graph holds this sum and would break at its kernel, and from
    five levels on it rounds otherwise, as it adds level after level.
    """
    return torch.stack(
        [
            F.cross_entropy(logits_XV.float(), codes_XL[:, level], reduction="none")
            for level, logits_XV in enumerate(logits)
        ]
    ).sum(0)
