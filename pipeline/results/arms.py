"""Group runs into arms, put arms of one protocol side by side, and choose what each arm is compared with.

An arm holds runs that differ in the seed only. Two arms may be compared where both were evaluated by one protocol, on
the same users and test items. The reference of a strategy is `full` on the same backbone; of several, the one whose
other settings differ least. Where there is none, an arm is compared with nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.artifacts import fingerprint
from pipeline.errors import UserError
from pipeline.results.predictions import Predictions
from pipeline.results.runs import BASELINE, USAGE, Run, listed, read_run, runs_here
from pipeline.results.shaping import shaping
from pipeline.strategies.registry import settings_types

# What may differ between two runs without making them two kinds of model
BESIDE_THE_POINT = ("seed", "evaluate", "track", "train.threads", "train.checkpoint_every", "train.device")


@dataclass(frozen=True)
class Arm:
    """An arm holds the runs of one side of a comparison: they differ in their seed only, and are sorted by it."""

    name: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.ranks.origin.seed for run in self.runs)

    @property
    def strategy(self) -> str:
        return self.runs[0].ranks.origin.strategy

    @property
    def backbone(self) -> str:
        return self.runs[0].ranks.origin.backbone

    @property
    def is_baseline(self) -> bool:
        """Return whether the commit's own result is among the runs."""
        return any(run.name == BASELINE for run in self.runs)


@dataclass(frozen=True)
class Match:
    """A match is an arm with its reference; None: it is compared with nothing.

    differ: settings other than the strategy in which the two differ; None: they differ, and no file says in which.
    """

    arm: Arm
    reference: Arm | None
    differ: tuple[str, ...] | None = ()


@dataclass(frozen=True)
class ProtocolGroup:
    """A group holds the arms that were evaluated by one protocol, on the same users and items."""

    protocol: str
    matches: tuple[Match, ...]


def groups_of(arguments: Sequence[str]) -> tuple[list[ProtocolGroup], list[str]]:
    """Return the groups of the runs that the command line names, and lines about runs that are left out.

    `NAME=RUN,RUN` is an arm as it stands; other runs fall into arms by all but the seed. With arguments, the first arm
    is the reference of its group. Without, the commit's own result, its experiments and the workspace are compared, and
    every arm has the reference that suits it.

    Raises:
        UserError: a run cannot be found or read, one is in two arms, or there is only one arm.
    """
    notes: list[str] = []
    if arguments:
        named = [(name, run) for argument in arguments for name, run in _read(argument)]
    else:
        runs, notes = runs_here()
        named = [("", run) for run in sorted(runs, key=lambda run: run.made)]
    # protocol -> settings -> runs. A dict holds its keys in the order in which they came.
    sorted_in: dict[tuple[str, ...], dict[tuple[str, ...], list[Run]]] = {}
    for name, run in named:
        arms = sorted_in.setdefault(protocol_of(run), {})
        arms.setdefault((name,) if name else _settings_key(run), []).append(run)
    groups: list[ProtocolGroup] = []
    for arms in sorted_in.values():
        found = []
        for name, (key, members) in zip(_names(arms), arms.items(), strict=True):
            newest = _newest(members, name, notes, by_hand=len(key) == 1)
            found.append(Arm(name, tuple(sorted(newest, key=lambda run: run.ranks.origin.seed))))
        _check_apart(found)
        by_hand = found[0] if arguments and not groups else None
        words = _protocol_words([run for arm in found for run in arm.runs])
        groups.append(ProtocolGroup(words, tuple(matches(found, by_hand))))
    arms_found = [match.arm for group in groups for match in group.matches]
    if len(arms_found) < 2:
        arm = arms_found[0] if arms_found else None
        only = f"one arm: {arm.name}, seed {listed(arm.seeds)}" if arm else "no run"
        raise UserError(
            f"there is nothing to compare, only {only}", "\n".join(["a comparison needs two", *notes]), USAGE
        )
    return groups, notes


def _read(argument: str) -> list[tuple[str, Run]]:
    """Return the runs of one argument, each with the name of the arm that the user gives it; empty for none."""
    name, named, members = argument.partition("=")
    if not named:
        return [("", read_run(argument))]
    return [(name, read_run(member)) for member in members.split(",")]


def protocol_of(run: Run) -> tuple[str, ...]:
    """Return what must be equal for two runs to be compared.

    A network over items is compared with one over Semantic IDs that was evaluated by the same settings.
    """
    origin = run.ranks.origin
    tested = (origin.dataset, origin.protocol, run.ranks.targets)
    if isinstance(run.ranks, Predictions):
        return tested
    return (*tested, str(origin.beam), origin.decoding, str(origin.filter_seen))


