"""Where each held-out item lands in what the model generates: the one path from a model to ranks.

Validation during training, the final evaluation and the tests all rank here, so that they cannot disagree about what
a history is, what counts as found, or how seen items leave the ranking.

Shape legend: U users ranked, W users of one batch, K places of the beam, L code levels (the deduplication digit last),
H items of the longest history of a batch, I items of the catalogue.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import torch

from pipeline.artifacts import Splits
from pipeline.backbones.beam import Stepper, beam_search, score_catalogue
from pipeline.backbones.histories import Histories

if TYPE_CHECKING:
    from pipeline.backbones.catalogue import Catalogue
    from pipeline.progress import Progress

Decoding = Literal["constrained", "unconstrained", "exact"]
INVALID = -1  # a generated SID that names no item
EMPTY = -2  # a place that holds nothing: the catalogue is smaller than the beam, or seen items were dropped


@dataclass(frozen=True)
class Ranking:
    """One row per target, in user order.

    positions_U: flat index of the target in the splits. ranks_U int64: 1-based place of the exact item in the beam,
    0 when it is not there. bucket_ranks_U: the same for the first output with the target's codes, the deduplication
    digit left aside. lengths_U: items of the history that the model saw; a target without any history cannot be
    ranked: it counts as a miss (0) and stays in every denominator. invalid_share: generated SIDs that name no item,
    out of all that were generated.
    """

    users_U: np.ndarray
    positions_U: np.ndarray
    ranks_U: np.ndarray
    bucket_ranks_U: np.ndarray
    lengths_U: np.ndarray
    invalid_share: float


@dataclass(frozen=True)
class Outputs:
    """What the model generated for a batch, best first: items_WK (INVALID, EMPTY where no item), codes_WKL."""

    items_WK: np.ndarray
    codes_WKL: np.ndarray
    scores_WK: np.ndarray


def histories_of(splits: Splits, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The at most `max_history` items before each flat position, in the sequence of the user who owns it.

    Returns:
        (items int32 flat, oldest first; offsets int64 [W + 1]): history w is items[offsets[w]:offsets[w + 1]].
    """
    index, offsets = _history_index(splits, positions)
    return np.asarray(splits.items_N)[index], offsets


