"""One file per way of training; each holds only its difference from `base.Strategy`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.strategies.base import Strategy


def build_strategy(name: str) -> "Strategy":
    """The strategy that `strategy:` in params.yaml names; torch is loaded here, not when params.yaml is checked."""
    from pipeline.strategies.full import Full

    return {"full": Full}[name]()
