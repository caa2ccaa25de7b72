"""What both implementations of HSTU's attention need: the kinds of weights, and the buckets of time.

Shape legend: T positions of all sequences, n sequences of one group, Q positions of each of them.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Kind = Literal["silu", "softplus"]
BUCKET_WIDTH = 0.301  # of the natural logarithm of seconds, as in HSTU's code
TIME_BUCKETS = 128
EPSILON = 1e-8  # added to the sum of softplus weights, as in IntRR's code


@dataclass(frozen=True)
class Times:
    """Seconds at each token: as a query, the time it asks from; as a key, the time of its item.

    A query knows its item's time only once it knows the whole item: the code of level l < L asks from the time of the
    item before, as it will when the item is generated. Keys of the item itself then lie ahead: no time has elapsed.
    """

    asked_T: Tensor  # int64
    happened_T: Tensor  # int64


def time_buckets(elapsed: Tensor) -> Tensor:
    """Buckets of seconds, int64 of any shape: by the logarithm, one for up to a second and for times ahead."""
    return (elapsed.clamp(min=1).float().log() / BUCKET_WIDTH).long().clamp_(max=TIME_BUCKETS - 1)
