"""Files of configuration keys, read as the pretraining programs read them."""

from pathlib import Path

import pytest

from common.errors import UserError
from pretrain.command_line import load_config
from pretrain.configuration import PretrainConfig


SHORTEST = "output_dir: runs/test\nmax_steps: 100"


def load(file: Path, content: str = SHORTEST, arguments: str = "") -> PretrainConfig:
    file.write_text(content)
    return load_config([str(file), *arguments.split()])


def error_of(file: Path, content: str = SHORTEST, arguments: str = "") -> str:
    """The message of the error, without the name of the file."""
    with pytest.raises(UserError) as error:
        load(file, content, arguments)
    return str(error.value).replace(str(file), "FILE")


def with_keys(content: str) -> str:
    return ("output_dir: runs/test" if "max_steps" in content else SHORTEST) + f"\n{content}"
