# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Which code a saved folder names, and carries for `trust_remote_code=True`."""

import inspect
import os
import shutil
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files


def registered_class(saved: type, default: type) -> type:
    """The nearest base of a class, or the class, that was itself registered for an Auto class and lies in a file.

    Code of a user that is not registered is not saved, nor are the classes that PyTorch's FSDP makes.
    """
    for base in saved.__mro__:
        if vars(base).get("_auto_class") is not None and base.__module__ != "__main__":
            return base
    return default


def class_reference(referred: type) -> str:
    """FILE.CLASS, as `auto_map` names a class in a saved folder."""
    return f"{referred.__module__.rsplit('.', 1)[-1]}.{referred.__name__}"


def copy_code(referred: type, folder: str | os.PathLike):
    """Copy the file of a class, and those that it imports by `from .FILE import`, into the folder."""
    source = inspect.getfile(referred)
    for file in (source, *get_relative_import_files(source)):
        shutil.copyfile(file, Path(folder) / Path(file).name)
