"""One file per way of training; each holds only its difference from `base.Strategy`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.strategies.config import settings_of

if TYPE_CHECKING:
    from pipeline.strategies.base import Strategy


def build_strategy(name: str, sections: Mapping[str, Any], pad_to: int = 0) -> "Strategy":
    """The strategy that `strategy:` in params.yaml names; torch is loaded here, not when params.yaml is checked.

    Args:
        sections: settings of the strategies that have some, by name: dataclasses, or their plain values. The others
            are not looked at.
        pad_to: encoder positions of every window of a padded run, 0 for packed.
    """
    from pipeline.strategies.full import Full
    from pipeline.strategies.intrr.strategy import Intrr
    from pipeline.strategies.rastp.strategy import Rastp
    from pipeline.strategies.skipgr.strategy import skipgr

    settings = settings_of(name, sections)
    strategy: Strategy = Full()
    if "rastp" in settings:
        strategy = Rastp(settings["rastp"], pad_to)
    elif "intrr" in settings:
        strategy = Intrr(settings["intrr"])
    return skipgr(settings["skipgr"], strategy) if "skipgr" in settings else strategy
