"""An index of item vectors finds the items with the largest scores without computing the score of every item.

A network over items scores an item by the product of its vector with the state of the history. `flat` computes all
products and holds only the best; `ivf` groups the items by k-means, and computes the products of the groups nearest to
the state. It looks at the smallest power of 2 of groups by which the lists of real histories hold `ENOUGH` of
the items of the exact lists. The indexes are those of faiss, on the CPU.

Shape legend: I items, W windows, K items of a list, d width; local: Q histories by which an index is measured.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.errors import UserError
from pipeline.manifest import verify, write_bytes
from pipeline.packing.histories import Histories

INDEX = "index.faiss"  # in models/dense
EXACT_ITEMS = 200_000  # `auto` scores every item of a catalogue up to this size
ENOUGH = 0.99
LIST = 200  # items of the lists that are compared
MORE = 64  # items that are found beyond a list: of equal scores across its end, those with the smallest ids are taken
POINTS = 64  # items per group from which the groups are learned
FEWEST = 39  # items per group at least, as faiss wants it
QUERIES = 1000
BLOCK = 2**26  # scores held at once while the exact lists are made
EMPTY = -2


@dataclass(frozen=True)
class ItemIndex:
    """An `ItemIndex` holds an index of faiss over the vectors of all items; row = item id."""

    index: Any

    def search(self, states_Wd: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the items and scores [W, K] of the first k items, best first, of equal scores the smaller id first.

        Slots that nothing fills hold EMPTY and -inf: `ivf` may look at fewer than k items.
        """
        found = min(k + MORE, self.index.ntotal)
        scores_WK, items_WK = self.index.search(np.ascontiguousarray(states_Wd, np.float32), found)
        items_WK = np.where(items_WK < 0, EMPTY, items_WK)
        scores_WK = np.where(items_WK < 0, -np.inf, scores_WK)
        order_WK = np.lexsort((items_WK, -scores_WK))[:, :k]
        return np.take_along_axis(items_WK, order_WK, 1), np.take_along_axis(scores_WK, order_WK, 1)

    def write(self, folder: Path) -> None:
        """Write index.faiss; the folder's manifest is sealed by the caller."""
        write_bytes(folder / INDEX, _faiss("dense.index").serialize_index(self.index).tobytes())


