"""IntRR's equations, one item and one window at a time. Slow on purpose; the oracle of pipeline/strategies/intrr/."""

import numpy as np
import torch
from torch import nn
from typed import total

from pipeline.packing.histories import Histories
from pipeline.strategies.intrr.model import RecursiveModel
from pipeline.strategies.intrr.network import Fusion, RecursiveAssignmentNetwork


def level_query(
    ran: RecursiveAssignmentNetwork, level: int, signal_d: torch.Tensor, passed: list[torch.Tensor]
) -> torch.Tensor:
    """Eq. 4: what level `level` asks its codebook, given what the levels above passed on."""
    if level == 0:
        return signal_d
    fusion = ran.fusions[level - 1]
    assert isinstance(fusion, Fusion)
    context_d = passed[-1] if ran.context == "last" else torch.stack(passed).sum(0)
    weight = torch.cat([fusion.signal.weight, fusion.context.weight], 1)
    hidden = torch.relu(weight @ torch.cat([signal_d, context_d]) + fusion.signal.bias)
    return fusion.out.weight @ hidden + fusion.out.bias


def walk(
    ran: RecursiveAssignmentNetwork, signal_d: torch.Tensor, codes: list[int] | None = None
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(distribution of each level, what each passed on): teacher-forced where `codes` are given, else Eq. 6."""
    distributions: list[torch.Tensor] = []
    passed: list[torch.Tensor] = []
    for level in range(ran.levels):
        codebook = ran.codebooks[level]
        scores = torch.stack([level_query(ran, level, signal_d, passed) @ vector_d for vector_d in codebook])
        p = scores.exp() / scores.exp().sum()  # Eq. 5
        distributions.append(p)
        if codes is not None:
            passed.append(codebook[codes[level]])
            continue
        if ran.mix == "straight_through":
            p = torch.eye(len(p), dtype=p.dtype)[p.argmax()] + p - p.detach()
        passed.append(sum(weight * vector_d for weight, vector_d in zip(p, codebook, strict=True)))
    return distributions, passed


def cost(distributions: list[torch.Tensor], codes: list[int]) -> torch.Tensor:
    """The inner sum of Eq. 8 and 10."""
    return -total(p[code].log() for p, code in zip(distributions, codes, strict=True))


def signal(model: RecursiveModel, number: int) -> torch.Tensor:
    """An item's row of the UID table in the model's width, and its content vector mapped there."""
    signal_d = model.uid.weight[number]
    if isinstance(model.uid_out, nn.Linear):
        signal_d = model.uid_out.weight @ signal_d
    if model.settings.uid_content:
        assert model.uid_content is not None
        assert model.catalogue.content_IC is not None
        content_C = model.catalogue.content_IC[number]
        signal_d = signal_d + torch.stack([total(row_C * content_C) for row_C in model.uid_content.weight])
    return signal_d


def item(model: RecursiveModel, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(Eq. 7's vector of an item, its term of Eq. 8)."""
    ran = model.items_ran if model.items_ran is not None else model.ran
    codes = model.catalogue.codes_IL[number].tolist()
    forced = codes if model.settings.ablation == "no_redistribution" else None
    distributions, passed = walk(ran, signal(model, number), forced)
    return torch.stack(passed).sum(0), cost(distributions, codes)


def state(model: RecursiveModel, history: list[int]) -> torch.Tensor:
    """Eq. 9 for one window."""
    vectors = torch.stack([item(model, number)[0] for number in history])
    return model.backbone.read(vectors, Histories.pack(torch.tensor(history).numpy(), np.array([0, len(history)])))[0]


def target(model: RecursiveModel, state_d: torch.Tensor, number: int) -> torch.Tensor:
    """The target's term of Eq. 10."""
    codes = model.catalogue.codes_IL[number].tolist()
    forced = None if model.training and model.settings.ablation == "no_teacher_forcing" else codes
    return cost(walk(model.ran, state_d, forced)[0], codes)


def losses(model: RecursiveModel, windows: list[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(L_rec's sum over (history, target) windows, mean over items of L_aln as `alignment_items` says)."""
    recommendation = total(target(model, state(model, history), number) for history, number in windows)
    seen = [number for history, _ in windows for number in history]
    counted = {"batch_distinct": sorted(set(seen)), "batch_occurrences": seen, "all": range(model.catalogue.items)}[
        model.settings.alignment_items
    ]
    return recommendation, total(item(model, number)[1] for number in counted) / len(counted)


def uid_norm(model: RecursiveModel, windows: list[tuple[list[int], int]]) -> torch.Tensor:
    """The mean over the distinct items of the histories of (mean square of the UID - 1)^2."""
    seen = sorted({number for history, _ in windows for number in history})
    squares = [total(value**2 for value in model.uid.weight[number]) / model.uid.embedding_dim for number in seen]
    return total((square - 1) ** 2 for square in squares) / len(seen)
