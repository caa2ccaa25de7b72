"""Define what both implementations of HSTU's attention need: the kinds of weights, and the buckets of time.

Shape legend: T positions of all sequences.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Kind = Literal["silu", "softplus"]
BUCKET_WIDTH = 0.301  # in the natural logarithm of seconds, as in HSTU's code
TIME_BUCKETS = 128
EPSILON = 1e-8  # added to the sum of softplus weights, as in IntRR's code


@dataclass(frozen=True)
class Times:
    """`Times` hold two times of each token in seconds: as a query, the time it asks from; as a key, its item's time.

    A query knows its item's time only once it knows the whole item: the code of level l < L asks from the time of the
    item before, as it will when the item is generated. The keys of its item are then later than the query: no time has
    elapsed.
    """

    asked_T: Tensor  # int64, seconds
    happened_T: Tensor  # int64, seconds


def time_buckets(elapsed: Tensor) -> Tensor:
    """Map seconds, int64 of any shape, to buckets by their logarithm; bucket 0 has up to a second and later times."""
    return (elapsed.clamp(min=1).float().log() / BUCKET_WIDTH).long().clamp_(max=TIME_BUCKETS - 1)
