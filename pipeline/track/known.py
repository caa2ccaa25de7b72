"""Remember every result of the project in its scratch folder, so that a page can draw those that were tested alike.

A result that DVC restores runs no stage but this one, so `track` sees all of them. One small file per result, named by
the result's key: runs of a queue write at the same time.
"""

from pathlib import Path
from typing import Any

from pipeline.artifacts import fingerprint, read_json, write_json
from pipeline.errors import UserError
from pipeline.results.frontier_points import Point
from pipeline.results.identity import Result

FOLDER = "results"  # below the scratch folder


def remember(result: Result, params: dict[str, Any], scratch: Path) -> list[Point]:
    """Add the result, and return the points of all results that were tested as it was, this one included.

    Args:
        params: every parameter, flat.
        scratch: the project's scratch folder.
    """
    metrics = result.metrics
    keys = ("dataset", "split.protocol", "split.ties", "evaluate.beam", "evaluate.decoding")
    protocol = fingerprint([params[key] for key in keys], metrics["seen_dropped"], result.hashes["splits"])
    own = scratch / FOLDER / f"{result.key}.json"
    if not own.exists():
        name = f"{params['strategy']} {params['backbone.name']}"
        point = {"name": name, "recall": metrics["recall_at_10"], "seconds": metrics["train_seconds"]}
        write_json(own, {"protocol": protocol, **point})
    points = []
    for path in sorted(own.parent.glob("*.json")):
        try:
            known = read_json(path, protocol=str, name=str, recall=(int, float), seconds=(int, float))
        except UserError:
            continue  # a file that was cut short says nothing of a result, which is recorded elsewhere
        if known["protocol"] == protocol:
            points.append(Point(known["name"], known["recall"], known["seconds"]))
    return points
