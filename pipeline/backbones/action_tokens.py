"""`ActionTokens` holds the vectors of actions, and the heads that predict the next action.

An interaction is an item and what the user did with it, o_t = (item, action) in Eq. 1 of SkipGR. The action is one
number per column of the log (pipeline/artifacts.py), such as a rating's bucket, and 0 where nothing is known. It is one
token, which follows the tokens of its item: its vector is the sum of one learned row per column, and in a network over
items the item's vector as well. The state of the item's last token predicts the action, with one softmax per column.

With `backbone.item_rows` a network over Semantic IDs has a learned row of each item too, which is added to that state:
the head of a column then sees the item itself, and not only what attention gathers from its codes. The row of an item
that training never saw counts as zeros.

Shape legend: I items of the catalogue, N items of all histories, d width of the model; local: A columns, R states that
are read.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones.item_rows import rows_of_trained

STD = 0.02  # of the rows and the heads at the start


class ActionTokens(nn.Module):
    """The rows and heads of all columns; column a takes the values 0 to sizes[a] - 1.

    Args:
        items: how many items have a row for the heads; 0: the heads see states alone.
    """

    first_A: Tensor

    def __init__(self, sizes: tuple[int, ...], width: int, items: int = 0):
        super().__init__()
        self.sizes = list(sizes)
        self.register_buffer("first_A", torch.tensor([sum(sizes[:a]) for a in range(len(sizes))]), persistent=False)
        self.rows = nn.Embedding(sum(sizes), width)
        self.head = nn.Linear(width, sum(sizes))
        self.items = nn.Parameter(torch.randn(items, width) * STD) if items else None

    def initialise(self) -> None:
        """Draw rows and heads anew, with small numbers."""
        nn.init.normal_(self.rows.weight, std=STD)
        nn.init.normal_(self.head.weight, std=STD)
        nn.init.zeros_(self.head.bias)

    def vectors(self, actions_NA: Tensor | None, items: int) -> Tensor:
        """Return the vector of each interaction's action, [N, d]; without actions all are 0 in every column."""
        if actions_NA is None:
            actions_NA = self.first_A.new_zeros(items, len(self.sizes))
        vectors_Nd: Tensor = self.rows(actions_NA + self.first_A).sum(1)
        return vectors_Nd

    def logits(self, states_Rd: Tensor, items_R: Tensor | None = None, trained_I: Tensor | None = None) -> list[Tensor]:
        """Return the logits of each column, A tensors [R, sizes[a]], float32 or better also under autocast.

        Args:
            items_R: int64, the item whose action each state predicts; read where items have rows.
            trained_I: bool, the items whose rows count; None: all.
        """
        with torch.autocast(states_Rd.device.type, enabled=False):
            states_Rd = states_Rd.to(self.head.weight.dtype)
            if self.items is not None:
                assert items_R is not None, "a network with rows of items says which item each state is about"
                states_Rd = states_Rd + rows_of_trained(F.embedding(items_R, self.items), trained_I, items_R)
            logits = self.head(states_Rd)
        return list(torch.split(logits, self.sizes, 1))
