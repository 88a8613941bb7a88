# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Tensor parallelism and DeepSpeed ZeRO-3; started by test_parallel.py, once for each rank.

Arguments: a file for the ranks to meet in, the rank, what to do (`tensor_parallel`, `zero3`, `zero3_resized`), the
model's class and its folder, and one to save into. Prints a JSON object.
"""

import json
import os
import sys

import torch
import torch.distributed as dist

import modeling_luna
from modeling_luna import LunaForMaskedLM, LunaPreTrainedModel


STEPS, LEARNING_RATE = 2, 0.1
NEW_TOKENS, NEW_POSITIONS = 60, 64


def batch_of(model_class: type, seed: int = 0) -> dict[str, torch.Tensor]:
    input_ids = torch.randint(3, 53, (3, 9), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(input_ids)
    mask[0, 6:] = mask[1, :7] = 0
    batch = {"input_ids": input_ids, "attention_mask": mask}
    if model_class is LunaForMaskedLM:
        batch["labels"] = input_ids.masked_fill(mask == 0, -100)
    elif "SequenceClassification" in model_class.__name__:
        batch["labels"] = torch.tensor([0, 1, 1])
    return batch


def run(model: LunaPreTrainedModel, batch: dict[str, torch.Tensor]) -> tuple[dict, dict]:
    """The outputs, and the gradients by their parameters' names."""
    outputs = model(**batch)
    loss = outputs.get("loss")
    if loss is None:
        loss = outputs.last_hidden_state.pow(3).mean() + outputs.packed_last_hidden_state.pow(2).mean()
    loss.backward()
    return outputs, {name: parameter.grad for name, parameter in model.named_parameters()}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def largest_difference(results: dict, expected: dict) -> float:
    assert results.keys() == expected.keys(), results.keys() ^ expected.keys()
    return max((whole(results[name]) - expected[name]).abs().max().item() for name in expected)


def tensor_parallel(model_class: type, folder: str, save_folder: str) -> dict:
    from transformers.distributed import DistributedConfig

    batch = batch_of(model_class)
    model = model_class.from_pretrained(folder, distributed_config=DistributedConfig(tp_plan="auto")).eval()
    outputs, gradients = run(model, batch)
    expected_outputs, expected_gradients = run(model_class.from_pretrained(folder).eval(), batch)
    result = {
        "sharded": sorted(name for name, value in model.named_parameters() if hasattr(value, "to_local")),
        "held": sum(value.to_local().numel() for value in model.parameters() if hasattr(value, "to_local")),
        "outputs": largest_difference(outputs, expected_outputs),
        "gradients": largest_difference(gradients, expected_gradients),
    }
    if model_class is LunaForMaskedLM:
        result["tied"] = is_tied(model)
    model.save_pretrained(save_folder)
    return result


def train_alone(model_class: type, folder: str) -> LunaPreTrainedModel:
    """What the ranks do together, in one process."""
    model = model_class.from_pretrained(folder)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for _ in range(STEPS):
        for rank in range(2):
            (model(**batch_of(model_class, seed=rank)).loss / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def zero3(model_class: type, folder: str, save_folder: str, resize: bool = False) -> dict:
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig

    expected = train_alone(model_class, folder)
    deepspeed.init_distributed("gloo")
    configuration = {
        "train_micro_batch_size_per_gpu": 3,
        # Parameters that are thought too small would otherwise stay whole on every process.
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
    }
    switched_on = HfDeepSpeedConfig(configuration)  # as long as it lives, Transformers shards
    model = model_class.from_pretrained(folder)
    held, tied = [count_held(model)], [is_tied(model)]
    if resize:
        model.resize_token_embeddings(NEW_TOKENS)
        model.luna.resize_position_embeddings(NEW_POSITIONS)
        tied.append(is_tied(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=configuration)
    batch = batch_of(model_class, seed=dist.get_rank())
    losses = []
    for _ in range(STEPS):
        loss = engine(**batch).loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    tied.append(is_tied(model))
    held.append(count_held(model))
    result = {"zero3": switched_on.is_zero3(), "held": held, "tied": tied, "losses": losses}
    parameters = dict(model.named_parameters())
    with deepspeed.zero.GatheredParameters(list(parameters.values())):
        if not resize:
            result["difference"] = largest_difference(parameters, dict(expected.named_parameters()))
        if dist.get_rank() == 0:
            model.save_pretrained(save_folder)
    return result


def is_tied(model: LunaForMaskedLM) -> bool:
    return model.lm_head.decoder.weight is model.luna.embeddings.word_embeddings.weight


def count_held(model: LunaPreTrainedModel) -> int:
    """The number of parameters that this process holds whole."""
    return sum(parameter.numel() for parameter in model.parameters())


def main(meeting_file: str, rank: int, task: str, class_name: str, folder: str, save_folder: str):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    dist.init_process_group("gloo", init_method=f"file://{meeting_file}", rank=rank, world_size=2)
    model_class = getattr(modeling_luna, class_name)
    if task == "tensor_parallel":
        result = tensor_parallel(model_class, folder, save_folder)
    else:
        result = zero3(model_class, folder, save_folder, resize=task == "zero3_resized")
    print("\n" + json.dumps(result), flush=True)
    dist.barrier()
    dist.destroy_process_group()
    # A process of gloo now and then aborts while Python takes itself down.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
