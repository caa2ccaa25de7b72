"""A trained model at work by one ranking: what `recommend`, the export for all users and a served model answer with.

The companions of a generator lie beside its folder: `dense`, `counting` and `fusion`. models/fusion has the content
hashes of the views whose weights it holds, so that a mixture of two runs is refused.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.decoding.beam_search import Search
from pipeline.decoding.ranking import Outputs, generate_items, without_seen
from pipeline.errors import UserError
from pipeline.generator import Generator, load_retriever
from pipeline.packing.kept import KeptItems
from pipeline.printing import shown
from pipeline.results.companions import COMPANIONS
from pipeline.results.ranks import model_hash
from pipeline.views.counting import Counting
from pipeline.views.fuser import Fuser, fused_outputs, history_rows
from pipeline.views.fusion import Candidates, Listed, union
from pipeline.views.retrieval import retrieved_items
from pipeline.views.weights import FusionWeights


@dataclass(frozen=True)
class Served:
    """A `Served` answers histories by its ranking. fuser, weights: None where the generator answers alone."""

    generator: Generator
    ranking: str = "generator"
    fuser: Fuser | None = None
    weights: FusionWeights | None = None

    def width(self, beam: int) -> int:
        """Return how many items the generator's search must find for `beam` items of an answer."""
        return max(beam, self.weights.entries["generator"]) if self.weights else beam

    def generate(
        self,
        items: np.ndarray,
        offsets: np.ndarray,
        *,
        beam: int,
        drop_seen: int = 0,
        search: Search | None = None,
        times: np.ndarray | None = None,
        actions: np.ndarray | None = None,
        kept: KeptItems | None = None,
    ) -> Outputs:
        """Return the first `beam` items after each history; arguments are those of `generate_items`.

        Args:
            items: the items of all histories, end to end.
            offsets: history w is items[offsets[w]:offsets[w + 1]], one item at least.
            beam: items of an answer.
            drop_seen: above 0: the items of the history leave; a search is wider by so many slots.
            search: of the generator, `width(beam)` + `drop_seen` wide; None: a new one.
            times: seconds, the time of each item; for a generator that wants times.
            actions: the action of each item; for a generator that reads actions; None: all are 0.
            kept: the part of the histories that the generator sees; None: all.

        Returns:
            Items with scores: log-probabilities by generator or dense retriever, logarithms of an item's share of all
            counts, or of its share of the fused candidates.
        """
        if self.fuser is None or self.ranking == "generator":
            return generate_items(
                self.generator.model,
                items,
                offsets,
                beam=beam,
                drop_seen=drop_seen,
                search=search,
                times=times,
                actions=actions,
                kept=kept,
            )
        if self.ranking == "dense":
            assert self.fuser.dense is not None
            return retrieved_items(self.fuser.dense, items, offsets, beam=beam, drop_seen=drop_seen)
        codes_IL = self.generator.catalogue.codes_IL
        if self.ranking == "counting":
            assert self.fuser.counting is not None
            counted = self.fuser.counting.list(items, offsets)
            items_WE = counted.items_WE.cpu().numpy()
            codes_WEL = codes_IL.cpu().numpy()[items_WE.clip(min=0)]
            outputs = Outputs(items_WE, codes_WEL, counted.scores_WE.cpu().numpy())
            return without_seen(outputs, items, offsets, beam) if drop_seen else outputs.first(beam)
        _, candidates = self.candidates(
            items, offsets, beam=beam, drop_seen=drop_seen, search=search, times=times, actions=actions, kept=kept
        )
        seen_WM = history_rows(items, offsets, self.fuser.device) if drop_seen else None
        assert self.weights is not None
        return fused_outputs(candidates, self.weights.slopes().to(self.fuser.device), codes_IL, seen_WM, beam)

    def candidates(
        self,
        items: np.ndarray,
        offsets: np.ndarray,
        *,
        beam: int,
        drop_seen: int = 0,
        search: Search | None = None,
        times: np.ndarray | None = None,
        actions: np.ndarray | None = None,
        kept: KeptItems | None = None,
    ) -> tuple[list[Listed], Candidates]:
        """Return the lists of all views and their union; arguments are those of `generate`, for ranking `fused`."""
        assert self.fuser is not None
        width = self.width(beam) + drop_seen
        model = self.generator.model
        found = generate_items(
            model, items, offsets, beam=width, search=search, times=times, actions=actions, kept=kept
        )
        lists = self.fuser.lists(found, self.fuser.retrieve(items, offsets), items, offsets)
        return lists, union(lists)


def served_by(generator: Generator, folder: Path, ranking: str) -> Served:
    """Return the generator of `folder` with the companions that a ranking needs.

    Raises:
        UserError: a companion is missing, or belongs to another model.
    """
    if ranking == "generator":
        return Served(generator)
    if ranking not in COMPANIONS:
        raise UserError(
            f"a model answers by the ranking '{shown(ranking)}', which is not known",
            "another version evaluated it",
            "run `dvc repro` to evaluate it again",
        )
    device = generator.catalogue.codes_IL.device
    dense = _dense(folder.parent / "dense", ranking, device)
    counted = Counting.read(folder.parent / "counting") if ranking in ("counting", "fused") else None
    if ranking != "fused":
        return Served(generator, ranking, Fuser.of(generator, dense, counted))
    weights = FusionWeights.read(folder.parent / "fusion")
    fuser = Fuser.of(generator, dense if "dense" in weights.views else None, counted, weights.backward)
    here = {view: folder if view == "generator" else folder.parent / view for view in weights.views}
    for view, path in here.items():
        if fuser.views != weights.views or weights.models.get(view) != model_hash(path):
            raise UserError(
                f"{folder.parent / 'fusion'} holds weights of other models than the one in {path}",
                "a run was stopped half-way, or files of two runs were mixed",
                "run `dvc repro`, or `dvc checkout` to bring back what belongs together",
            )
    return Served(generator, ranking, fuser, weights)


def _dense(folder: Path, ranking: str, device: torch.device) -> Generator | None:
    """Return the dense retriever; None where there is none, or the ranking does without."""
    dense = load_retriever(folder, device) if ranking in ("dense", "fused") and folder.exists() else None
    if dense is None and ranking == "dense":
        raise UserError(
            f"the model answers by its dense retriever, and {folder} holds none",
            "files of two runs were mixed",
            "run `dvc repro`, or `dvc checkout` to bring back what belongs together",
        )
    return dense
