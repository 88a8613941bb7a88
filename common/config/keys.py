"""The keys of a configuration, as a dataclass declares them.

A field is the one source of a key: its type, its bounds (`Annotated[int, Range(1, 100)]`) or its choices
(`Literal["a", "b"]`), its default, the docstring below it, and the comment that opens its section:

    # Optimisation: The defaults are those of the paper.
    optimizer: Literal["adamw", "stable_adamw"] = "adamw"
    "Optimiser."

Validation, error messages, `--help` and docs/configuration.md all read it from there.
"""

import ast
import dataclasses
import functools
import inspect
import json
import math
import textwrap
import types
import typing
from typing import Any


TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
    types.NoneType: "null",
}
YAML_NAMES: dict[Any, str] = {None: "null", False: "false", True: "true"}


@dataclasses.dataclass(frozen=True)
class Range:
    """From `low` to `high`, both included unless said otherwise. What is not a number lies in no range.

    Args:
        above: whether `low` itself is too low.
        below: whether `high` itself is too high.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False

    def problem(self, value: float) -> str | None:
        """What a value must be, if it is not."""
        if not (value > self.low or (value == self.low and not self.above)):
            return f"must be {self._lower()}"
        if not (value < self.high or (value == self.high and not self.below)):
            return f"must be {self._upper()}"
        return None

    def __str__(self) -> str:
        if math.isinf(self.high):
            return self._lower()
        if self.above or self.below:
            return f"{self._lower()} and {self._upper()}"
        return f"{_written(self.low)} to {_written(self.high)}"

    def _lower(self) -> str:
        return f"{'above' if self.above else 'at least'} {_written(self.low)}"

    def _upper(self) -> str:
        if math.isinf(self.high):
            return "finite"
        return f"{'below' if self.below else 'at most'} {_written(self.high)}"


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of a configuration.

    Args:
        name: of the key.
        types: of its values.
        choices: all its values, where they are few.
        limits: of its values, where they are numbers.
        default: as YAML; None where the key is needed.
        doc: what it means.
        section: the comment above the first key of its section.
    """

    name: str
    types: tuple[type, ...]
    choices: tuple | None
    limits: Range | None
    default: str | None
    doc: str
    section: str

    def problem(self, value: Any) -> str | None:
        """What a value of the right type must be, if it is not."""
        if self.choices is not None and value not in self.choices:
            return f"must be one of {', '.join(YAML_NAMES.get(choice, repr(choice)) for choice in self.choices)}"
        if self.limits is not None and value is not None and (problem := self.limits.problem(value)):
            return problem + (", or null" if types.NoneType in self.types else "")
        return None

    def allowed(self) -> str:
        """Choices or bounds of the values in words; '' where there are none."""
        if self.choices is not None:
            return f"one of {', '.join(YAML_NAMES.get(choice, choice) for choice in self.choices)}"
        return "" if self.limits is None else str(self.limits)


@functools.cache
def keys_of(config_class: type) -> list[Key]:
    """The keys that a dataclass declares, in their order."""
    hints = typing.get_type_hints(config_class, include_extras=True)
    docs, sections = _read_source(config_class)
    keys = []
    for field in dataclasses.fields(config_class):
        hint, *extras = typing.get_args(hints[field.name]) if _is_annotated(hints[field.name]) else [hints[field.name]]
        keys.append(
            Key(
                name=field.name,
                types=types_of(hint),
                choices=_choices(hint),
                limits=next((extra for extra in extras if isinstance(extra, Range)), None),
                default=_default(field),
                doc=docs.get(field.name, ""),
                section=sections.get(field.name, ""),
            )
        )
    return keys


def find_problem(config: object) -> tuple[str, str] | None:
    """The first key whose value is none of its choices or out of its bounds, and what it must be."""
    config_class: type = type(config)
    for key in keys_of(config_class):
        if problem := key.problem(getattr(config, key.name)):
            return key.name, problem
    return None


def types_of(hint: Any) -> tuple[type, ...]:
    """The types of a field's values, each once."""
    found = [type(part) if _is_choice(part) else part for part in _alternatives(hint)]
    return tuple(dict.fromkeys(found))


def _choices(hint: Any) -> tuple | None:
    parts = _alternatives(hint)
    if not any(map(_is_choice, parts)):
        return None
    expanded = {bool: (False, True), types.NoneType: (None,)}
    return tuple(value for part in parts for value in (expanded[part] if isinstance(part, type) else (part,)))


def _alternatives(hint: Any) -> tuple:
    """The types and the literal values that a type hint names."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return tuple(part for inner in typing.get_args(hint) for part in _alternatives(inner))
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else (hint,)


def _is_choice(part: Any) -> bool:
    return not isinstance(part, type) and part is not Any


def _is_annotated(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Annotated


def _read_source(config_class: type) -> tuple[dict[str, str], dict[str, str]]:
    """The docstring below each field of a dataclass, and the comment that opens its section."""
    source = textwrap.dedent(inspect.getsource(config_class))
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.ClassDef)
    lines = [line.strip() for line in source.splitlines()]
    docs: dict[str, str] = {}
    sections: dict[str, str] = {}
    name, section, end = "", "", definition.lineno
    for statement in definition.body:
        between = [line.removeprefix("#").strip() for line in lines[end : statement.lineno - 1] if line[:1] == "#"]
        section = " ".join(between) or section
        end = statement.end_lineno or statement.lineno
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            name = statement.target.id
            sections[name] = section
        elif name and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            docs[name] = " ".join(str(statement.value.value).split())
    return docs, sections


def _default(field: dataclasses.Field) -> str | None:
    if field.default_factory is not dataclasses.MISSING:
        value: Any = field.default_factory()
    elif field.default is not dataclasses.MISSING:
        value = field.default
    else:
        return None
    return value if isinstance(value, str) else json.dumps(value)


def _written(number: float) -> str:
    return f"{number:,}" if number < 1e15 else f"{number:g}"
