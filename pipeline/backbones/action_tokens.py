"""`ActionTokens` holds the vectors of actions, and the heads that predict the next action.

An interaction is an item and what the user did with it, o_t = (item, action) in Eq. 1 of SkipGR. The action is one
number per column of the log (pipeline/artifacts.py), such as a rating's bucket, and 0 where nothing is known. It is one
token, which follows the tokens of its item: its vector is the sum of one learned row per column. The state of the
item's last token predicts the action, with one softmax per column.

Shape legend: N items of all histories, d width of the model; local: A columns, R states that are read.
"""

import torch
from torch import Tensor, nn

STD = 0.02  # of the rows and the heads at the start


class ActionTokens(nn.Module):
    """The rows and heads of all columns; column a takes the values 0 to sizes[a] - 1."""

    first_A: Tensor

    def __init__(self, sizes: tuple[int, ...], width: int):
        super().__init__()
        self.sizes = list(sizes)
        self.register_buffer("first_A", torch.tensor([sum(sizes[:a]) for a in range(len(sizes))]), persistent=False)
        self.rows = nn.Embedding(sum(sizes), width)
        self.head = nn.Linear(width, sum(sizes))

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

    def logits(self, states_Rd: Tensor) -> list[Tensor]:
        """Return the logits of each column, A tensors [R, sizes[a]], float32 or better also under autocast."""
        with torch.autocast(states_Rd.device.type, enabled=False):
            logits = self.head(states_Rd.to(self.head.weight.dtype))
        return list(torch.split(logits, self.sizes, 1))
