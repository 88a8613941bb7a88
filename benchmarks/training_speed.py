"""Training tokens per second of a model, and what dropout costs, on the machine at hand.

    python benchmarks/training_speed.py configs/model/luna-base.json --length 512 --rows 4

A step is forward and backward passes of the masked-LM model with 15 % labels and an AdamW update, in float32. The
dropout settings take turns, so that a busy machine slows all of them; the medians are printed.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch

from modeling_luna import LunaConfig, LunaForMaskedLM


SETTINGS = {
    "no dropout": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "attention dropout 0.1": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.1},
    "dropout 0.1 everywhere": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
}


class Trainee:
    """A model with its optimiser and one batch of random tokens."""

    def __init__(self, fields: dict, length: int, rows: int):
        torch.manual_seed(0)
        config = LunaConfig(**{**fields, "sparse_prediction": True})
        self.model = LunaForMaskedLM(config).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        self.input_ids = torch.randint(4, config.vocab_size, (rows, length))
        self.labels = self.input_ids.masked_fill(torch.rand(rows, length) >= 0.15, -100)

    def step(self) -> float:
        """Seconds of one training step."""
        started = time.perf_counter()
        self.model(self.input_ids, labels=self.labels).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, help="JSON file with fields of LunaConfig")
    parser.add_argument("--length", type=int, default=512, help="tokens a row")
    parser.add_argument("--rows", type=int, default=4, help="rows a step")
    parser.add_argument("--rounds", type=int, default=5, help="measured steps of each setting")
    options = parser.parse_args()
    fields = json.loads(options.config.read_text(encoding="utf-8"))
    trainees = {
        name: Trainee({**fields, **dropout}, options.length, options.rows) for name, dropout in SETTINGS.items()
    }

    seconds: dict[str, list[float]] = {name: [] for name in trainees}
    for round_number in range(options.rounds + 1):
        for name, trainee in trainees.items():
            step_seconds = trainee.step()
            if round_number:  # the first step allocates
                seconds[name].append(step_seconds)
    tokens = options.length * options.rows
    print(f"{options.config.stem}, {options.rows} rows of {options.length}, {torch.get_num_threads()} threads:")
    base = median(seconds["no dropout"])
    for name, taken in seconds.items():
        share = 1 - base / median(taken)
        print(f"{name:<23} {tokens / median(taken):>9,.0f} tokens/s, {share:.0%} of the step is dropout")


if __name__ == "__main__":
    main()
