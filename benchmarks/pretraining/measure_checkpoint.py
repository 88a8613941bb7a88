"""Seconds that a checkpoint stops training, for a model with its AdamW states.

python benchmarks/pretraining/measure_checkpoint.py configs/model/luna-base.json --folder /tmp --repeats 3
"""

import argparse
import shutil
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from common.errors import report_user_errors
from pretrain.checkpointing.checkpoints import Checkpoints
from pretrain.configuration import PretrainConfig
from pretrain.data.tokenizer import train_tokenizer
from pretrain.launch import start_accelerator
from pretrain.models.model import build_model
from pretrain.steps.optimizers import build_optimizer
from pretrain.watching.progress import Progress


# What the model card reads of the manifest of prepared data.
DATA = {
    "fingerprint": "none",
    "identity": {"sources": [{"kind": "python-docs"}]},
    "splits": {split: {"tokens": 0, "documents": 0, "unigram_entropy": 0.0} for split in ("train", "validation")},
    "vocab_size": 300,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_config", type=Path, help="a file of configs/model")
    parser.add_argument("--folder", type=Path, default=Path("."), help="on the disk to be measured (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="checkpoints (%(default)s)")
    arguments = parser.parse_args()
    with TemporaryDirectory(dir=arguments.folder) as folder:
        config = PretrainConfig(
            output_dir=folder, model_config=str(arguments.model_config), max_steps=100, save_total_limit=1
        )
        accelerator = start_accelerator(config)
        tokenizer = train_tokenizer(["some text"], 300, 512)
        model = build_model(config, tokenizer)
        optimizer = build_optimizer(model, config)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        model, optimizer = accelerator.prepare(model, optimizer)
        checkpoints = Checkpoints(accelerator, tokenizer, config, accelerator.unwrap_model(model).config, DATA)
        seconds = []
        for repeat in range(arguments.repeats):
            started = time.perf_counter()
            checkpoints.save(model, optimizer, Progress(step=repeat + 1), {"validation_loss": None})
            seconds.append(time.perf_counter() - started)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 1e9
        parameters = accelerator.unwrap_model(model).num_parameters() / 1e6
        free = shutil.disk_usage(folder).free / 1e9
    print(
        f"{arguments.model_config.stem}, {parameters:.0f} million parameters: {median(seconds):.1f} s "
        f"({min(seconds):.1f} to {max(seconds):.1f}) for {size:.2f} GB ({free:.0f} GB left on the disk)"
    )


if __name__ == "__main__":
    with report_user_errors(kept="Nothing was kept."):
        main()
