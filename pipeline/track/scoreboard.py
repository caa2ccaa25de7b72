"""The metrics as one table: the model beside what counting alone reaches. Printed, and shown on the page."""

from dataclasses import dataclass

# Row -> prefix of its keys in metrics.json; the first is named after the strategy.
SYSTEMS = {"model": "", "co-occurrence": "cooccurrence_", "popularity": "popularity_"}
SCOREBOARD_METRICS = ("recall_at_5", "recall_at_10", "ndcg_at_5", "ndcg_at_10", "mrr_at_10")
NO_TIES = "noties_"  # users whose test item has its time stamp alone, so that the log's order tells nothing
NO_TIES_METRICS = ("recall_at_10", "ndcg_at_10")


@dataclass(frozen=True)
class Cell:
    """One number, with its 95% interval where there is one."""

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Row:
    """One system: METRICS on all users, then NO_TIES_METRICS on those without a tie; None where not measured."""

    system: str
    cells: list[Cell | None]


def scoreboard_rows(metrics: dict[str, float], strategy: str) -> list[Row]:
    """The model, then the baselines."""
    return [
        Row(
            strategy if system == "model" else system,
            [_cell(metrics, prefix + name) for name in SCOREBOARD_METRICS]
            + [_cell(metrics, NO_TIES + prefix + name) for name in NO_TIES_METRICS],
        )
        for system, prefix in SYSTEMS.items()
    ]


def _cell(metrics: dict[str, float], key: str) -> Cell | None:
    if key not in metrics:
        return None
    low, high = metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
    return Cell(metrics[key], None if low is None or high is None else (low, high))


def headings() -> list[str]:
    """Of a row's cells: recall@5, ..."""
    return [name.replace("_at_", "@") for name in SCOREBOARD_METRICS + NO_TIES_METRICS]


def scoreboard_text(metrics: dict[str, float], strategy: str) -> str:
    """The table in columns of fixed width, and the model's intervals below it."""
    table = scoreboard_rows(metrics, strategy)
    first, width = max(len(row.system) for row in table) + 1, 11
    over = (
        f"{'':{first}}{'all users':>{width * len(SCOREBOARD_METRICS)}}{'without ties':>{width * len(NO_TIES_METRICS)}}"
    )
    lines = [over, f"{'':{first}}" + "".join(f"{heading:>{width}}" for heading in headings())]
    for row in table:
        lines.append(
            f"{row.system:{first}}" + "".join(f"{cell.value:{width}.4f}" if cell else " " * width for cell in row.cells)
        )
    intervals = [
        f"{heading} {cell.interval[0]:.4f} to {cell.interval[1]:.4f}"
        for heading, cell in zip(headings(), table[0].cells, strict=True)
        if cell and cell.interval
    ]
    return "\n".join([*(line.rstrip() for line in lines), f"95% intervals: {', '.join(intervals)}"])
