"""Seconds from starting `run_mlm.py` to its first new step, early and late in a long run.

    python benchmarks/resume_time.py --steps 10 1000000 --repeats 5

A tiny model is trained for ten steps. Its checkpoint and its metrics are then made those of a run that has done as
many steps as asked for, with a record in metrics.jsonl each ten steps. The launches take turns; medians are printed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from kill_and_resume import CONFIG, ROOT, write_text

from pretrain.checkpoints import TRAINING_STATE, digests
from pretrain.files import write_json


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 1_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        changes = {"prepared_dir": str(folder / "prepared"), "max_steps": 10**8, "save_steps": 10, "eval_steps": 0}
        config = {**CONFIG, **changes, "data": str(write_text(folder / "text.txt")), "output_dir": "unset"}
        (folder / "run.yaml").write_text(json.dumps(config))
        with start(folder / "run.yaml", folder / "start", "--max_steps", "10") as process:
            if process.wait():
                sys.exit("The run of ten steps failed.")
        seconds: dict[int, list[float]] = {steps: [] for steps in arguments.steps}
        for repeat in range(arguments.repeats):
            for steps in arguments.steps:
                run = long_run(folder / "start", folder / f"{steps}-{repeat}", steps)
                seconds[steps].append(first_step(folder / "run.yaml", run, after=steps))
        size = {steps: (folder / f"{steps}-0" / "metrics.jsonl").stat().st_size for steps in arguments.steps}
    for steps, times in seconds.items():
        print(
            f"step {steps:>9,}: first new step after {median(times):.2f} s "
            f"({min(times):.2f} to {max(times):.2f}), metrics.jsonl of {size[steps] / 1e6:.1f} MB"
        )


def long_run(start: Path, run: Path, steps: int) -> Path:
    """A copy of a run that has done ten steps, as if it had done more."""
    shutil.copytree(start, run, ignore=shutil.ignore_patterns(".lock"))
    records = [json.loads(line) for line in (start / "metrics.jsonl").read_text().splitlines()]
    record = next(record for record in records if record["step"] == 10)
    with open(run / "metrics.jsonl", "w") as file:
        file.writelines(json.dumps(record | {"step": step}) + "\n" for step in range(10, steps + 1, 10))
    folder = run / "checkpoint-10"
    if steps != 10:
        folder = folder.rename(run / f"checkpoint-{steps}")
    path = folder / TRAINING_STATE / "progress.json"
    state = json.loads(path.read_text())
    path.unlink()
    state["progress"]["step"] = steps
    write_json(path, state | {"files": digests(folder)})
    return run


def start(config: Path, run: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "pretrain/run_mlm.py", str(config), "--output_dir", str(run), *options]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.DEVNULL)


def first_step(config: Path, run: Path, after: int) -> float:
    """Start training and kill it once metrics.jsonl holds a step after this one; the seconds until then."""
    started = time.perf_counter()
    with start(config, run) as process:
        while process.poll() is None and last_step(run / "metrics.jsonl") <= after:
            time.sleep(0.005)
        seconds = time.perf_counter() - started
        if process.poll() is not None:
            sys.exit(f"The run ended with {process.returncode}.")
        process.kill()
    return seconds


def last_step(metrics: Path) -> int:
    """The step of the last whole line of a file."""
    if not metrics.exists():
        return 0
    with open(metrics, "rb") as file:
        file.seek(max(0, metrics.stat().st_size - 4096))
        lines = file.read().split(b"\n")[1:-1]
    return json.loads(lines[-1])["step"] if lines else 0


if __name__ == "__main__":
    main()
