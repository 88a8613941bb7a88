"""Configurations: a YAML file, with `--key value` overrides, checked against the types of a dataclass."""

import difflib
import os
import re
import reprlib
import sys
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

import yaml

from common.config.key_help import help_text
from common.config.keys import TYPE_NAMES, types_of
from common.errors import UserError
from common.files import parse_json


T = TypeVar("T")
LONGEST_NUMBER = 64  # bits of a whole number
MOST_VALUES = 10**5  # of one key, where YAML's aliases can make a short text endless
LONGEST_SHOWN = 120  # characters of a value in a message
MOST_LISTED = 40  # known keys that a message about an unknown one names


class ConfigurationError(UserError):
    """A key or value that cannot be used."""


def read_configuration(config_class: type[T], arguments: list[str], nested: dict[str, type | None], about: str) -> T:
    """Read `FILE.yaml --key value ...` into a dataclass, not validated yet; `--help` prints its keys and exits.

    Args:
        config_class: a dataclass with the field `output_dir`. A docstring below each field says what it means.
        arguments: of the command line.
        nested: keys that hold mappings, whose own keys are written `--NESTED.KEY`, each with the dataclass of these
            keys if there is one.
        about: what `--help` prints before the keys.

    Raises:
        ConfigurationError: where no file is named, or for what `read_values` refuses.
    """
    if {"-h", "--help"} & set(arguments):
        print(help_text(about, config_class, nested))
        sys.exit()
    if not arguments or arguments[0].startswith("--"):
        raise ConfigurationError(
            f"Name a configuration file first: {Path(sys.argv[0]).name} FILE.yaml [--key value ...]. --help lists the "
            "keys."
        )
    values = read_values(Path(arguments[0]), arguments[1:], typing.get_type_hints(config_class), nested)
    if "output_dir" not in values:
        raise ConfigurationError(f"{arguments[0]} names no output_dir: add it, or give --output_dir FOLDER.")
    return config_class(**values)


def read_values(path: Path, overrides: list[str], known: dict[str, Any], nested: Collection[str]) -> dict[str, Any]:
    """The values of a configuration: those of a YAML file, changed by `--key value ...`.

    Args:
        path: of the file.
        overrides: arguments of the command line. Values are YAML.
        known: type of each key.
        nested: keys that hold mappings, whose own keys are written `--NESTED.KEY`.

    Raises:
        ConfigurationError: for a file that is not there or not YAML, an unknown key (with the nearest known one), or
            a value of the wrong type.
    """
    texts_of = _parse_overrides(overrides)
    values = read_yaml(path)
    for key in values:
        if key not in known:
            raise ConfigurationError(f"{path}: {_unknown(key, known)}")
    for key, value in values.items():
        check_plain(key, value)
        values[key] = convert(key, value, known[key])
    for key, texts in texts_of.items():
        outer, _, inner = key.partition(".")
        if outer in nested and inner:
            values[outer] = {**values.get(outer, {}), inner: parse(key, texts, Any)}
        elif key not in known:
            raise ConfigurationError(f"--{_unknown(key, known)}")
        else:
            values[key] = convert(key, parse(key, texts, known[key]), known[key])
    return values


def _unknown(key: object, known: dict[str, Any]) -> str:
    return f"{key} is not a key of the configuration.{suggest(key, list(known), ' --help lists the keys.')}"


def suggest(key: object, known: list[str], listed: str = "") -> str:
    """' Did you mean X?' for the known key nearest to a wrong one, or the known ones where they are few.

    Args:
        listed: what is said instead of many, such as where they are listed.
    """
    nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    if nearest:
        return f" Did you mean {nearest[0]!r}?"
    return f" Known are: {', '.join(known)}." if len(known) <= MOST_LISTED else listed


def read_json(path: Path) -> dict:
    """A JSON file that holds one object."""
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ConfigurationError(f"{path} must hold one JSON object.")
    return value


class DumpedLoader(yaml.SafeLoader):
    """What `yaml.safe_dump` wrote, unless it has been damaged since: whatever is wrong ends in a `yaml.YAMLError`.

    A key that occurs twice is an error.
    """

    def construct_mapping(self, node, deep=False):
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            seen: set = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key} is given twice", key_node.start_mark)
                seen.add(key)
        return mapping

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # PyYAML lets what a tag cannot be made of, such as `!!int abc`, end in errors of any type.
            kind = node.tag.removeprefix("tag:yaml.org,2002:")
            problem = f"{reprlib.repr(node.value)} is no {kind}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


