"""The metrics as one table: the model beside what counting alone reaches. Printed, and shown on the page."""

from dataclasses import dataclass

METRICS = ("recall_at_5", "recall_at_10", "ndcg_at_5", "ndcg_at_10", "mrr_at_10")
# Heading -> prefix of the keys in metrics.json. noties: users whose test item shares no time stamp with the one before.
COLUMNS = {"model": "", "no ties": "noties_", "bucket": "bucket_", "popularity": "popularity_",
           "co-occurrence": "cooccurrence_"}


@dataclass(frozen=True)
class Row:
    """One metric: its cells by heading (only those that were measured), and the model's 95% interval."""

    metric: str
    cells: dict[str, float]
    interval: tuple[float, float] | None


def rows(metrics: dict[str, float]) -> list[Row]:
    """The table's rows, in the order of METRICS."""
    table = []
    for name in METRICS:
        cells = {heading: metrics[prefix + name] for heading, prefix in COLUMNS.items() if prefix + name in metrics}
        low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
        table.append(Row(name, cells, None if low is None or high is None else (low, high)))
    return table


def as_text(metrics: dict[str, float]) -> str:
    """The table in fixed-width columns."""
    lines = [f"{'':14}{'model':>9}{'95% interval':>20}" + "".join(f"{name:>15}" for name in list(COLUMNS)[1:])]
    for row in rows(metrics):
        interval = f"{row.interval[0]:.4f} to {row.interval[1]:.4f}" if row.interval else ""
        others = (f"{row.cells[name]:>15.4f}" if name in row.cells else " " * 15 for name in list(COLUMNS)[1:])
        lines.append(f"{row.metric:14}{row.cells['model']:>9.4f}{interval:>20}" + "".join(others))
    return "\n".join(line.rstrip() for line in lines)
