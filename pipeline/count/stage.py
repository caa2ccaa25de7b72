"""Stage count makes models/counting from the training part: popularity, and the neighbours of every item.

The counting baselines of `evaluate` read it, and so does whatever serves them: nobody else reads the log for that.
"""

from pathlib import Path
from typing import Protocol

from pipeline.artifacts import SPLITS, Splits, fingerprint
from pipeline.printing import say
from pipeline.views.counting import COUNTING, RULES, Counting, count_and_choose


class CountingKeys(Protocol):
    """`CountingKeys` declares the keys of `evaluate:` that say what is counted."""

    @property
    def cooccurrence_window(self) -> int: ...

    @property
    def cooccurrence_neighbours(self) -> int: ...


class CountParams(Protocol):
    """`CountParams` declares what this stage reads of params.yaml."""

    @property
    def evaluate(self) -> CountingKeys: ...


def run(params: CountParams, *, splits: Path = SPLITS, output: Path = COUNTING) -> Counting:
    """Count pairs of items, choose the rules of the baselines on validation, and write the folder.

    Raises:
        UserError: the splits are missing or damaged.
    """
    keys = params.evaluate
    output.parent.mkdir(parents=True, exist_ok=True)
    counted = count_and_choose(
        Splits.read(splits),
        window=keys.cooccurrence_window,
        neighbours=keys.cooccurrence_neighbours,
        name=fingerprint(splits),
        folder=output.parent,
    )
    counted.write(output)
    facts = counted.facts
    left_out = f", {facts['pairs_left_out']:,} light ones left out" if facts["pairs_left_out"] else ""
    drops = facts["drop_seen"]["cooccurrence"]
    say(
        f"{facts['pairs']:,} pairs of items at most {facts['window']} steps apart{left_out}; on validation "
        f"co-occurrence ranks better with {RULES[drops].replace('_', ' items ')}, and a pair in the other order counts "
        f"{facts['backward'][RULES[drops]]:g}"
    )
    return counted
