"""The health of the packed state: rank of P and entropy of the pack attention, in every launch."""

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from training_runs import reset_accelerate

from modeling_luna import LunaConfig, LunaForMaskedLM
from pretrain.watching.health import effective_rank, first_rows, packed_health


SLOTS, LENGTH = 8, 32
NAMES = ["effective_rank", "pack_entropy", "relative_pack_entropy"]


@pytest.fixture
def accelerator() -> Accelerator:
    reset_accelerate()
    yield Accelerator(cpu=True)
    reset_accelerate()


@pytest.fixture
def build_model(build_config: Callable, tmp_path: Path) -> Callable:
    def build(implementation: str = "sdpa", **fields) -> LunaForMaskedLM:
        torch.manual_seed(0)
        config = LunaConfig(**(build_config(tmp_path).model | fields), vocab_size=400)
        return LunaForMaskedLM._from_config(config, attn_implementation=implementation)

    return build


def rows(count: int = 3, length: int = LENGTH) -> dict:
    ids = torch.randint(3, 400, (count, length), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids}


def test_effective_rank_of_known_matrices():
    matrices = torch.stack([torch.eye(4), torch.ones(4, 4), torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0]))])
    assert effective_rank(matrices).tolist() == pytest.approx([4.0, 1.0, 2.0], abs=1e-3)
    values = torch.tensor([3.0, 1.0])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(torch.diag(values)).item() == pytest.approx(math.exp(entropy))
    assert effective_rank(torch.zeros(2, 3)).isfinite()
    ranks = effective_rank(torch.stack([torch.eye(3), torch.eye(3).fill_diagonal_(math.inf)]))
    assert ranks[0] == pytest.approx(3.0) and ranks[1].isnan()


def test_health_is_that_of_the_states_and_attentions(build_model: Callable, accelerator: Accelerator):
    model, batch = build_model("eager").eval(), rows()
    with torch.no_grad():
        outputs = model(**batch, output_pack_attentions=True, output_packed_hidden_states=True)
    health = packed_health(model, batch, accelerator)
    assert list(health) == NAMES
    for layer in range(2):
        singular = torch.linalg.svdvals(outputs.packed_hidden_states[layer + 1].double())
        shares = singular / singular.sum(dim=1, keepdim=True)
        rank = torch.exp(-(shares * shares.log()).sum(dim=1)).mean().item()
        weights = outputs.pack_attentions[layer].double()
        entropy = -(weights * weights.log()).sum(dim=-1).mean().item()
        assert health["effective_rank"][layer] == pytest.approx(rank, rel=1e-4)
        assert health["pack_entropy"][layer] == pytest.approx(entropy, rel=1e-4)
        assert health["relative_pack_entropy"][layer] == pytest.approx(entropy / math.log(LENGTH), rel=1e-4)


def test_a_model_without_layers_has_none(build_model: Callable, accelerator: Accelerator):
    assert packed_health(build_model(num_hidden_layers=0), rows(), accelerator) == {}


