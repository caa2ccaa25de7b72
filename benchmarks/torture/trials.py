"""All trials, in an order that the seed decides."""

import random

from benchmarks.torture.bounds import bounds_of_knobs
from benchmarks.torture.files import damages, full_disks, knobs
from benchmarks.torture.servers import hostile_servers
from benchmarks.torture.signals import signals_by_hand, signals_queue, signals_repro
from benchmarks.torture.trial import Trial, World


def all_trials(world: World, seed: int) -> list[Trial]:
    """Return every trial. The first of them are a random sample of all parts, with more of those that take less time.

    The number beside a part is how many of its trials come in the time of one queued run.
    """
    parts = [
        (1, signals_queue()),
        (2, signals_repro()),
        (8, signals_by_hand()),
        (8, full_disks()),
        (5, knobs(world)),
        (10, bounds_of_knobs()),
        (3, hostile_servers()),
        (40, damages(world)),
    ]
    order = []
    for share, part in parts:
        trials = list(part)
        random.Random(seed).shuffle(trials)
        order += [(number / share, trial) for number, trial in enumerate(trials)]
    return [trial for _, trial in sorted(order, key=lambda entry: entry[0])]
