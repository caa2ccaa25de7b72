"""Turn the numbers of action columns into values, by the columns' edges.

Shape legend: X exposures, A columns of actions, I items.
"""

from collections.abc import Mapping

import numpy as np

from pipeline.actions import MEDIAN, Actions


def action_values(
    actions: Actions, numbers: Mapping[str, np.ndarray], items_X: np.ndarray, medians: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Return the values of each column, uint8 [X, A].

    Args:
        numbers: float64 [X] by column, NaN where missing.
        items_X: the items of these rows.
        medians: float64 [I] of each column with the edge `median`, as `item_medians` returns it.
    """
    # edges 3, 10 and seconds 1, 3, 12, NaN -> 0 1 2 0
    columns = []
    for name, edges in zip(actions.names, actions.edges, strict=True):
        found = np.asarray(numbers[name], np.float64)
        if edges == (MEDIAN,):
            value = found > medians[name][items_X]
        else:
            value = np.searchsorted(np.asarray(edges, np.float64), found, side="right")
            value[np.isnan(found)] = 0
        columns.append(value.astype(np.uint8))
    return np.stack(columns, 1)


def item_medians(items_X: np.ndarray, numbers_X: np.ndarray, items: int) -> np.ndarray:
    """Return the median number of each item, float64 [items].

    An item without a number has the median of all numbers; without any number each median is 0. NaN is no number.
    """
    there = ~np.isnan(numbers_X)
    items_X, numbers_X = items_X[there], numbers_X[there]
    medians = np.full(items, float(np.median(numbers_X)) if len(numbers_X) else 0.0)
    # sorted by item, then number: item 4 has 1 5 9 at rows 10 to 12 -> its median is in row 11, twice
    order = np.lexsort((numbers_X, items_X))
    sorted_X = numbers_X[order]
    found, first, count = np.unique(items_X[order], return_index=True, return_counts=True)
    medians[found] = (sorted_X[first + (count - 1) // 2] + sorted_X[first + count // 2]) / 2
    return medians
