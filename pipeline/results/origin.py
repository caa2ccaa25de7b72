"""Say what the rows of reports/ranks.parquet were made from.

Numbers alone cannot say which model they belong to, so the file carries a content hash of the model in its schema.
"""

from dataclasses import dataclass

from pipeline.artifacts import fingerprint
from pipeline.metric_names import OVER_ITEMS, how_ranked

KEY = "sidpipe"  # key of `Origin` in the schema's metadata


@dataclass(frozen=True, kw_only=True)
class Origin:
    """An origin says what made the ranks.

    model, splits: content hashes. recipe: hash of all settings of the model but its seed. base: the same without the
    strategy and its settings, so that a strategy and its `full` have one base. protocol: how the log was split.
    """

    model: str
    splits: str
    protocol: str
    dataset: str
    backbone: str
    base: str
    strategy: str
    seed: int
    recipe: str
    beam: int
    decoding: str
    filter_seen: bool  # whether `rank` is without the items of the history
    ranking: str = "generator"  # whose ranks these are, one of RANKINGS
    views: str = ""  # content hash of all views, where `ranking` is not the generator's

    @property
    def searched(self) -> str:
        """Return how the items were found, in words."""
        over_items = self.backbone in OVER_ITEMS
        return how_ranked(self.ranking, beam=self.beam, decoding=self.decoding, over_items=over_items)

    @property
    def served(self) -> str:
        """Return the content hash of what answers by this ranking: that of the model, or of all views."""
        return self.model if self.ranking == "generator" else fingerprint(self.model, self.ranking, self.views)
