"""The configuration of a run: files and overrides, and a message for all that can be wrong in them."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_files import SHORTEST, error_of, load, with_keys

from common.config.keys import Key, keys_of
from common.config.yaml_config import ConfigurationError, suggest
from pretrain.command_line import load_config
from pretrain.configuration import PretrainConfig
from pretrain.data.text_source import Source


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


# A list of ten lists of ten lists ..., of a billion texts in all.
LAUGHS = f"[&l0 [{10 * 'x, '}]" + "".join(f", &l{n} [{10 * f'*l{n - 1}, '}]" for n in range(1, 9)) + "]"


def test_a_file_of_two_lines_gives_the_defaults(file: Path) -> None:
    assert load(file) == PretrainConfig(output_dir="runs/test", max_steps=100)


def test_the_file_counts_before_the_defaults_and_the_command_line_before_the_file(file: Path) -> None:
    config = load(
        file,
        with_keys("max_steps: 20\nwarmup_steps: 5\nmodel: {hidden_size: 32, num_attention_heads: 4}"),
        "--max_steps 30 --model.hidden_size 64 --seed=7 --output_dir runs/other",
    )
    assert (config.max_steps, config.warmup_steps, config.seed, config.output_dir) == (30, 5, 7, "runs/other")
    assert config.model == {"hidden_size": 64, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        ("--data a.txt b.txt", "data", ["a.txt", "b.txt"]),
        ("--data a.txt", "data", "a.txt"),
        ("--data 2024 true", "data", ["2024", "true"]),
        ("--seed=7", "seed", 7),
        ("--output_dir=a=b", "output_dir", "a=b"),
        ("--output_dir 2026-11-25", "output_dir", "2026-11-25"),
        ("--output_dir 010", "output_dir", "010"),
        ("--output_dir 1e3", "output_dir", "1e3"),
        ("--output_dir 12:30", "output_dir", "12:30"),
        ("--mixed_precision no", "mixed_precision", "no"),
        ("--mixed_precision null", "mixed_precision", None),
        ("--learning_rate 2e-5", "learning_rate", 2e-5),
        ("--learning_rate 1", "learning_rate", 1.0),
        ("--gradient_checkpointing true", "gradient_checkpointing", True),
        ("--gradient_checkpointing selective", "gradient_checkpointing", "selective"),
        ("--num_proc null", "num_proc", None),
        ("--model null", "model", {}),
    ],
)
def test_values_of_the_command_line(file: Path, arguments: str, key: str, value: Any) -> None:
    found = getattr(load(file, arguments=arguments), key)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("content", "key", "value"),
    [
        ("learning_rate: 2e-5", "learning_rate", 2e-5),
        ("learning_rate: 2.0e-5", "learning_rate", 2e-5),
        ("weight_decay: 0", "weight_decay", 0.0),
        ("weight_decay: .1", "weight_decay", 0.1),
        ("mixed_precision: no", "mixed_precision", "no"),
        ("mixed_precision:", "mixed_precision", None),
        ("gradient_checkpointing: True", "gradient_checkpointing", True),
        ("max_steps: 10_000", "max_steps", 10_000),
        ("tokenizer: 7", "tokenizer", "7"),
        ("model:", "model", {}),
        ("model: {layer_norm_eps: 1e-6}", "model", {"layer_norm_eps": 1e-6}),
    ],
)
def test_values_of_the_file(file: Path, content: str, key: str, value: Any) -> None:
    found = getattr(load(file, with_keys(content)), key)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (
            "learning_rte: 1.0",
            "",
            "FILE: learning_rte is not a key of the configuration. Did you mean 'learning_rate'?",
        ),
        (
            "",
            "--learning-rate 1.0",
            "--learning-rate is not a key of the configuration. Did you mean 'learning_rate'?",
        ),
        ("7: 1", "", "FILE: 7 is not a key of the configuration. --help lists the keys."),
        ("", "--zzz 1", "--zzz is not a key of the configuration. --help lists the keys."),
        ("max_steps: ten", "", "max_steps is 'ten': it must be a whole number or null."),
        ("max_steps: 10.5", "", "max_steps is 10.5: it must be a whole number or null."),
        ("batch_size:", "", "batch_size is None: it must be a whole number."),
        ("seed: true", "", "seed is True: it must be a whole number."),
        ("num_proc: two", "", "num_proc is 'two': it must be a whole number or null."),
        ("learning_rate: fast", "", "learning_rate is 'fast': it must be a number."),
        ("learning_rate: inf", "", "learning_rate is 'inf': it must be a number."),
        ('learning_rate: "1.0"', "", "learning_rate is '1.0': it must be a number."),
        ("torch_compile: 1", "", "torch_compile is 1: it must be true or false."),
        ("torch_compile: yes", "", "torch_compile is 'yes': it must be true or false."),
        ("data: {path: a.txt}", "", "data is {'path': 'a.txt'}: it must be text or a list."),
        ("model: luna-base", "", "model is 'luna-base': it must be a mapping."),
        ("model: [hidden_size]", "--model.hidden_size 8", "model is ['hidden_size']: it must be a mapping."),
        ("", "--max_steps 1 2", "max_steps is [1, 2]: it must be a whole number or null."),
        ("", "--max_steps 1 --max_steps=2", "--max_steps is given twice."),
        ("", "--max_steps", "--max_steps needs a value."),
        ("", "--max_steps --seed 1", "--max_steps needs a value."),
        ("", "7", "'7' does not follow a --key."),
        ("", "--data [a", "--data: '[a' is not YAML: expected ',' or ']', but got '<stream end>'."),
    ],
)
def test_unknown_keys_wrong_types_and_broken_overrides(file: Path, content: str, arguments: str, message: str) -> None:
    assert error_of(file, with_keys(content), arguments).startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "FILE must hold `key: value` lines."),
        ("- output_dir", "FILE must hold `key: value` lines."),
        ("max_steps: 1", "FILE names no output_dir: add it, or give --output_dir FOLDER."),
        ("output_dir: a\nseed: [1", "FILE, line 2: not YAML: expected ',' or ']', but got '<stream end>'."),
        ("output_dir: a\nseed: 1\n seed: 2", "FILE, line 3: not YAML: mapping values are not allowed here."),
        ("output_dir: a\nseed: 1\nseed: 2", "FILE, line 3: not YAML: seed is given twice."),
        ("output_dir: a\nmodel:\n  hidden_size: 8\n  hidden_size: 8", "FILE, line 4: not YAML: hidden_size is given"),
    ],
)
def test_broken_files(file: Path, content: str, message: str) -> None:
    assert error_of(file, content).startswith(message)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(ConfigurationError) as error:
            load_config([str(path)])
        return str(error.value)

    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"output_dir: caf\xe9\n")
    assert message(tmp_path / "none.yaml") == f"{tmp_path}/none.yaml cannot be read: No such file or directory."
    assert message(tmp_path) == f"{tmp_path} cannot be read: Is a directory."
    assert message(latin).startswith(f"{latin} is not YAML: 'utf-8' codec can't decode")


@pytest.mark.parametrize("arguments", [[], ["--max_steps", "1"]])
def test_the_usage_where_no_file_is_named(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pretrain/prepare.py", *arguments])
    message = "Name a configuration file first: prepare.py FILE.yaml [--key value ...]. --help lists the keys."
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        load_config(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--max_steps 0", "max_steps is 0: it must be at least 1, or null."),
        ("--batch_size 0", "batch_size is 0: it must be at least 1."),
        ("--per_device_train_batch_size 0", "per_device_train_batch_size is 0: it must be at least 1, or null."),
        ("--logging_steps 0", "logging_steps is 0: it must be at least 1."),
        ("--eval_steps -1", "eval_steps is -1: it must be at least 0."),
        ("--save_steps -1", "save_steps is -1: it must be at least 0."),
        ("--weight_decay -0.1", "weight_decay is -0.1: it must be at least 0."),
        ("--dataloader_num_workers -1", "dataloader_num_workers is -1: it must be at least 0."),
        ("--num_proc 0", "num_proc is 0: it must be at least 1, or null."),
        ("--max_eval_rows 0", "max_eval_rows is 0: it must be at least 1, or null."),
        ("--save_total_limit 0", "save_total_limit is 0: it must be at least 1, or null."),
        ("--learning_rate 0", "learning_rate is 0.0: it must be above 0."),
        ("--max_grad_norm 0", "max_grad_norm is 0.0: it must be above 0."),
        ("--adam_epsilon 0", "adam_epsilon is 0.0: it must be above 0."),
        ("--adam_beta2 1", "adam_beta2 is 1.0: it must be below 1."),
        ("--mask_probability 1", "mask_probability is 1.0: it must be below 1."),
        ("--validation_share 0", "validation_share is 0.0: it must be above 0."),
        ("--max_length 7", "max_length is 7: it must be at least 8."),
        ("--vocab_size 260", "vocab_size is 260: it must be at least 261, the bytes and the special tokens."),
        ("--seed -1", "seed is -1: it must be at least 0."),
        ("--max_steps 50 --warmup_steps 51", "warmup_steps is 51: it exceeds max_steps (50)."),
        (
            "--packing tight",
            "packing is 'tight': it must be one of 'stream', 'full_sentences', 'best_fit'.",
        ),
        ("--on_bad_record ignore", "on_bad_record is 'ignore': it must be one of 'error', 'skip'."),
        ("--tokenizer_train_megabytes 0", "tokenizer_train_megabytes is 0: it must be at least 1."),
        ("--warmup_steps -1", "warmup_steps is -1: it must be at least 0, or null."),
        ("--warmup_tokens 5", "warmup_tokens is 5: it must be null, as the run's length is in steps."),
        ("--max_steps null", "The run needs one of max_steps, max_tokens and max_train_hours; given: none."),
        (
            "--max_tokens 5",
            "The run needs one of max_steps, max_tokens and max_train_hours; given: max_steps, max_tok",
        ),
        ("--max_steps null --max_train_hours 0", "max_train_hours is 0.0: it must be above 0, or null."),
        ("--decay_steps 5", "decay_steps is 5: it must be null, as only the trapezoidal schedule has a decay"),
        ("--lr_scheduler_type constant", "lr_scheduler_type is 'constant': it must be one of 'linear', 'cosine', "),
        ("--min_learning_rate 1", "min_learning_rate is 1.0: it must not exceed learning_rate (0.0006)."),
        ("--max_length_ramp_steps 9", "max_length_ramp_steps is 9: it must be 0 without max_length_start."),
        (
            "--max_length 96 --max_length_start 16",
            "max_length_start is 16: it must be max_length (96) halved several times.",
        ),
        ("--max_length_start 1000", "max_length_start is 1000: it must be max_length (512) halved several times."),
        (
            "--max_length 64 --max_length_start 8 --max_length_ramp_steps 2",
            "max_length_ramp_steps is 2: it must be at least 3, a step for each length.",
        ),
        (
            "--packing best_fit --max_length 64 --max_length_start 8 --max_length_ramp_steps 9",
            "max_length_start is 8: it must be null with best_fit, which packs whole documents already.",
        ),
        ("--optimizer adam", "optimizer is 'adam': it must be one of 'adamw', 'stable_adamw'."),
        (
            "--gradient_checkpointing yes",
            "gradient_checkpointing is 'yes': it must be one of false, true, 'selective'.",
        ),
        ("--masking words", "masking is 'words': it must be one of 'token', 'whole_word', 'span'."),
        ("--mean_span_length 6", "mean_span_length is 6.0: it must be at most 5."),
        ("--mask_probability_end 0", "mask_probability_end is 0.0: it must be above 0, or null."),
        ("--mask_probability_steps 9", "mask_probability_steps is 9: it must be null without mask_probability_end."),
        (
            "--max_steps null --max_train_hours 1 --mask_probability_end 0.1",
            "mask_probability_end is 0.1: it needs mask_probability_steps where the length is in hours",
        ),
        ("--weight_averaging ema", "weight_averaging is 'ema': it must be one of 'exponential', 'stage', null."),
        ("--averaging_start_step 101", "averaging_start_step is 101: it exceeds max_steps (100)."),
        ("--averaging_decay 1", "averaging_decay is 1.0: it must be below 1."),
        ("--init_from a --model_config b", "model_config is 'b': it must be null where init_from gives the model."),
        ("--mixed_precision fp8", "mixed_precision is 'fp8': it must be one of 'no', 'bf16', null."),
        ("--documents page", "documents is 'page': it must be one of 'auto', 'line', 'blank_line', 'file'."),
        ("--report_to none", "report_to is 'none': it must be one or several of tensorboard, trackio, wandb."),
        ("--report_to wandb [wandb]", "report_to is ['wandb', ['wandb']]: it must be one or several of tensorboard"),
        ("--project ''", "project is '': it must not be empty."),
        ("--data []", "data: name at least one source."),
        ("--data a.txt [b.txt]", "data: ['b.txt'] is neither a path nor a mapping with the key 'path'."),
    ],
)
def test_values_that_make_no_sense(file: Path, arguments: str, message: str) -> None:
    assert error_of(file, arguments=arguments).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--max_steps null --max_tokens 1e25", "max_tokens is 1e+25: it must be a whole number or null."),
        (f"--max_steps null --max_tokens 1{25 * '0'}", "max_tokens holds a number of more than 64 bits."),
        (f"--max_steps null --max_tokens 1{16 * '0'}", "max_tokens is 10000000000000000: it must be at most 1e+15"),
        ("--batch_size 1000000000000", "batch_size is 1000000000000: it must be at most 16,777,216."),
        ("--batch_size 1000000", "batch_size is 1000000: it makes steps of 512,000,000 tokens with max_length 512; "),
        ("--batch_size_ramp_steps 1000000000000", "batch_size_ramp_steps is 1000000000000: it must be at most 1,000"),
        ("--vocab_size 1000000000000", "vocab_size is 1000000000000: it must be at most 16,777,216."),
        ("--model.hidden_size 1000000000000", "model.hidden_size is 1,000,000,000,000: it must be at most 16,777,2"),
        ("--model.num_hidden_layers 1000000000", "model.num_hidden_layers is 1,000,000,000: it must be at most 10,0"),
        ("--model.layer_norm_eps 1e999", "model.layer_norm_eps is inf: it must be a finite number."),
        ("--model.conv_kernel_size 1000001", "model.conv_kernel_size is 1,000,001: it must not exceed twice max_len"),
        ("--learning_rate 1e999", "learning_rate is inf: it must be at most 1,000,000."),
        ("--num_proc 1000000", "num_proc is 1000000: it must be at most 1,024, or null."),
        ("--seed 9223372036854775808", "seed is 9223372036854775808: it must be below 9.22337e+18."),
        (f"--max_time {100 * '9'}:00:00", "max_time is '999999"),
        ("--hub_wait 1000000:00:00", "hub_wait is '1000000:00:00': it must have the form HH:MM:SS, such as 11:30:00,"),
        (f"--num_proc {5000 * '9'}", "--num_proc: '9999"),
        (f"--project {300 * 'a'} b", "project is ['aaaaaa"),
    ],
)
def test_values_beyond_all_bounds(file: Path, arguments: str, message: str) -> None:
    found = error_of(file, arguments=arguments)
    assert found.startswith(message)
    assert len(found) < 400


@pytest.mark.parametrize("key", keys_of(PretrainConfig), ids=lambda key: key.name)
def test_every_number_has_a_range(key: Key) -> None:
    assert bool({int, float} & {*key.types}) == (key.limits is not None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seed: !!int abc", "FILE, line 3: not YAML: 'abc' is no int."),
        ("seed: !!float abc", "FILE, line 3: not YAML: 'abc' is no float."),
        ("torch_compile: !!bool maybe", "FILE, line 3: not YAML: 'maybe' is no bool."),
        ("project: !!timestamp abc", "FILE, line 3: not YAML: 'abc' is no timestamp."),
        ("learning_rate: !!float .nan", "learning_rate is nan: it must be above 0."),
        ("weight_decay: !!float .nan", "weight_decay is nan: it must be at least 0."),
        (f"seed: 1{5000 * '0'}", "FILE, line 3: not YAML: '10000"),
        (f"seed: !!int 0x{5000 * 'f'}", "seed holds a number of more than 64 bits."),
        ("seed: !!set {1}", "seed is {1}: it must be a whole number."),
        (f"data: {3000 * '['}", "FILE is nested too deeply."),
        ('data: "a\\0.txt"', "data holds 'a\\x00.txt': no file or name can have such a character."),
        ('data: [a.txt, {path: "a\\0"}]', "data holds 'a\\x00': no file or name can have such a character."),
        ('output_dir: "a\\ud800"', "output_dir holds 'a\\ud800': no file or name can have such a character."),
        ('model: {hidden_act: "\\0"}', "model holds '\\x00': no file or name can have such a character."),
        ("data: &a [*a]", "data holds more than 100,000 values."),
        (f"data: {LAUGHS}", "data holds more than 100,000 values."),
    ],
)
def test_values_that_no_key_can_use(file: Path, content: str, message: str) -> None:
    head = "max_steps: 100\n" if content.startswith("output_dir") else ""
    found = error_of(file, (head + "project: a\n" if head else SHORTEST + "\n") + content)
    assert found.startswith(message)
    assert len(found) < 400


@pytest.mark.parametrize(
    ("arguments", "trackers"),
    [
        ("", []),
        ("--report_to wandb", ["wandb"]),
        ("--report_to trackio tensorboard trackio", ["trackio", "tensorboard"]),
    ],
)
def test_trackers_are_one_or_several(file: Path, arguments: str, trackers: list[str]) -> None:
    assert load(file, arguments=arguments).trackers() == trackers


def test_sources_take_what_they_lack_from_the_run(file: Path) -> None:
    content = "data: [a.txt, {path: org/name, text_column: body, split: test}]\ntext_column: content\ndocuments: line"
    assert load(file, with_keys(content)).sources() == [
        Source("a.txt", text_column="content", documents="line"),
        Source("org/name", text_column="body", split="test", documents="line"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("data: [{split: test}]", "data: {'split': 'test'} is neither a path nor a mapping with the key 'path'."),
        ("data: [{path: a, column: b}]", "data: unknown key 'column' of a. Did you mean 'text_column'?"),
        ("data: [{path: a, 7: b}]", "data: unknown key 7 of a. Known are: path, text_column, config, split, "),
        ("data: [{path: 1.5}]", "1.5: path is 1.5, but must be text: put it in quotes"),
        ("data: [{path: a, config: [b]}]", "a: config is ['b'], but must be text: put it in quotes"),
        ("data: [{path: a, weight: 1}, b]", "data: give each source a weight, or none of them."),
        ("data: [{path: a, weight: -1}]", "a: weight is -1, but must be a number above 0, or null"),
        ("data: [{path: a, documents: page}]", "a: documents is 'page', but must be one of "),
    ],
)
def test_broken_sources(file: Path, content: str, message: str) -> None:
    assert error_of(file, with_keys(content)).startswith(message)


def test_suggestions_name_the_nearest_key_or_all() -> None:
    assert suggest("sead", ["seed", "data"]) == " Did you mean 'seed'?"
    assert suggest("xyz", ["seed", "data"]) == " Known are: seed, data."


def test_the_module_is_imported_without_the_model() -> None:
    """The processes that read `python-docs` import it, too, and should not wait for PyTorch."""
    code = "import sys, pretrain.configuration; sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
