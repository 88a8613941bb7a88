# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""What Luna computes with the releases that are installed; started by try_releases.py.

Arguments: the folder of models, `package` or `folder` (whose code is used), and the file for the numbers.
"""

import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers


class HiddenPackage:
    """Lets no import find the package."""

    def find_spec(self, name: str, path: Any = None, target: Any = None):
        if name.split(".")[0] == "modeling_luna":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def numbers(tensors: Iterable[torch.Tensor]) -> list[list[float]]:
    return [tensor.detach().float().flatten()[:200].tolist() for tensor in tensors]


def masked_lm(folder: Path, batch: dict[str, torch.Tensor], attn_implementation: str, **trust: bool) -> dict:
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder, attn_implementation=attn_implementation, **trust)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    outputs = model(**batch, labels=labels)
    outputs.loss.backward()
    found = {
        "implementation": model.config._attn_implementation,
        "loss and logits": numbers([outputs.loss, outputs.logits]),
        "gradients": [parameter.grad.norm().item() for parameter in model.parameters()],
    }
    two_documents = torch.arange(5).repeat(2).unsqueeze(0)
    with torch.no_grad():
        found["documents"] = numbers([model(batch["input_ids"][:1, :10], position_ids=two_documents).logits])
        found["tuple"] = numbers(model(**batch, return_dict=False))
        if attn_implementation == "eager":
            flags = ("hidden_states", "attentions", "packed_hidden_states", "pack_attentions")
            recorded = model(**batch, **{f"output_{flag}": True for flag in flags})
            found |= {flag: numbers(recorded[flag]) for flag in flags}
            found["keys"] = list(model(**batch, output_attentions=True))
            model.set_attn_implementation("sdpa")
            found["switched"] = model.config._attn_implementation
    model.train()
    model.gradient_checkpointing_enable()
    model.zero_grad()
    model(**batch, labels=labels).loss.backward()
    found["gradients with checkpointing"] = [parameter.grad.norm().item() for parameter in model.parameters()]
    return found


def classifier(folder: Path, batch: dict[str, torch.Tensor], **trust: bool) -> dict:
    auto_class = transformers.AutoModelForSequenceClassification
    model = auto_class.from_pretrained(folder, **trust)
    outputs = model(**batch, labels=torch.tensor([0, 2]))
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        stored = json.loads((Path(saved) / "config.json").read_text())
        again = auto_class.from_pretrained(saved, **trust)(**batch)
    del stored["transformers_version"]
    return {"outputs": numbers([outputs.loss, outputs.logits, again.logits]), "configuration": stored}


def refusal(config_class: type, **fields: Any) -> str:
    try:
        config_class(**fields)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def main():
    folder, code, file = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    if code == "package":
        import modeling_luna  # noqa: F401

        trust = {}
    else:
        sys.meta_path.insert(0, HiddenPackage())
        trust = {"trust_remote_code": True}
    sentences = ["Luna packs the <mask> of a sentence.", "The moon"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "classifier", **trust)
    batch = dict(tokenizer(sentences, padding=True, return_tensors="pt"))
    found = {"tokens": [type(tokenizer).__name__, batch["input_ids"].tolist()]}
    for name in ("default", "extensions"):
        ids = transformers.AutoTokenizer.from_pretrained(folder / name, **trust)(sentences)["input_ids"]
        found[name] = {"tokens": ids} | {
            implementation: masked_lm(folder / name, batch, implementation, **trust)
            for implementation in ("eager", "sdpa")
        }
    found["classifier"] = classifier(folder / "classifier", batch, **trust)
    config_class = type(transformers.AutoConfig.from_pretrained(folder / "default", **trust))
    found["refusals"] = [refusal(config_class, hidden_size=7), refusal(config_class, hidden_size="seven")]
    file.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
