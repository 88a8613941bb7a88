"""Kill a real run at random moments, start it again each time, and compare its curve with that of an undisturbed run.

    python benchmarks/pretraining/kill_and_resume.py --mode cpu --kills 20
    python benchmarks/pretraining/kill_and_resume.py --mode zero2 --kills 20

`--mode` names a file of configs/accelerate. A tiny model with dropout is trained on generated text. Each time a
random one of the run's processes, or all at once, gets SIGKILL: in half of the launches at a random time since the
start, else while a checkpoint is being written or an old one deleted. The script ends with 0 where every step stands
in metrics.jsonl once and all losses, gradient norms and final weights are the same, bit by bit.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from common.errors import report_user_errors


ROOT = Path(__file__).parents[2]
STEPS = 2000
CONFIG = {
    "validation_share": 0.1,
    "vocab_size": 400,
    "max_length": 32,
    "model": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "projection_length": 8,
        "max_position_embeddings": 32,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    },
    "warmup_steps": 5,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "eval_steps": 100,
    "save_steps": 10,
    "save_total_limit": 2,
}
COMPARED = ("loss", "gradient_norm", "learning_rate", "validation_loss")
LAUNCH_SECONDS = (1.0, 25.0)  # between which a launch is killed at a random time; starting takes part of it


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", default="cpu", help="file of configs/accelerate (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=20, help="how often (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the times of the kills (default: %(default)s)")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = {
            **CONFIG,
            "data": str(write_text(folder / "text.txt")),
            "prepared_dir": str(folder / "prepared"),
            "max_steps": arguments.steps,
            "output_dir": "unset",
        }
        (folder / "run.yaml").write_text(json.dumps(config))
        whole, killed = (Run(folder, output, arguments.mode) for output in ("whole", "killed"))

        print(
            f"Undisturbed run of {arguments.steps:,} steps under configs/accelerate/{arguments.mode}.yaml", flush=True
        )
        if whole.start().wait():
            sys.exit(f"It failed:\n{whole.log()}")
        generator = random.Random(arguments.seed)
        for number in range(1, arguments.kills + 1):
            print(f"kill {number:>2}: {killed.start_and_kill(generator)}", flush=True)
        if killed.start().wait():
            sys.exit(f"The last launch failed:\n{killed.log()}")
        differences = compare(whole, killed)
    print("\n".join(differences) or f"All {arguments.steps:,} steps stand once, and all numbers and weights are equal")
    sys.exit(bool(differences))


class Run:
    """A run of the training script with a folder for its output."""

    def __init__(self, folder: Path, output: str, mode: str):
        self.folder = folder / output
        self.log_file = folder / f"{output}.log"
        launcher = [sys.executable, "-m", "accelerate.commands.launch"]
        self.command = [
            *launcher, "--config_file", f"configs/accelerate/{mode}.yaml",
            "pretrain/run_mlm.py", str(folder / "run.yaml"), "--output_dir", str(self.folder),
        ]  # fmt: skip
        # Number of threads fixed, since it decides the order of sums; what DeepSpeed compiles is compiled once.
        self.variables = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TORCH_EXTENSIONS_DIR": str(folder / "extensions"),
        }

    def start(self) -> subprocess.Popen:
        with open(self.log_file, "w") as log:
            return subprocess.Popen(self.command, cwd=ROOT, env=self.variables, stdout=log, stderr=subprocess.STDOUT)

    def start_and_kill(self, generator: random.Random) -> str:
        """Launch, kill at a random moment, wait until all processes have ended, and say what was done."""
        launcher = self.start()
        in_checkpoint = generator.random() < 0.5
        wanted = generator.randint(1, 6)  # which of the launch's checkpoints
        deadline = time.monotonic() + generator.uniform(*LAUNCH_SECONDS)
        seen: set[Path] = set(self.folder.glob("checkpoint-*.partial"))  # left by the launch before
        begun, moment = 0, "at a random time"
        while launcher.poll() is None:
            if in_checkpoint:
                partial = set(self.folder.glob("checkpoint-*.partial"))
                begun += len(partial - seen)
                seen |= partial
                if begun >= wanted:
                    time.sleep(generator.uniform(0, 0.03))
                    moment = "in a checkpoint"
                    break
            elif time.monotonic() >= deadline:
                break
            time.sleep(0.001)
        if launcher.poll() is not None:
            sys.exit(f"The run ended by itself with {launcher.returncode}; raise --steps.\n{self.log()}")
        children = processes_of(str(self.folder), without=launcher.pid)
        victims = {
            "all": [launcher.pid, *children],
            "the launcher": [launcher.pid],
            "a process": [generator.choice(children)] if children else [launcher.pid],
        }
        name = generator.choice(sorted(victims))
        leftovers = self._leftovers()
        for pid in victims[name]:
            kill(pid)
        launcher.wait()
        ended = time.monotonic() + 60
        while processes_of(str(self.folder)):
            if time.monotonic() > ended:
                sys.exit(f"Processes are still there a minute after {name} of them was killed.")
            time.sleep(0.05)
        return f"{name}, {moment}, step {self.last_step()}{leftovers}"

    def _leftovers(self) -> str:
        names = sorted(path.name for path in self.folder.glob("*.partial"))
        return f", {', '.join(names)} half-written" if names else ""

    def records(self) -> list[dict]:
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def last_step(self) -> int:
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return json.loads(lines[-2])["step"] if len(lines) > 1 else 0  # the last may be cut short

    def log(self) -> str:
        return self.log_file.read_text()[-3000:]


def compare(whole: Run, killed: Run) -> list[str]:
    """What differs between two runs, in words."""
    differences = []
    expected, found = whole.records(), killed.records()
    for key in COMPARED:
        counts = Counter(record["step"] for record in found if key in record)
        twice = [step for step, count in counts.items() if count > 1]
        if twice:
            differences.append(f"{key} stands more than once for steps {twice[:5]}")
        values, others = ({r["step"]: r[key] for r in records if key in r} for records in (expected, found))
        different = [step for step in values.keys() | others.keys() if values.get(step) != others.get(step)]
        if different:
            differences.append(f"{key} differs at {len(different)} steps, first at {min(different)}")
    weights = [hashlib.sha256((run.folder / "model" / "model.safetensors").read_bytes()) for run in (whole, killed)]
    if weights[0].digest() != weights[1].digest():
        differences.append("the final weights differ")
    return differences


def processes_of(marker: str, without: int | None = None) -> list[int]:
    """The living processes whose arguments hold a text, from Linux's /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words, status = (entry / "cmdline").read_text(), (entry / "status").read_text()
        except OSError:  # it has ended
            continue
        if marker in words and "State:\tZ" not in status and int(entry.name) not in (without, os.getpid()):
            found.append(int(entry.name))
    return found


def kill(pid: int):
    """Kill a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def write_text(path: Path) -> Path:
    """Two hundred short documents of words drawn with Zipf's shares."""
    generator = random.Random(0)
    words = [f"word{number}" for number in range(60)]
    shares = [1 / rank for rank in range(1, len(words) + 1)]
    documents = (" ".join(generator.choices(words, shares, k=generator.randint(10, 60))) for _ in range(200))
    path.write_text("\n\n".join(documents) + "\n")
    return path


if __name__ == "__main__":
    with report_user_errors(kept="Nothing was kept."):
        main()