@torch.no_grad()
def states_of(model: Any, items_N: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the state after each history items_N[offsets[w]:offsets[w + 1]], float32 [W, d].

    Args:
        model: a network over items, in evaluation mode.
        items_N: the items of all histories, end to end.
        offsets: where each history begins, and the end of the last one.
    """
    histories = Histories.pack(items_N, offsets, model.catalogue.codes_IL.device)
    states_Wd: np.ndarray = histories.in_input_order(model.begin(histories).states_Wd).float().cpu().numpy()
    return states_Wd


def kind_of(asked: str, items: int) -> tuple[str, str]:
    """Return (exact, flat or ivf; a line that says why, where `auto` cannot have what it wants).

    Args:
        asked: `dense.index`.
        items: of the catalogue.

    Raises:
        UserError: an index is asked for, and faiss is not installed.
    """
    if asked != "auto":
        if asked != "exact":
            _faiss(f"dense.index {asked}")
        return asked, ""
    if items <= EXACT_ITEMS:
        return "exact", ""
    try:
        _faiss("dense.index auto")
    except UserError:
        return "exact", f"dense: faiss is not installed, so all {items:,} items are scored, without an index"
    return "ivf", ""


def build_index(
    kind: str, vectors_Id: np.ndarray, states_Qd: np.ndarray, seed: int
) -> tuple[ItemIndex, dict[str, float]]:
    """Build an index, and measure it.

    Args:
        kind: `flat` or `ivf`.
        vectors_Id: float32, of all items.
        states_Qd: float32, of histories; one at least.
        seed: of the k-means.

    Returns:
        The index; its figures: `recall_at_10` and `recall_at_200`, the share of the exact first items that it finds,
        and for `ivf` `groups` and `probes`, how many of them are looked at.
    """
    faiss = _faiss(f"dense.index {kind}")
    items, width = vectors_Id.shape
    vectors_Id = np.ascontiguousarray(vectors_Id, np.float32)
    exact = _exact(vectors_Id, states_Qd, min(LIST, items))
    if kind == "flat":
        index = faiss.IndexFlatIP(width)
        index.add(vectors_Id)
        return ItemIndex(index), _recalls(ItemIndex(index), states_Qd, exact)
    groups = max(1, min(int(4 * items**0.5), items // FEWEST))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, groups, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = seed
    index.cp.max_points_per_centroid = POINTS
    index.cp.min_points_per_centroid = 1  # fewer than faiss wants cost it a warning on the terminal, and nothing else
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # the sums of the k-means depend on the number of threads
    try:
        index.train(vectors_Id)
    finally:
        faiss.omp_set_num_threads(threads)
    index.add(vectors_Id)
    built = ItemIndex(index)
    index.nprobe = 1
    while (figures := _recalls(built, states_Qd, exact))["recall_at_200"] < ENOUGH and index.nprobe < groups:
        index.nprobe = min(2 * index.nprobe, groups)
    return built, {**figures, "groups": groups, "probes": index.nprobe}


def read_index(folder: Path, items: int, width: int) -> tuple[ItemIndex | None, str]:
    """Return (the index of a folder, or None; a line that says why it is not used, where it is there).

    Raises:
        UserError: the file is damaged, or of another model.
    """
    path = folder / INDEX
    if not path.exists():
        return None, ""
    try:
        faiss = _faiss("")
    except UserError:
        return None, f"{path} is not used, because faiss is not installed: every item is scored"
    verify(path)
    try:
        index = faiss.deserialize_index(np.frombuffer(path.read_bytes(), np.uint8))
        if (index.ntotal, index.d) != (items, width):
            raise ValueError(f"it holds {index.ntotal} items of width {index.d}, the model {items} of width {width}")
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"{path} cannot be read: {' '.join(str(error).split())[:200]}",
            "the file is damaged, or another version wrote it",
            "run `dvc checkout`, or `dvc repro` to make it again",
        ) from None
    return ItemIndex(index), ""


def _exact(vectors_Id: np.ndarray, states_Qd: np.ndarray, k: int) -> np.ndarray:
    """Return the k items with the largest products for each state, best first, int64 [Q, K]."""
    rows = max(1, BLOCK // len(vectors_Id))
    found = []
    for start in range(0, len(states_Qd), rows):
        scores_QI = states_Qd[start : start + rows] @ vectors_Id.T
        best_QK = np.argpartition(-scores_QI, k - 1, axis=1)[:, :k]
        order_QK = np.lexsort((best_QK, -np.take_along_axis(scores_QI, best_QK, 1)))
        found.append(np.take_along_axis(best_QK, order_QK, 1))
    return np.concatenate(found)


def _recalls(index: ItemIndex, states_Qd: np.ndarray, exact_QK: np.ndarray) -> dict[str, float]:
    items_QK, _ = index.search(states_Qd, exact_QK.shape[1])
    shares = {}
    for k in (10, LIST):
        wanted, found = exact_QK[:, :k], items_QK[:, :k]
        hits = [len(np.intersect1d(one, other)) for one, other in zip(wanted, found, strict=True)]
        shares[f"recall_at_{k}"] = sum(hits) / wanted.size
    return shares


def _faiss(asked: str) -> Any:
    """Return faiss. Raises UserError where it is not installed."""
    try:
        import faiss
    except (ImportError, RuntimeError, OSError):  # faiss-gpu looks for CUDA's libraries while it is imported
        raise UserError(
            f"{asked} needs faiss, which is not installed or does not load",
            "faiss holds the index",
            "run `pip install -e '.[cpu]'`, or set dense.index=exact, which scores every item",
        ) from None
    return faiss