def test_a_fresh_model_is_healthy_and_a_collapsed_one_is_not(build_model: Callable, accelerator: Accelerator):
    model = build_model()
    assert min(packed_health(model, rows(), accelerator)["effective_rank"]) > SLOTS / 2
    with torch.no_grad():
        model.luna.embeddings.packed_embeddings[1:] = model.luna.embeddings.packed_embeddings[:1]
    health = packed_health(model, rows(), accelerator)
    assert health["effective_rank"] == pytest.approx([1.0, 1.0], abs=0.01)

    with torch.no_grad():  # keys that are all alike: packing takes the mean of the tokens
        for layer in model.luna.layers:
            layer.pack_attention.kv_proj.weight.zero_()
    assert packed_health(model, rows(), accelerator)["relative_pack_entropy"] == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_nothing_is_left_changed(build_model: Callable, accelerator: Accelerator, implementation: str):
    model = build_model(implementation, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    for training in (True, False):
        model.train(training)
        state = torch.get_rng_state()
        health = packed_health(model, rows(), accelerator)
        assert torch.equal(torch.get_rng_state(), state)
        assert model.training is training and model.luna.layers[0].mlp.activation_dropout.training is training
        assert model.config._attn_implementation == implementation
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not any(module._forward_hooks for module in model.modules())
        assert packed_health(model, rows(), accelerator) == health  # no dropout

    with pytest.raises(ValueError):  # ids out of range
        packed_health(model.train(), {"input_ids": torch.full((1, 4), 999), "labels": torch.zeros(1, 4)}, accelerator)
    assert model.training and model.config._attn_implementation == implementation
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("dynamic", [True, False])
def test_padding_and_documents_of_a_row_do_not_matter(build_model: Callable, accelerator: Accelerator, dynamic: bool):
    model = build_model(dynamic_projection=dynamic)
    lengths = (5, 20, 7, 12, 20)  # the first and the third document have fewer tokens than there are slots
    documents = rows(len(lengths))["input_ids"]
    alone = [
        packed_health(model, {"input_ids": ids[None, :n], "labels": ids[None, :n]}, accelerator)
        for ids, n in zip(documents, lengths, strict=True)
    ]
    expected = {name: [sum(health[name][layer] for health in alone[:4]) / 4 for layer in range(2)] for name in NAMES}

    mask = torch.arange(LENGTH) < torch.tensor(lengths)[:, None]
    padded = {"input_ids": documents.masked_fill(~mask, 1), "labels": documents, "attention_mask": mask}
    health = packed_health(model, padded, accelerator)
    for name in NAMES:
        assert health[name] == pytest.approx(expected[name], rel=1e-4)

    packed = [torch.cat([ids[:n] for ids, n in zip(documents, lengths, strict=True)])[:LENGTH], documents[0]]
    rows_of_documents = {"input_ids": torch.stack(packed), "labels": torch.stack(packed)}
    rows_of_documents["cu_seq_lens_q"] = torch.tensor([0, 5, 25, 32, 64], dtype=torch.int32)
    rows_of_documents["max_length_q"] = 32
    health = packed_health(model, rows_of_documents, accelerator)
    whole = packed_health(model, {"input_ids": documents[:1], "labels": documents[:1]}, accelerator)
    for name in NAMES:
        means = [(sum(h[name][layer] for h in alone[:3]) + whole[name][layer]) / 4 for layer in range(2)]
        assert health[name] == pytest.approx(means, rel=1e-4)


def test_first_rows_keep_their_documents():
    batch = {"input_ids": torch.zeros(6, 4), "cu_seq_lens_q": torch.tensor([0, 4, 6, 8, 9, 12, 16, 20, 24])}
    first = first_rows(batch | {"max_length_q": 4}, 3)
    assert first["input_ids"].shape == (3, 4) and first["max_length_q"] == 4
    assert first["cu_seq_lens_q"].tolist() == [0, 4, 6, 8, 9, 12]


WORKER = """
import json, sys
import torch
from modeling_luna import LunaConfig, LunaForMaskedLM
from pretrain.configuration import PretrainConfig
from pretrain.watching.health import packed_health
from pretrain.launch import batch_plan, end_processes, start_accelerator
from pretrain.steps.optimizers import build_optimizer

config = PretrainConfig(output_dir="none", batch_size=8, model=json.loads(sys.argv[1]))
accelerator = start_accelerator(config)
batch_plan(config, accelerator)
torch.manual_seed(0)
model = LunaForMaskedLM(LunaConfig(**config.model, vocab_size=400)).to(accelerator.device)
ids = torch.randint(3, 400, (4, 32), generator=torch.Generator().manual_seed(1))
mine = ids[accelerator.process_index :: accelerator.num_processes].contiguous()
model, optimizer = accelerator.prepare(model, build_optimizer(model, config))
model.train()
state = torch.get_rng_state()
batch = {"input_ids": mine, "labels": mine}
healths = [packed_health(model, batch, accelerator)]
assert torch.equal(torch.get_rng_state(), state) and model.training
loss = model(**batch).loss
getattr(model, "backward", accelerator.backward)(loss)  # training goes on; of DeepSpeed without an update
healths.append(packed_health(model, batch, accelerator))
if accelerator.is_main_process:
    print("RESULT", accelerator.num_processes, json.dumps(healths), flush=True)
end_processes(accelerator)
"""
needs_deepspeed = pytest.mark.skipif(
    not importlib.util.find_spec("deepspeed") or not shutil.which("g++") or not shutil.which("ninja"),
    reason="needs deepspeed, and g++ and ninja, which it compiles with",
)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["cpu_2_processes", "fsdp2", pytest.param("zero3", marks=needs_deepspeed)])
def test_two_processes_see_the_health_of_one(
    build_model: Callable, accelerator: Accelerator, environment: dict[str, str], tmp_path: Path, mode: str
):
    script = tmp_path / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    model = build_model()
    fields = {name: getattr(model.config, name) for name in FIELDS}
    variables = environment | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    process = subprocess.Popen(
        [*launcher, f"configs/accelerate/{mode}.yaml", "--main_process_port", "0", str(script), json.dumps(fields)],
        cwd=environment["PYTHONPATH"],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    (line,) = [line for line in output.splitlines() if "RESULT" in line]
    _, processes, healths = line[line.index("RESULT") :].split(" ", 2)
    assert processes == "2"
    expected = packed_health(model, rows(4), accelerator)
    for health in json.loads(healths):
        for name in NAMES:
            assert health[name] == pytest.approx(expected[name], rel=1e-4)


FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "projection_length",
    "max_position_embeddings", "initializer_range", "hidden_dropout_prob", "attention_probs_dropout_prob",
)  # fmt: skip
