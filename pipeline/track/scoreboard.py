"""Make one table of the metrics, to print and for the page: the model beside what counting alone reaches."""

from dataclasses import dataclass

from pipeline.metric_names import MAIN_METRICS, METRICS, row_labels

# Users whose test item shares its timestamp with no earlier item, so that the order of the raw file decides nothing
NO_TIES = "noties_"


@dataclass(frozen=True)
class Cell:
    """A cell is one number, with its 95% interval where there is one."""

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Row:
    """A row is one system: METRICS on all users, then MAIN_METRICS on those without a tie, where some have one.

    A cell is None where the metric was not measured.
    """

    system: str
    cells: list[Cell | None]


def has_ties(metrics: dict[str, float]) -> bool:
    """Return whether users without a tie are others than all users."""
    return metrics["noties_users"] < metrics["users"]


def scoreboard_rows(metrics: dict[str, float], strategy: str) -> list[Row]:
    """Return the rows of the model, of the model by the other rule for seen items, and of the baselines."""
    apart = MAIN_METRICS if has_ties(metrics) else ()
    return [
        Row(
            label,
            [_cell(metrics, prefix + name) for name in METRICS]
            + [_cell(metrics, NO_TIES + prefix + name) for name in apart],
        )
        for prefix, label in row_labels(metrics, strategy).items()
    ]


def _cell(metrics: dict[str, float], key: str) -> Cell | None:
    if key not in metrics:
        return None
    low, high = metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
    return Cell(metrics[key], None if low is None or high is None else (low, high))


def headings(metrics: dict[str, float]) -> list[str]:
    """Return the headings of a row's cells: recall@5, ..."""
    return [name.replace("_at_", "@") for name in METRICS + (MAIN_METRICS if has_ties(metrics) else ())]


def scoreboard_text(metrics: dict[str, float], strategy: str) -> str:
    """Return the table in columns of fixed width, and the model's intervals below it."""
    table = scoreboard_rows(metrics, strategy)
    first = max(len(row.system) for row in table) + 1
    width = 11
    apart = f"{'without ties':>{width * len(MAIN_METRICS)}}" if has_ties(metrics) else ""
    over = f"{'':{first}}{'sampled users' if 'users_in_all' in metrics else 'all users':>{width * len(METRICS)}}{apart}"
    lines = [over, f"{'':{first}}" + "".join(f"{heading:>{width}}" for heading in headings(metrics))]
    lines += [
        f"{row.system:{first}}" + "".join(f"{cell.value:{width}.4f}" if cell else " " * width for cell in row.cells)
        for row in table
    ]
    intervals = [
        f"{heading} {cell.interval[0]:.4f} to {cell.interval[1]:.4f}"
        for heading, cell in zip(headings(metrics), table[0].cells, strict=True)
        if cell and cell.interval
    ]
    return "\n".join([*(line.rstrip() for line in lines), f"95% intervals: {', '.join(intervals)}"])
