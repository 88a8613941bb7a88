"""Prepare the data of a pretraining: text to tokens, once. The first run of the training does the same.

    python pretrain/prepare.py configs/pretrain/NAME.yaml [--verify] [--key value ...]

After an interruption the same command goes on from the shards that are whole, and damaged ones are made again. Files
are hashed where they were changed since they were last looked at; `--verify` hashes all and prepares nothing.
"""

import sys

from common.errors import report_user_errors, say
from pretrain.command_line import load_config


def main(arguments: list[str]):
    config = load_config([argument for argument in arguments if argument != "--verify"], __doc__)
    # Processes that read the built-in corpus import this file again: without what takes seconds to import.
    from pretrain.data.manifest import read_manifest
    from pretrain.preparation import prepare, verify

    if "--verify" in arguments:
        say(f"All files are as they were written: {verify(config)}")
        return
    folder = prepare(config)
    for split, facts in read_manifest(folder)["splits"].items():
        print(f"{split}: {facts['documents']:,} documents, {facts['tokens']:,} tokens")
    say(folder)


if __name__ == "__main__":
    with report_user_errors():
        main(sys.argv[1:])
