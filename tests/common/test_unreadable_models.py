"""A model that another user may not read is named as such by all that loads models, not as missing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from common.architectures import located
from common.errors import UserError
from pretrain.data.tokenizer import load_tokenizer
from pretrain.models.saved_model import saved_folder


FILES = ("config.json", "model.safetensors", "tokenizer.json")
LOADERS = {
    "fine-tuning and evaluation": lambda folder: located(folder, trust_remote_code=False),
    "init_from": saved_folder,
    "tokenizer": load_tokenizer,
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("forbidden", ["..", ".", *FILES])
def test_model_that_may_not_be_read(open_folder: Path, unreadable: Callable, loader: str, forbidden: str):
    model = open_folder / "of a colleague" / "model"
    model.mkdir(parents=True)
    for name in FILES:
        (model / name).write_text("{}", encoding="utf-8")
    named = model if forbidden in ("..", ".") else model / forbidden
    message = f"^{named} cannot be read: Permission denied.$"
    with unreadable((model / forbidden).resolve()), pytest.raises(UserError, match=message):
        LOADERS[loader](str(model))
