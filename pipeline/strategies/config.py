"""Names of the strategies and which of them compose. Light on purpose: checking params.yaml must not load torch.

A strategy with parameters of its own adds its frozen dataclass here and its section to params.yaml.
"""

STRATEGIES = {
    "full": "every token of every window, nothing skipped: the baseline of all comparisons",
}
# Pairs that may stand together in `strategy: a+b`.
COMPOSITIONS: set[frozenset[str]] = set()
# Pairs refused for a reason worth telling.
REFUSED: dict[frozenset[str], str] = {}


def parse_strategy(text: str) -> tuple[str, ...]:
    """`"skipgr+rastp"` -> `("rastp", "skipgr")`: the names in normal (alphabetical) order.

    Raises:
        ValueError: an unknown name, a repeated one, or a combination that means nothing.
    """
    from pipeline.errors import nearest

    names = text.split("+")
    for name in names:
        if name not in STRATEGIES:
            raise ValueError(f"strategy '{name}' is not known, {nearest(name, STRATEGIES)}")
    if len(set(names)) < len(names):
        raise ValueError(f"strategy '{text}' names one strategy twice")
    if len(names) > 1 and "full" in names:
        raise ValueError(f"strategy '{text}': full means that nothing is skipped, so it combines with nothing")
    if len(names) > 1 and frozenset(names) not in COMPOSITIONS:
        reason = REFUSED.get(frozenset(names), "no rule says what the combination would do")
        raise ValueError(f"strategy '{text}' cannot be combined: {reason}")
    return tuple(sorted(names))
