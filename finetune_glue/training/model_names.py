"""How models are named: NAME=MODEL, a folder or an id of the Hub, and `untrained:` for fresh weights."""

from collections.abc import Iterable
from pathlib import Path

from common.config.yaml_config import ConfigurationError


UNTRAINED = "untrained:"  # before a model: fresh weights in its place
LONGEST_NAME = 200  # bytes of a folder's name; file systems take 255, and endings are added


def named_models(entries: Iterable[object]) -> dict[str, str]:
    """Folder or id of each model by its name in tables and folders.

    Raises:
        ConfigurationError: for no models, what names none, and names that cannot be those of folders or occur twice.
    """
    models: dict[str, str] = {}
    for entry in map(str, entries):
        name, equals, source = entry.partition("=")
        if not equals or "/" in name:
            name, source = _short_name(entry), entry
        if not source or not name:
            raise ConfigurationError(f"model: {entry!r} names no model.")
        if name in (".", "..") or len(name.encode()) > LONGEST_NAME:
            raise ConfigurationError(f"model: {name} cannot be the name of a folder: name it with NAME=MODEL.")
        if name in models:
            raise ConfigurationError(
                f"model: {models[name]} and {source} would both be called {name}: name them with NAME=MODEL."
            )
        models[name] = source
    if not models:
        raise ConfigurationError("model: name one, a folder or an id of the Hub (--model runs/demo/model).")
    return models


def _short_name(source: str) -> str:
    """The last part of a path or id; the folder above it where it is just called `model`."""
    untrained = source.startswith(UNTRAINED)
    source, _, revision = source.removeprefix(UNTRAINED).partition("@")
    parts = [part for part in Path(source).parts if part not in ("/", ".", "..")]
    if len(parts) > 1 and parts[-1] == "model":
        parts = parts[:-1]
    name = parts[-1] if parts else ""
    return f"{'untrained-' if untrained else ''}{name}{f'@{revision}' if revision else ''}".replace("/", "-")