def _protocol_words(runs: Sequence[Run]) -> str:
    """Say how runs of one protocol were evaluated."""
    ranks, origin = runs[0].ranks, runs[0].ranks.origin
    if isinstance(ranks, Predictions):
        tested_on = f"{len(ranks.exposures):,} test exposures of {ranks.users:,} users"
        return f"{origin.dataset}: {tested_on}, {origin.protocol}"
    ways = dict.fromkeys(run.ranks.origin.searched for run in runs)
    return (
        f"{origin.dataset}: {len(ranks.users):,} users, {origin.protocol}, {' or '.join(ways)}, "
        f"seen items {'dropped' if origin.filter_seen else 'included'}"
    )


def _settings_key(run: Run) -> tuple[str, ...]:
    """Return what is equal for runs that differ in the seed only, also where they are of different versions."""
    origin = run.ranks.origin
    settings = shaping(run.settings, origin.strategy, (*BESIDE_THE_POINT, "dense"))
    # Where no file says the settings, the hash of the model's config.json stands for them.
    return origin.strategy, origin.backbone, fingerprint(settings) if settings else origin.recipe


def _names(arms: Mapping[tuple[str, ...], Sequence[Run]]) -> list[str]:
    """Name each arm as the user said, or by strategy and backbone, and by its runs where these are shared."""
    backbones = {run.ranks.origin.backbone for runs in arms.values() for run in runs}
    plain = [_plain(key, len(backbones) > 1) for key in arms]
    return [
        name if plain.count(name) == 1 else f"{name} ({'+'.join(run.name for run in runs)})"
        for name, runs in zip(plain, arms.values(), strict=True)
    ]


def _plain(key: tuple[str, ...], say_backbone: bool) -> str:
    if len(key) == 1:
        return key[0]
    return f"{key[0]} {key[1]}" if say_backbone else key[0]


def _newest(runs: Iterable[Run], name: str, notes: list[str], *, by_hand: bool) -> list[Run]:
    """Return one run of each seed, the newest, and add a line to `notes` for each other one."""
    newest: dict[int, Run] = {}
    for run in sorted(runs, key=lambda run: run.made):
        seed = run.ranks.origin.seed
        if seed in newest and newest[seed].identity != run.identity:
            alike = f"seed {seed} of arm {name}" if by_hand else f"settings and seed of {run.name}"
            notes.append(f"left out: {newest[seed].name} ({alike}, which is newer: {run.name})")
        newest[seed] = run
    return list(newest.values())


def _check_apart(arms: Sequence[Arm]) -> None:
    """Refuse arms that have a run in common. Raises UserError."""
    arm_of: dict[tuple[str, ...], Arm] = {}
    for arm in arms:
        for run in arm.runs:
            other = arm_of.setdefault(run.identity, arm)
            if other is not arm:
                raise UserError(
                    f"{run.name} would be compared with itself: {other.name} and {arm.name} hold the same evaluation",
                    "a run does not differ from itself, whatever its names are",
                    USAGE,
                )


def matches(arms: Sequence[Arm], by_hand: Arm | None) -> list[Match]:
    """Give each arm its reference: the one that the user named first, or the `full` that differs least."""
    if by_hand is not None:
        return [
            Match(by_hand, None),
            *(Match(arm, by_hand, _differ(arm, by_hand)) for arm in arms if arm is not by_hand),
        ]
    found = []
    for backbone in dict.fromkeys(arm.backbone for arm in arms):
        here = [arm for arm in arms if arm.backbone == backbone]
        plain = sorted((arm for arm in here if arm.strategy == "full"), key=lambda arm: not arm.is_baseline)
        for arm in [*plain, *(arm for arm in here if arm.strategy != "full")]:
            # The first `full`, the commit's own where it is one, is the reference of the others.
            candidates = plain if arm.strategy != "full" else plain[:1] if arm is not plain[0] else []
            reference = min(candidates, key=lambda other: _distance(arm, other), default=None)
            found.append(Match(arm, reference, _differ(arm, reference) if reference else ()))
    return found


def _distance(arm: Arm, other: Arm) -> tuple[bool, int]:
    """Return how far two arms are apart beside the strategy; smaller is nearer."""
    differ = _differ(arm, other)
    return differ is None or bool(differ), len(differ or ())


def _differ(arm: Arm, other: Arm) -> tuple[str, ...] | None:
    """Return the settings beside the strategy in which two arms differ; None: they do, and no file says in which."""
    one, two = arm.runs[0], other.runs[0]
    if not one.settings or not two.settings:
        return () if one.ranks.origin.base == two.ranks.origin.base else None
    skipped = (*BESIDE_THE_POINT, "strategy", *settings_types())
    mine, theirs = (shaping(run.settings, run.ranks.origin.strategy, skipped) for run in (one, two))
    return tuple(sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)))
