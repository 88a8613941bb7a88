"""What `--help` prints of a program that takes a configuration: each key with its default and what it means."""

import argparse
import ast
import dataclasses
import inspect
import itertools
import json
import textwrap
from collections.abc import Mapping
from typing import Any


HEADING = "keys of the configuration, as options with their defaults"


def help_text(about: str, config_class: type, nested: Mapping[str, type | None]) -> str:
    """Describe a program and all keys of its configuration.

    Args:
        about: the program, with its usage.
        config_class: a dataclass with a docstring below each field.
        nested: keys that hold mappings, each with the dataclass of the mapping's keys if there is one.
    """
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    keys = parser.add_argument_group(HEADING)
    described = {"": config_class} | {f"{key}.": inner for key, inner in nested.items() if inner is not None}
    for prefix, keys_class in described.items():
        docs = key_docs(keys_class)
        for field in dataclasses.fields(keys_class):
            text = docs[field.name].replace("%", "%%")
            keys.add_argument(f"--{prefix}{field.name}", metavar=_default(field), help=text)
    return parser.format_help()


def key_docs(config_class: type) -> dict[str, str]:
    """The docstring below each field of a dataclass, by the field's name."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(config_class))).body[0]
    assert isinstance(definition, ast.ClassDef)
    return {
        statement.target.id: " ".join(text.value.value.split())
        for statement, text in itertools.pairwise(definition.body)
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _default(field: dataclasses.Field) -> str:
    """The default of a field as YAML."""
    if field.default_factory is not dataclasses.MISSING:
        value: Any = field.default_factory()
    elif field.default is not dataclasses.MISSING:
        value = field.default
    else:
        return "(needed)"
    return value if isinstance(value, str) else json.dumps(value)
