"""Print what became of the rows, a table, and what else a user should know of the finished stage."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.ingest.sources import Source
from pipeline.printing import say, shown
from pipeline.raw_times import DATE, LOCAL, MEANING, ORDER

MINIMUM = "minimum "  # how the step of ingest.minimum begins, in ingest.json
UNITS = ("interactions", "users", "items")  # keys of a step
LABEL = 52  # characters of a row's name


def report(summary: Mapping[str, Any], rejects: Mapping[str, int], source: Source, output: Path) -> None:
    """Print the table and the lines.

    Args:
        summary: the content of ingest.json.
        rejects: reason -> bad rows of the log.
        source: the raw files.
        output: the folder that was written.
    """
    say(
        f"{summary['users']:,} users, {summary['items']:,} items, {summary['interactions']:,} interactions "
        f"in {output}, from {summary['rows_read']:,} rows"
    )
    say(losses(summary, rejects))
    for line in _remarks(summary, source, output):
        say(line)


def losses(summary: Mapping[str, Any], rejects: Mapping[str, int]) -> str:
    """Return a table of the rows that each step leaves out; the numbers of rows add up to those that are left."""
    usable, *steps = summary["steps"]
    lines = [_line("what became of the rows", "rows", "users", "items"), _line("read", f"{summary['rows_read']:,}")]
    lines += [_line(f"bad: {reason}", f"{-count:,}") for reason, count in rejects.items()]
    if "not_wanted" in summary:
        lines.append(_line("not wanted by ingest.where", f"{-summary['not_wanted']:,}"))
    lines.append(_line("usable", *(f"{usable[unit]:,}" for unit in UNITS)))
    for before, after in zip(summary["steps"], steps, strict=False):
        lines.append(_line(_name(after["step"]), *(f"{after[unit] - before[unit]:,}" for unit in UNITS)))
    lines.append(_line("left", *(f"{summary[unit]:,}" for unit in UNITS)))
    return "\n".join(lines)


def _line(name: str, *cells: str) -> str:
    name = shown(name)
    short = name if len(name) <= LABEL else f"{name[: LABEL - 3]}..."
    return f"  {short:{LABEL}}" + "".join(f"{cell:>13}" for cell in cells)


def _name(step: str) -> str:
    """Return the name of what a step leaves out."""
    if step.startswith(MINIMUM):
        return f"below ingest.minimum: {step.removeprefix(MINIMUM)}"
    word = step.partition(" ")[0]
    return f"repeats (the {word} counts)" if word in ("earliest", "latest") else f"below {step}"


def _remarks(summary: Mapping[str, Any], source: Source, output: Path) -> Sequence[str]:
    lines = [_times_line(summary["time_format"])]
    first, last = summary["first_timestamp"], summary["last_timestamp"]
    if summary["time_format"] == ORDER and _is_day(first) and _is_day(last):
        lines.append(
            f"these times look like days without dashes, from {first} on: written as 2024-01-31 they are dates"
        )
    if summary["rejected"]:
        lines.append(f"{summary['rejected']:,} rows could not be used: {output / 'rejects.parquet'} lists them")
    lines += summary.get("never_seen", [])
    if unknown := summary.get("unknown_items"):
        lines.append(
            f"{unknown['items']:,} items with {unknown['rows']:,} rows of the log are not in {source.items_name}: "
            "they have no texts"
        )
    if summary["not_numbers"]:
        counts = _by_column(summary["not_numbers"])
        lines.append(f"values that are no number count as missing, and their rows stay: {counts}")
    if summary["ids_trimmed"]:
        lines.append(f"blanks around ids were cut off: {_by_column(summary['ids_trimmed'])}")
    if summary.get("item_copies"):
        lines.append(
            f"{summary['item_copies']:,} rows of {source.items_name} are exact copies of another and count once"
        )
    if source.vectors:
        lines.append(
            f"item vectors were taken from {source.vectors.name} by order: row i belongs to row i of "
            f"{source.items_name}, {summary['items_listed']:,} of {summary['items_listed']:,}"
        )
    lines += source.unused
    if len(source.vectors_found) > 1:
        names = ", ".join(shown(path.name) for path in source.vectors_found)
        lines.append(
            f"no item vectors were taken, because there are several files ({names}): name one of them by embed.path"
        )
    return lines


def _is_day(number: int) -> bool:
    """Tell whether a number reads as a day of 1990 to 2100 when its digits are YYYYMMDD."""
    year, rest = divmod(number, 10_000)
    month, day = divmod(rest, 100)
    return 1990 <= year <= 2100 and 1 <= month <= 12 and 1 <= day <= 31


def _times_line(form: str) -> str:
    """Say how the log's times were read, and what follows from it."""
    if form == ORDER:
        return (
            "times are a mere order (0, 1, 2, ...): split.protocol=temporal cannot divide it, and backbone.time_bias "
            "takes a step of 1 as a second; set it to false where the steps have no length"
        )
    notes = {LOCAL: ", read as UTC", DATE: ", read as UTC; a user's interactions of one day are ties (split.ties)"}
    return f"times are {MEANING[form]}{notes.get(form, '')}"


def _by_column(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} of {shown(name)}" for name, count in counts.items())
