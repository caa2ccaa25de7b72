"""`ActionNetwork` trains a network to predict what a user does with an item that is shown (`train.task: ranking`).

The target of a window is an exposure. Its item is given, and its tokens are its actions: one per column, with a softmax
each. A sampler scores and skips these tokens as it does codes; no logit of an item is computed.

Shape legend: W windows, V values of a column.
"""

from torch import Tensor, nn

from pipeline.catalogue import Catalogue
from pipeline.packing.batch import Batch
from pipeline.strategies.base import Network


class ActionNetwork(Network):
    """Build the plain backbone, which has `backbone.actions`, and train its heads of actions alone."""

    predicts_items = False

    def target_widths(self, catalogue: Catalogue) -> tuple[int, ...]:
        """Return how many values each column of actions may take."""
        return catalogue.action_sizes

    def logits(self, model: nn.Module, batch: Batch) -> tuple[list[Tensor], Tensor | float]:
        """Return the logits [W, V] of each column, and no penalty."""
        return model(batch.histories, batch.targets_W, actions_only=True), 0.0
