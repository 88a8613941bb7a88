# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Two training steps under DistributedDataParallel; started by test_ddp.py, once for each rank.

Arguments: a file for the ranks to meet in, the rank, `masked_lm` or `base`, and the configuration as JSON. Prints the
sum of absolute parameter values after the steps, and the losses, as JSON.
"""

import json
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from modeling_luna import LunaConfig, LunaForMaskedLM, LunaModel


STEPS, ROWS, TOKENS = 2, 2, 9


def loss_of(model: DistributedDataParallel, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if isinstance(model.module, LunaForMaskedLM):
        return model(input_ids, attention_mask=mask, labels=input_ids.masked_fill(mask == 0, -100)).loss
    return model(input_ids, attention_mask=mask).last_hidden_state.pow(3).mean()


def train(rank: int, kind: str, fields: dict) -> tuple[list[float], float]:
    torch.manual_seed(0)
    config = LunaConfig(**fields)
    model = DistributedDataParallel(LunaForMaskedLM(config) if kind == "masked_lm" else LunaModel(config))
    assert not model.find_unused_parameters
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    torch.manual_seed(1 + rank)
    losses = []
    for _ in range(STEPS):
        input_ids = torch.randint(3, config.vocab_size, (ROWS, TOKENS))
        mask = (torch.arange(TOKENS) < torch.tensor([[TOKENS], [3 + rank]])).long()
        loss = loss_of(model, input_ids, mask)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, sum(parameter.double().abs().sum() for parameter in model.parameters()).item()


def main(meeting_file: str, rank: int, kind: str, fields: dict):
    dist.init_process_group("gloo", init_method=f"file://{meeting_file}", rank=rank, world_size=2)
    # torch may hang where a DistributedDataParallel outlives its process group: `train` lets go of it first.
    losses, checksum = train(rank, kind, fields)
    dist.destroy_process_group()
    print(json.dumps({"losses": losses, "checksum": checksum}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4]))
