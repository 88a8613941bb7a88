"""What `--help` prints of a program that takes a configuration: each key with its default and what it means."""

import argparse
from collections.abc import Mapping
from itertools import groupby

from common.config.keys import keys_of


HEADING = "keys of the configuration, as options with their defaults"


def help_text(about: str, config_class: type, nested: Mapping[str, type | None]) -> str:
    """Describe a program and all keys of its configuration.

    Args:
        about: the program, with its usage.
        config_class: a dataclass as `common.config.keys` describes it.
        nested: keys that hold mappings, each with the dataclass of the mapping's keys if there is one.
    """
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    described = {"": config_class} | {f"{key}.": inner for key, inner in nested.items() if inner is not None}
    for prefix, keys_class in described.items():
        for section, keys in groupby(keys_of(keys_class), key=lambda key: key.section):
            title, _, sentence = section.partition(": ")
            group = parser.add_argument_group(title or prefix.removesuffix(".") or HEADING, sentence or None)
            for key in keys:
                default = "(needed)" if key.default is None else key.default
                text = f"{key.doc} ({key.allowed()})" if key.allowed() else key.doc
                group.add_argument(f"--{prefix}{key.name}", metavar=default, help=text.replace("%", "%%"))
    return parser.format_help()
