"""The text of --history: several ids, ids with commas and quotes, blanks around them."""

import pandas as pd
import pytest

from pipeline.errors import UserError
from pipeline.evaluate.typed_history import Typed

KNOWN = pd.DataFrame({"raw_id": ["a", "b", "a, b", "i1, blue", "x,y,z", 'say "hi"', "7", "mail@home, b"]})


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("a,b", ["a", "b"]),
        (" a , b ", ["a", "b"]),
        ("a, b", ["a", "b"]),  # also an item, but its parts are items: quotes decide
        ('"a, b"', ["a, b"]),
        ('"a, b",a', ["a, b", "a"]),
        ('a, "a, b" ,b', ["a", "a, b", "b"]),
        ("i1, blue", ["i1, blue"]),
        (" i1, blue ", ["i1, blue"]),
        ("x,y,z", ["x,y,z"]),
        ("i1, blue@1700000000", ["i1, blue@1700000000"]),
        ('"i1, blue"@1700000000,a@1700000001', ["i1, blue@1700000000", "a@1700000001"]),
        ("a@1700000000,b@1700000001", ["a@1700000000", "b@1700000001"]),
        ("i1, blue,a", ["i1", "blue", "a"]),
        ('"say ""hi""",a', ['say "hi"', "a"]),
        ('say "hi",a', ['say "hi"', "a"]),
        ("a,,b,", ["a", "b"]),
        ("", []),
        (" , ", []),
        ("a\nb", ["a", "b"]),
    ],
)
def test_is_divided_at_commas_outside_quotes(text: str, entries: list[str]) -> None:
    assert Typed(text).entries(KNOWN) == entries


def test_a_quote_that_is_not_closed_is_named() -> None:
    with pytest.raises(UserError, match="a double quote is not closed"):
        Typed('a,"i1, blue').entries(KNOWN)
