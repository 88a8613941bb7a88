"""Seconds from starting `run_mlm.py` to its first new step, early and late in a long run.

    python benchmarks/pretraining/measure_resume.py configs/pretrain/luna-tiny.yaml --steps 10 1000000 --repeats 5

The run is trained for ten steps. Its checkpoint and its metrics are then made those of a run that has done as many
steps as asked for, with a record in metrics.jsonl for each ten steps. The launches take turns; medians are printed.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from common.errors import report_user_errors
from pretrain import run_mlm
from pretrain.checkpointing.folders import PROGRESS_FILE, TRAINING_STATE, read_state, write_state
from pretrain.watching.metrics import METRICS_FILE


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a file of configs/pretrain")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 1_000_000], help="done before (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="of each (%(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with start(arguments.config, folder / "start", max_steps=10) as process:
            if process.wait():
                sys.exit("The run of ten steps failed.")
        seconds: dict[int, list[float]] = {steps: [] for steps in arguments.steps}
        for repeat in range(arguments.repeats):
            for steps in arguments.steps:
                run = long_run(folder / "start", folder / f"{steps}-{repeat}", steps)
                seconds[steps].append(first_step(arguments.config, run, after=steps))
        size = {steps: (folder / f"{steps}-0" / METRICS_FILE).stat().st_size for steps in arguments.steps}
    for steps, times in seconds.items():
        print(
            f"step {steps:>9,}: first new step after {median(times):.2f} s "
            f"({min(times):.2f} to {max(times):.2f}), {METRICS_FILE} of {size[steps] / 1e6:.1f} MB"
        )


def long_run(start: Path, run: Path, steps: int) -> Path:
    """A copy of a run that has done ten steps, as if it had done more."""
    shutil.copytree(start, run, ignore=shutil.ignore_patterns(".lock", "model"))
    records = [json.loads(line) for line in (start / METRICS_FILE).read_text().splitlines()]
    record = next(record for record in records if record["step"] == 10)
    with open(run / METRICS_FILE, "w") as file:
        file.writelines(json.dumps(record | {"step": step}) + "\n" for step in range(10, steps + 1, 10))
    folder = run / "checkpoint-10"
    if steps != 10:
        folder = folder.rename(run / f"checkpoint-{steps}")
    state = read_state(folder)
    (folder / TRAINING_STATE / PROGRESS_FILE).unlink()
    state["progress"]["step"] = steps
    write_state(folder, state)
    return run


def start(config: Path, run: Path, max_steps: int) -> subprocess.Popen:
    steps = ["--max_steps", str(max_steps), "--save_steps", "10", "--eval_steps", "0", "--logging_steps", "1"]
    steps += ["--warmup_steps", "null", "--decay_steps", "null"]
    command = [sys.executable, run_mlm.__file__, str(config), "--output_dir", str(run), "--max_eval_rows", "1", *steps]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def first_step(config: Path, run: Path, after: int) -> float:
    """Start training and kill it once the metrics hold a step after this one; the seconds until then."""
    started = time.perf_counter()
    with start(config, run, max_steps=10**8) as process:
        while process.poll() is None and last_step(run / METRICS_FILE) <= after:
            time.sleep(0.005)
        seconds = time.perf_counter() - started
        if process.poll() is not None:
            sys.exit(f"The run ended with {process.returncode}.")
        process.kill()
    return seconds


def last_step(metrics: Path) -> int:
    """The step of the last whole line of a file."""
    with open(metrics, "rb") as file:
        file.seek(max(0, metrics.stat().st_size - 4096))
        lines = file.read().split(b"\n")[:-1]
    return json.loads(lines[-1])["step"]


if __name__ == "__main__":
    with report_user_errors(kept="Nothing was kept."):
        main()
