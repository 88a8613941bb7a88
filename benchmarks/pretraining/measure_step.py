"""The share of a training step that is spent outside forward, backward and optimiser.

    OMP_NUM_THREADS=2 python benchmarks/pretraining/measure_step.py configs/pretrain/luna-tiny.yaml --steps 60

The run is a real one, by `pretrain.run_mlm` with data, masks, metrics and progress line; evaluations and checkpoints
are switched off. Forward passes, backward passes, clipping and updates are timed from inside the training loop, on one
process on the CPU, and compared with the time of the whole steps. Other keys of the configuration can be given as
`--key value`.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from typing import Any

from common.errors import report_user_errors
from pretrain import run_mlm, training
from pretrain.command_line import load_config


FIRST = 10  # steps at the beginning that do not count: memory is still being taken


class Stopwatch:
    """Adds up the seconds of calls."""

    def __init__(self):
        self.seconds = 0.0

    def around(self, work: Callable) -> Callable:
        def timed(*arguments, **options) -> Any:
            started = time.perf_counter()
            try:
                return work(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a file of configs/pretrain")
    parser.add_argument(
        "--steps", type=int, default=60, help=f"of the run; the first {FIRST} do not count (%(default)s)"
    )
    arguments, others = parser.parse_known_args()
    parts = {name: Stopwatch() for name in ("forward", "backward", "optimiser")}
    marks: list[tuple[float, dict[str, float]]] = []
    optimizer_step, train = training.optimizer_step, training.train

    def measured_train(run: training.Run) -> float:
        accelerator: Any = run.accelerator
        optimizer: Any = run.optimizer
        run.model.forward = parts["forward"].around(run.model.forward)
        accelerator.backward = parts["backward"].around(accelerator.backward)
        accelerator.clip_grad_norm_ = parts["optimiser"].around(accelerator.clip_grad_norm_)
        optimizer.step = parts["optimiser"].around(optimizer.step)
        optimizer.zero_grad = parts["optimiser"].around(optimizer.zero_grad)
        return train(run)

    def marked_step(*values, **options):
        marks.append((time.perf_counter(), {name: part.seconds for name, part in parts.items()}))
        return optimizer_step(*values, **options)

    training.train, training.optimizer_step = measured_train, marked_step
    with tempfile.TemporaryDirectory() as folder:
        switched_off = ["--eval_steps", "0", "--save_steps", "0", "--max_eval_rows", "1"]
        steps = ["--max_steps", str(arguments.steps), "--warmup_steps", "null", "--decay_steps", "null"]
        config = load_config([arguments.config, "--output_dir", folder, *switched_off, *steps, *others])
        run_mlm.main(config)

    # From the beginning of a step to that of another one.
    (begin, before), (end, after) = marks[FIRST], marks[-1]
    whole = end - begin
    shares = {name: (after[name] - before[name]) / whole for name in parts}
    print(f"\n{len(marks) - 1 - FIRST} steps of {1000 * whole / (len(marks) - 1 - FIRST):.1f} ms")
    for name, share in (shares | {"outside": 1 - sum(shares.values())}).items():
        print(f"{name:<10} {share:6.1%}")


if __name__ == "__main__":
    with report_user_errors(kept="Nothing was kept."):
        main()