class _Loader(DumpedLoader):
    """YAML 1.2's scalars: `no` and dates are text, `2e-5` is a number, which PyYAML's 1.1 has the other way round."""

    yaml_implicit_resolvers: dict = {}


for tag, pattern, first in (
    ("null", r"(?:~|null|Null|NULL)?", [*"~nN", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", [*"-+0123456789"]),
    ("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"(?:{pattern})$"), first)


def read_yaml(path: Path, loader: type[DumpedLoader] = _Loader) -> dict[str, Any]:
    """A YAML file of `key: value` lines."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), loader)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigurationError(f"{path}{line}: not YAML: {error.problem}.") from error
    except RecursionError as error:
        raise ConfigurationError(f"{path} is nested too deeply.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path} must hold `key: value` lines.")
    return values


def _parse_overrides(arguments: list[str]) -> dict[str, list[str]]:
    """The texts of `--key value`, `--key=value`, or `--key value value ...` for a list."""
    overrides: dict[str, list[str]] = {}
    key = None
    for argument in arguments:
        if argument.startswith("--"):
            key, equals, value = argument[2:].partition("=")
            if key in overrides:
                raise ConfigurationError(f"--{key} is given twice.")
            overrides[key] = [value] if equals else []
        elif key is None:
            raise ConfigurationError(f"{argument!r} does not follow a --key.")
        else:
            overrides[key].append(argument)
    for key, texts in overrides.items():
        if not texts:
            raise ConfigurationError(f"--{key} needs a value.")
    return overrides


def parse(key: str, texts: list[str], hint: Any) -> object:
    """Read the texts of an override as YAML; what is meant as text stays as it was typed."""
    values = []
    for text in texts:
        try:
            value = yaml.load(text, _Loader)
        except yaml.reader.ReaderError:  # a letter that YAML does not know, such as a byte that is not UTF-8
            value = text
        except RecursionError as error:
            raise ConfigurationError(f"--{key}: {shown(text)} is nested too deeply.") from error
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", error)
            raise ConfigurationError(f"--{key}: {shown(text)} is not YAML: {problem}.") from error
        check_plain(key, value)
        typed_as_text = isinstance(value, bool | int | float) and type(value) not in types_of(hint)
        values.append(text if typed_as_text and str in types_of(hint) else value)
    return values[0] if len(values) == 1 else values


def convert(key: str, value: Any, hint: Any) -> Any:
    """Check that a value is of the field's type; whole numbers do for others and for text, and none for a mapping."""
    choices = types_of(hint)
    if value is None and dict in choices:
        return {}
    number = isinstance(value, int) and not isinstance(value, bool)
    if number and int not in choices:
        value = float(value) if float in choices else str(value) if str in choices else value
    for choice in choices:
        if isinstance(value, choice) and (choice is bool or not isinstance(value, bool)):
            return value
    names = " or ".join(TYPE_NAMES[choice] for choice in choices)
    raise ConfigurationError(f"{key} is {shown(value)}: it must be {names}.")


def check_plain(key: object, value: object):
    """Look into lists and mappings for what no key can use.

    Raises:
        ConfigurationError: for a number of more than 64 bits, text that cannot be part of a path, or too many values.
    """
    left = [value]
    for _ in range(MOST_VALUES):
        if not left:
            return
        item = left.pop()
        if isinstance(item, dict):
            left += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set):
            left += item
        elif isinstance(item, int) and item.bit_length() > LONGEST_NUMBER:
            raise ConfigurationError(f"{key} holds a number of more than {LONGEST_NUMBER} bits.")
        elif isinstance(item, str) and ("\0" in item or _has_half_characters(item)):
            raise ConfigurationError(f"{key} holds {shown(item)}: no file or name can have such a character.")
    raise ConfigurationError(f"{key} holds more than {MOST_VALUES:,} values.")


def _has_half_characters(text: str) -> bool:
    """Whether it holds halves of surrogate pairs, other than those that stand for bytes in names of files."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return True
    return False


def shown(value: object) -> str:
    """A value as a message names it, shortened where it is long."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = LONGEST_SHOWN
    return short.repr(value)
