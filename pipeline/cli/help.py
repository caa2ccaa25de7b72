"""Let `--help` read as a person would write it: no type beside a flag or an argument, and paragraphs that flow."""

import inspect
from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand, TyperGroup

NUMBER = "N"  # stands for the value of an option that takes a number


class Command(TyperCommand):
    """A `Command` is one command of the command line."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self.help = flowing(self.help)

    def get_params(self, *arguments: Any) -> Any:
        """Return the parameters with `plain` types."""
        return plain(super().get_params(*arguments))


class CommandGroup(TyperGroup):
    """A `CommandGroup` is the command line itself, whose options stand before the command."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self.help = flowing(self.help)

    def get_params(self, *arguments: Any) -> Any:
        """Return the parameters with `plain` types."""
        return plain(super().get_params(*arguments))


def plain(params: Iterable[Any]) -> list[Any]:
    """Return parameters, of which a flag shows no value, a number N, and an argument no type but what it is called."""
    found = list(params)
    for param in found:
        if param.param_type_name == "argument":
            param.display_type_rich = _nothing
        elif param.metavar is None and (param.is_flag or param.secondary_opts):
            param.metavar = ""
        elif param.metavar is None and getattr(param, "type_descriptor", None) is not None:
            numeric = param.type_descriptor.is_ranged or param.type_descriptor.annotation in (int, float)
            param.metavar = NUMBER if numeric else None
    return found


def _nothing(ctx: Any) -> None:  # noqa: ARG001 - called by keyword
    return None


def flowing(text: str | None) -> str | None:
    """Return a help text whose paragraphs are one line each, which the terminal breaks; indented lines stay."""
    if text is None:
        return None
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(part if part.startswith(" ") else " ".join(part.split("\n")) for part in paragraphs)
