"""Draw recall@10 on Amazon Beauty against seconds of training, for runs of one commit that had their machine alone.

Seconds of two machines, or of two versions of the code of training, do not compare. So the picture takes the largest
set of arms that share both, and names the arms that it lacks.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.measured import METRIC, Measured, Row, of_raw, references
from benchmarks.results_tables import QUALITY
from pipeline.results.frontier_points import Point, frontier_svg

DATA = "amazon-beauty"
# Group of runs -> what its arms are called in the picture
GROUPS = {"beauty-fast": "", "beauty-fast, backbone decoder": "decoder ", "beauty-sprint": "sprint "}
WANTED = ("full", "rastp", "skipgr", "intrr", "rastp+skipgr", "intrr+skipgr", "decoder full", "decoder intrr")
LONGEST = 92  # letters of a line below the drawing
LINES = ("counting pairs", "counting pairs by direction", "SASRec, seen included")


@dataclass(frozen=True)
class Together:
    """`Together` holds arms that were timed on one machine with one version of the code of training."""

    said: str  # machine and commit
    points: list[Point]


def picture(rows: Sequence[Row], arms: Sequence[Measured]) -> str:
    """Return the SVG file.

    Args:
        rows: of raw.jsonl.
        arms: those of the campaigns.
    """
    raw = [of_raw(rows, group, arm, DATA) for group in GROUPS for arm in QUALITY[group][1]]
    found = together([*raw, *(one for one in arms if one.data == DATA)])
    names = {point.name for point in found.points}
    missing = [name for name in WANTED if name not in names]
    note = [
        "Amazon Beauty, test users. Models rank the items of the history too, counting drops them.",
        f"{found.said}; each run alone on its GPU.",
        *([f"Not timed there, and so missing: {', '.join(missing)}."] if missing else []),
    ]
    lines = {one.name.split(",")[0]: one.recall for one in references(rows, DATA) if one.name.startswith(LINES)}
    known = {name: recall for name, recall in lines.items() if recall is not None}
    note = [part for line in note for part in textwrap.wrap(line, LONGEST)]
    return frontier_svg(found.points, known, transparent=False, note=note)


def together(arms: Sequence[Measured]) -> Together:
    """Return the largest set of arms that share machine and code; of equally large ones the last."""
    sets: dict[tuple[str, str], dict[str, tuple[Measured, Row]]] = {}
    for one in arms:
        for cost in [*one.earlier, one.cost]:
            if cost is not None and one.group in GROUPS and one.mean(METRIC) is not None:
                origin = str(cost["hardware"]), str(cost.get("engine") or cost["commit"])
                sets.setdefault(origin, {})[(GROUPS[one.group] + one.arm).strip()] = one, cost
    if not sets:
        return Together("nothing was timed", [])
    (hardware, _), best = max(reversed(sets.items()), key=lambda entry: len(entry[1]))
    points = [Point(name, one.mean(METRIC) or 0.0, cost["train_seconds"]) for name, (one, cost) in best.items()]
    commits = sorted({cost["commit"] for _, cost in best.values()})
    return Together(f"{hardware}, commit {', '.join(commits)}", points)