def _history_index(splits: Splits, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(flat positions of the items of each target's history; offsets)."""
    positions, starts_U = np.asarray(positions, np.int64), np.asarray(splits.offsets)
    first = starts_U[np.searchsorted(starts_U, positions, side="right") - 1]
    begin = np.maximum(first, positions - splits.max_history)
    return slices(begin, positions - begin)


def rank_targets(
    model: torch.nn.Module, catalogue: "Catalogue", splits: Splits, part: str, *, beam: int,
    decoding: Decoding = "constrained", filter_seen: bool = False, batch_users: int = 256,
    device: str | torch.device = "cpu", users: np.ndarray | None = None, progress: "Progress | None" = None,
) -> Ranking:
    """Rank the held-out item of every user of `part` (`valid` or `test`).

    Args:
        beam: places of the ranking; a target below it is not found.
        decoding: beam search constrained to the catalogue, unconstrained, or `exact`: every item is scored.
        filter_seen: items of the history leave the ranking. The beam is widened by `max_history`, so that `beam`
            places remain; a target that the user already had can then not be found.
        users: rank only these (a process's share); those without a target in `part` are left out.

    The model is put into evaluation mode for the while and left in the mode it was in.
    """
    users_U, positions_U = splits.targets(part)
    if users is not None:
        chosen = np.isin(users_U, users)
        users_U, positions_U = users_U[chosen], positions_U[chosen]
    history, offsets = _history_index(splits, positions_U)
    items_N = np.asarray(splits.items_N)[history]
    times_N = np.asarray(splits.timestamps_N)[history] if cast(Stepper, model).wants_times else None
    lengths_U = np.diff(offsets)
    ranks_U, bucket_ranks_U = np.zeros_like(positions_U), np.zeros_like(positions_U)
    targets_U, codes_IL = np.asarray(splits.items_N)[positions_U], catalogue.codes_IL.cpu().numpy()
    invalid = generated = 0
    by_length = np.argsort(lengths_U, kind="stable")  # equal lengths in one batch: nothing is spent on padding
    by_length = by_length[lengths_U[by_length] > 0]
    with _evaluating(model):
        for start in range(0, len(by_length), batch_users):
            rows = by_length[start:start + batch_users]
            index, row_offsets = slices(offsets[rows], lengths_U[rows])
            outputs = generate(model, catalogue, items_N[index], row_offsets, beam=beam, decoding=decoding,
                               drop_seen=splits.max_history if filter_seen else 0, device=device,
                               times=None if times_N is None else times_N[index])
            ranks_U[rows], bucket_ranks_U[rows] = places(outputs, targets_U[rows], codes_IL)
            invalid += int((outputs.items_WK == INVALID).sum())
            generated += int((outputs.items_WK != EMPTY).sum())
            if progress is not None:
                progress.update(len(rows))
    return Ranking(users_U, positions_U, ranks_U, bucket_ranks_U, lengths_U, invalid / max(generated, 1))


@torch.no_grad()
def generate(model: torch.nn.Module, catalogue: "Catalogue", items: np.ndarray, offsets: np.ndarray, *, beam: int,
             decoding: Decoding = "constrained", drop_seen: int = 0, device: str | torch.device = "cpu",
             times: np.ndarray | None = None) -> Outputs:
    """What the model expects next after each history (flat items and offsets, none of them empty), best first.

    Args:
        drop_seen: drop the items of the history, from a beam wider by this many places. 0: keep them.
        times: seconds, when each of the items came; for a model that wants it.
    """
    stepper, histories = cast(Stepper, model), Histories.pack(items, offsets, device, times_N=times)
    width = beam + drop_seen
    if decoding == "exact":
        scores_WI = score_catalogue(stepper, histories)
        order_WK = torch.argsort(scores_WI, dim=1, descending=True, stable=True)[:, :width]
        codes_WKL = catalogue.codes_IL.to(order_WK.device)[order_WK]
        outputs = Outputs(order_WK.cpu().numpy(), codes_WKL.cpu().numpy(), scores_WI.gather(1, order_WK).cpu().numpy())
    else:
        beams = beam_search(stepper, histories, width, constrained=decoding == "constrained")
        scores_WK = beams.scores_WK.float().cpu().numpy()
        items_WK = np.where(np.isneginf(scores_WK), EMPTY, beams.items_WK.cpu().numpy())
        outputs = Outputs(items_WK, beams.codes_WKL.cpu().numpy(), scores_WK)
    return without_seen(outputs, items, offsets, beam) if drop_seen else outputs


def without_seen(outputs: Outputs, items: np.ndarray, offsets: np.ndarray, beam: int) -> Outputs:
    """The first `beam` outputs that are not in the row's history; places that cannot be filled are EMPTY."""
    lengths_W = np.diff(offsets)
    history_WH = np.full((len(lengths_W), lengths_W.max()), EMPTY, np.int64)
    history_WH[np.arange(history_WH.shape[1]) < lengths_W[:, None]] = items
    seen_WK = (outputs.items_WK[:, :, None] == history_WH[:, None, :]).any(-1)
    keep_WK = np.argsort(seen_WK, axis=1, kind="stable")[:, :beam]
    seen_WK, items_WK, scores_WK = (np.take_along_axis(array, keep_WK, 1)
                                    for array in (seen_WK, outputs.items_WK, outputs.scores_WK))
    codes_WKL = np.take_along_axis(outputs.codes_WKL, keep_WK[..., None], 1)
    return Outputs(np.where(seen_WK, EMPTY, items_WK), codes_WKL, scores_WK)


def places(outputs: Outputs, targets_W: np.ndarray, codes_IL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """1-based place of each target, and of the first output in its bucket (all codes but the last); 0: not there."""
    target_WK = outputs.items_WK == targets_W[:, None]
    bucket_WK = (outputs.codes_WKL[..., :-1] == codes_IL[targets_W, None, :-1]).all(-1)
    return _first(target_WK), _first(bucket_WK & (outputs.items_WK != EMPTY))


def _first(hits_WK: np.ndarray) -> np.ndarray:
    return np.where(hits_WK.any(1), hits_WK.argmax(1) + 1, 0)


def slices(begin: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices that gather the slices [begin, begin + length) one after another, and the offsets of the result."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], lengths), offsets


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
