"""What a dataclass declares of its keys: types, choices, bounds, defaults, documentation and sections."""

import dataclasses
from typing import Annotated, Literal

import pytest

from common.config.keys import Key, Range, find_problem, keys_of


@dataclasses.dataclass
class Config:
    place: str
    """A folder."""

    # Numbers: Each has
    # bounds.
    rate: Annotated[float, Range(0, 1, above=True)] = 0.5
    """Share of
    something."""
    rows: Annotated[int | None, Range(1, 2048)] = None
    """Rows."""

    # Words
    kind: Literal["a", "b"] | None = None
    """Kind."""
    deep: bool | Literal["partly"] = False
    """How deep."""
    names: str | list = dataclasses.field(default_factory=list)
    """Names."""


def test_keys_of_a_dataclass():
    numbers = "Numbers: Each has bounds."
    assert keys_of(Config) == [
        Key("place", (str,), None, None, None, "A folder.", ""),
        Key("rate", (float,), None, Range(0, 1, above=True), "0.5", "Share of something.", numbers),
        Key("rows", (int, type(None)), None, Range(1, 2048), "null", "Rows.", numbers),
        Key("kind", (str, type(None)), ("a", "b", None), None, "null", "Kind.", "Words"),
        Key("deep", (bool, str), (False, True, "partly"), None, "false", "How deep.", "Words"),
        Key("names", (str, list), None, None, "[]", "Names.", "Words"),
    ]


def test_allowed_values_in_words():
    assert [key.allowed() for key in keys_of(Config)] == [
        "",
        "above 0 and at most 1",
        "1 to 2,048",
        "one of a, b, null",
        "one of false, true, partly",
        "",
    ]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"rate": 1.0, "rows": 2048, "kind": "b", "deep": "partly"}, None),
        ({"rate": 0.0}, ("rate", "must be above 0")),
        ({"rate": float("nan")}, ("rate", "must be above 0")),
        ({"rows": 2049}, ("rows", "must be at most 2,048, or null")),
        ({"kind": "c"}, ("kind", "must be one of 'a', 'b', null")),
        ({"deep": "fully"}, ("deep", "must be one of false, true, 'partly'")),
    ],
)
def test_the_first_value_that_is_not_allowed(changes: dict, problem: tuple[str, str] | None):
    assert find_problem(Config("here", **changes)) == problem
