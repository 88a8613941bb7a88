"""What preparation needs of memory, cores and time.

    python benchmarks/pretraining/measure_preparation.py --gigabytes 2

Text of words in natural shares is generated, with a twentieth of it as one document on a single line, and prepared by
`prepare.py` with one process for each core. That is killed once by SIGKILL in the middle and started again. Printed
are the largest memory of all processes together (the sum of their proportional set sizes, so shared pages count once),
how many cores were busy, the speed, and what was left to do after the kill. Needs the /proc of Linux.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from common.errors import report_user_errors
from pretrain.configuration import Packing
from pretrain.data.shards import SHARD_BYTES


ROOT = Path(__file__).parents[2]
WORDS = 200_000
WORDS_A_BLOCK = 1_000_000
SAMPLING_SECONDS = 0.2


def write_text(path: Path, size: int, seed: int = 0):
    """Write about `size` bytes of documents: words with shares as of English in sentences, lines and documents."""
    generator = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlcumwfgypbvkjxqz"))
    letter_shares = 1 / np.arange(2, len(letters) + 2)
    word_lengths = np.clip(generator.poisson(1 + np.log2(np.arange(2, WORDS + 2)) / 2), 1, 20)
    drawn = generator.choice(letters, size=int(word_lengths.sum()), p=letter_shares / letter_shares.sum())
    ends = np.cumsum(word_lengths).tolist()
    words = ["".join(drawn[end - length : end]) for end, length in zip(ends, word_lengths.tolist(), strict=True)]
    word_shares = np.cumsum(1 / np.arange(10, WORDS + 10) ** 1.4)
    word_shares /= word_shares[-1]

    written = 0
    with open(path, "w", encoding="utf-8") as file:
        while written < size:
            of_block = [words[word] for word in np.searchsorted(word_shares, generator.random(WORDS_A_BLOCK))]
            sentences, first = [], 0
            for length in generator.integers(4, 30, size=WORDS_A_BLOCK // 20).tolist():
                sentences.append(" ".join(of_block[first : first + length]).capitalize() + ".")
                first += length
                if first >= WORDS_A_BLOCK:
                    break
            # Most sentences are followed by another one on the line, some by a new line or document.
            follows = generator.choice([" ", "\n", "\n\n"], size=len(sentences), p=[0.8, 0.15, 0.05]).tolist()
            one_line = 0.5 * size <= written < 0.55 * size
            text = "".join(
                sentence + (" " if one_line else after) for sentence, after in zip(sentences, follows, strict=True)
            )
            written += file.write(text)


@dataclass
class Measured:
    """One run of `prepare.py`: its exit code and output, seconds, those of its processes on cores, and the largest
    memory in bytes."""

    code: int
    output: str
    seconds: float
    cpu_seconds: float
    peak: int

    def __str__(self) -> str:
        return (
            f"{self.seconds:.0f} s, largest memory {self.peak / 2**30:.2f} GiB, "
            f"{self.cpu_seconds / self.seconds:.2f} cores busy"
        )


def run_measured(command: list[str], kill_when: Callable[[], bool] = lambda: False) -> Measured:
    """Run a command, watching it and all the processes it starts; kill it when that is asked for."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )
    output: list[str] = []
    reader = threading.Thread(target=lambda: output.extend(process.stdout))  # type: ignore[arg-type]
    reader.start()
    peak, busy = 0, dict[int, float]()
    while process.poll() is None:
        family = _family(process.pid)
        peak = max(peak, sum(map(_memory, family)))
        busy |= {member: max(_cpu_seconds(member), busy.get(member, 0)) for member in family}
        if kill_when():
            process.send_signal(signal.SIGKILL)
        time.sleep(SAMPLING_SECONDS)
    reader.join()  # those that it started hold the pipe until they end
    return Measured(process.returncode, "".join(output), time.perf_counter() - started, sum(busy.values()), peak)


def _family(process: int) -> list[int]:
    """A process and all below it."""
    family = [process]
    for member in family:
        for children in Path(f"/proc/{member}/task").glob("*/children"):
            try:
                family += map(int, children.read_text().split())
            except OSError:  # it has ended
                continue
    return family


def _memory(process: int) -> int:
    """The proportional set size of a process in bytes."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _cpu_seconds(process: int) -> float:
    """What a process has spent on cores so far."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    except OSError:  # it has ended
        return 0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(gigabytes: float, packing: str, num_proc: int, folder: Path):
    """Prepare the text in a folder, which is generated where it is not there, and print what that took."""
    text, prepared = folder / "text.txt", folder / "prepared"
    if not text.exists():
        write_text(text, int(gigabytes * 1e9))
    values = {
        "output_dir": str(folder / "run"),
        "data": str(text),
        "prepared_dir": str(prepared),
        "num_proc": num_proc,
        "packing": packing,
        "max_steps": 1,  # none is made
    }
    config = folder / "config.json"  # which is YAML, too
    config.write_text(json.dumps(values))
    command = [sys.executable, "pretrain/prepare.py", str(config)]

    def shards() -> int:
        return len(list(prepared.glob("*/part-*/*.json")))

    print(f"{text.stat().st_size / 1e6:,.0f} MB of text, {num_proc} processes that tokenise", flush=True)
    half = int(gigabytes * 1e9 / SHARD_BYTES / 2)
    killed = run_measured(command, kill_when=lambda: shards() >= half)
    print(f"killed after {shards()} shards: {killed}", flush=True)
    finished = run_measured(command)
    print(finished.output, end="")
    print(f"resumed: {finished}", flush=True)
    subprocess.run([*command, "--verify"], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of text to generate; 2 by default")
    parser.add_argument("--packing", default="best_fit", choices=get_args(Packing), help="of the rows (%(default)s)")
    parser.add_argument("--num_proc", type=int, default=len(os.sched_getaffinity(0)), help="by default all cores")
    parser.add_argument("--folder", type=Path, help="for text and prepared data, which then stay; or a temporary one")
    options = parser.parse_args()
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        measure(options.gigabytes, options.packing, options.num_proc, options.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(options.gigabytes, options.packing, options.num_proc, Path(folder))


if __name__ == "__main__":
    with report_user_errors(kept="Nothing was kept."):
        main()
