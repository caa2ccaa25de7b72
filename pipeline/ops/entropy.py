"""The entropy of distributions over codes.

Shape legend: W windows, V codes of one level.
"""

from torch import Tensor


def entropy(logp_WV: Tensor) -> Tensor:
    """Entropy of each row in nats, [W], from log-probabilities that are finite."""
    return -(logp_WV.exp() * logp_WV).sum(1)
