"""How near preparation comes to the raw speed of the tokenizer: `python pretrain/measure_preparation.py CONFIG.yaml`.

Raw is one call of the tokenizer on all texts with its own threads on all cores; preparation is what `prepare.py` does
once the tokenizer is there: tokenise, hold out, write. Both take turns on the same text and tokenizer.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import datasets

from pretrain.configuration import load_config
from pretrain.data.tokenizer import load_tokenizer, train_tokenizer
from pretrain.errors import report_user_errors
from pretrain.prepare import read_sources, tokenise, write_splits


ROUNDS = 5


def main(arguments: list[str]):
    datasets.disable_progress_bars()
    config = load_config(arguments)
    num_proc = config.num_proc or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        documents = read_sources(config.sources(), num_proc, Path(folder) / "cache")
        texts = documents["text"][:]
        tokenizer = (
            load_tokenizer(config.tokenizer)
            if config.tokenizer
            else train_tokenizer([texts], config.vocab_size, config.max_length)
        )
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        raw, preparation = [], []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            raw.append(megabytes / (time.perf_counter() - started))

            started = time.perf_counter()
            tokenised = tokenise(documents, tokenizer, num_proc, load_from_cache_file=False)
            write_splits(tokenised, len(tokenizer), config.validation_share, Path(folder))
            preparation.append(megabytes / (time.perf_counter() - started))
    print(f"{megabytes:.1f} MB of text on {num_proc} cores, medians of {ROUNDS}:")
    print(f"raw tokenizer  {median(raw):.2f} MB/s")
    print(f"preparation    {median(preparation):.2f} MB/s, {median(preparation) / median(raw):.0%} of it")


if __name__ == "__main__":
    with report_user_errors():
        main(sys.argv[1:])
