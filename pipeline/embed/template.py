"""Write an item's text from its fields, by the segments of `embed.template`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.embed.config import FIELD
from pipeline.errors import UserError, nearest
from pipeline.printing import shown

# Fields that a dataset may have or lack: a field without a column is missing for all items.
STANDARD = ("title", "categories", "description", "price")


def fields_of(template: Sequence[str], columns: Iterable[str]) -> list[str]:
    """Return the item columns that the template reads.

    Raises:
        UserError: the template names a field that is neither a column nor one of title, categories, description, price.
    """
    columns = list(columns)
    named = dict.fromkeys(name for segment in template for name in FIELD.findall(segment))
    for name in named:
        if name not in columns and name not in STANDARD:
            raise UserError(
                f"embed.template names the field '{shown(name)}', which the items do not have",
                nearest(name, columns),
                "mend embed.template, or add the field to the item file",
            )
    return [name for name in named if name in columns]


def render_text(template: Sequence[str], item: Mapping[str, Any]) -> str:
    """Join the segments whose fields are all there by ". "; without such a segment the text is "".

    A field is missing when it is absent, None or blank. Runs of white space become one space.
    """
    # ("{title}", "by {brand}") of {"title": "Red  nail", "brand": None} -> "Red nail"
    words = {name: " ".join(str(value).split()) for name, value in item.items() if value is not None}
    return ". ".join(
        FIELD.sub(lambda match: words[match[1]], segment)
        for segment in template
        if all(words.get(name) for name in FIELD.findall(segment))
    )
