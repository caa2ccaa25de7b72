"""A learned row of an item counts only where training saw the item: elsewhere it is a random number of the start.

Shape legend: I items of the catalogue, d width of the model; local: X rows.
"""

from torch import Tensor


def rows_of_trained(rows_Xd: Tensor, trained_I: Tensor | None, items_X: Tensor | None = None) -> Tensor:
    """Return the rows, with zeros instead of those of items that training never saw, [X, d].

    Args:
        rows_Xd: learned rows, in any float type.
        trained_I: bool, the items that training saw; None: all.
        items_X: int64, the item of each row; None: the rows are those of all items, in their order.
    """
    if trained_I is None:
        return rows_Xd
    counts_X = trained_I if items_X is None else trained_I[items_X]
    return rows_Xd * counts_X[:, None]
