"""Luna's own health: whether the slots of the packed state still differ, and how widely packing looks."""

import torch
from accelerate import Accelerator
from torch import nn

from modeling_luna.rows_luna import RaggedRows, prepare_rows, used_slots


MAX_ROWS = 4
COLLAPSED = 1.5  # effective rank below which slots hold one and the same thing; a fresh Luna has several times that


@torch.no_grad()
def packed_health(model: nn.Module, batch: dict, accelerator: Accelerator) -> dict[str, list[float]]:
    """Look at P and at the pack attention of each layer in one forward pass over a few rows.

    All processes call it, each with a batch of its own; the means are over the documents of all. The attention runs in
    the eager implementation meanwhile, which alone gives its weights.

    Args:
        model: as the accelerator has wrapped it.
        batch: arguments of the model, of which the first rows are taken.

    Returns:
        Nothing for another architecture than Luna or without layers; else for each layer:
        - `effective_rank`: of P after the layer, over the slots in use: the exponential of the entropy of its
          singular values as shares of their sum, from 1 (all slots are multiples of one another) to l.
        - `pack_entropy`: of the pack attention in nats, mean over heads, slots and documents.
        - `relative_pack_entropy`: the same over log n, 1 where a slot looks at all n tokens alike.
    """
    luna = getattr(accelerator.unwrap_model(model), "luna", None)
    if luna is None or not luna.layers:
        return {}
    batch = first_rows(batch, MAX_ROWS)
    batch = {name: v.to(accelerator.device) if torch.is_tensor(v) else v for name, v in batch.items()}
    measured = _Measured(*_masks(batch, luna.config))

    implementation, training = luna.config._attn_implementation, model.training
    hooks = []
    for layer in luna.layers:
        hooks.append(layer.pack_attention.register_forward_hook(measured.take_attention))
        hooks.append(layer.register_forward_hook(measured.take_packed))
    luna.config._attn_implementation = "eager"
    model.eval()
    try:
        model(**batch, num_items_in_batch=1)
    finally:
        model.train(training)
        luna.config._attn_implementation = implementation
        for hook in hooks:
            hook.remove()
    return measured.means(accelerator)


def first_rows(batch: dict, rows: int) -> dict:
    """The first rows of a batch, with their documents."""
    length = batch["input_ids"].shape[1]
    first = {name: v[:rows] if torch.is_tensor(v) else v for name, v in batch.items()}
    if "cu_seq_lens_q" in batch:  # a document begins with each row
        ends = batch["cu_seq_lens_q"]
        first["cu_seq_lens_q"] = ends[ends <= rows * length]
    return first


class _Measured:
    """Sums over documents of what the hooks see, layer by layer.

    Args:
        tokens, slots: which places of each document hold a token, (documents, n), and a slot in use, (documents, l).
    """

    def __init__(self, tokens: torch.Tensor, slots: torch.Tensor):
        self.tokens = tokens
        self.slots = slots
        self.ranks: list[torch.Tensor] = []
        self.entropies: list[torch.Tensor] = []
        self.relative: list[torch.Tensor] = []

    def take_packed(self, module: nn.Module, inputs: tuple, outputs: tuple):
        packed = outputs[1].float().masked_fill(~self.slots.unsqueeze(-1), 0.0)
        self.ranks.append(effective_rank(packed).sum())

    def take_attention(self, module: nn.Module, inputs: tuple, outputs: tuple):
        weights = outputs[1].float()  # (documents, heads, l, n)
        entropy = torch.special.entr(weights / weights.sum(dim=-1, keepdim=True)).sum(dim=-1)
        slots = self.slots.unsqueeze(1).expand_as(entropy)
        of_documents = (entropy * slots).sum(dim=(1, 2)) / slots.sum(dim=(1, 2))
        self.entropies.append(of_documents.sum())
        self.relative.append((of_documents / self._log_tokens()).where(self._several(), 0.0).sum())

    def means(self, accelerator: Accelerator) -> dict[str, list[float]]:
        """Means over the documents of all processes."""
        counts = torch.stack([torch.tensor(len(self.tokens), device=self.tokens.device), self._several().sum()])
        sums = torch.stack([*self.ranks, *self.entropies, *self.relative]).double()
        totals = accelerator.reduce(torch.cat([sums, counts.double()]), reduction="sum")
        *values, documents, several = totals.tolist()
        layers = len(self.ranks)
        counts_by_name = {
            "effective_rank": documents,
            "pack_entropy": documents,
            "relative_pack_entropy": max(several, 1.0),
        }
        return {
            name: [value / count for value in values[number * layers : (number + 1) * layers]]
            for number, (name, count) in enumerate(counts_by_name.items())
        }

    def _several(self) -> torch.Tensor:
        """Which documents have more than one token, so that packing has a choice."""
        return self.tokens.sum(dim=1) > 1

    def _log_tokens(self) -> torch.Tensor:
        return self.tokens.sum(dim=1).clamp(min=2).log()


def effective_rank(matrices: torch.Tensor) -> torch.Tensor:
    """The exponential of the entropy of the singular values of (..., rows, columns) as shares of their sum (Roy and
    Vetterli, 2007); NaN for a matrix with a number that is not finite."""
    finite = matrices.isfinite().all(dim=(-2, -1))
    values = torch.linalg.svdvals(matrices.nan_to_num())
    shares = values / values.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
    return torch.special.entr(shares).sum(dim=-1).exp().where(finite, torch.nan)


def _masks(batch: dict, config) -> tuple[torch.Tensor, torch.Tensor]:
    names = ("attention_mask", "position_ids", "cu_seq_lens_q", "max_length_q")
    mask, documents = prepare_rows(batch["input_ids"], **{name: batch[name] for name in names if name in batch})
    tokens = documents.mask if isinstance(documents, RaggedRows) else mask
    if tokens is None:
        tokens = torch.ones_like(batch["input_ids"], dtype=torch.bool)
    if not config.dynamic_projection:
        return tokens, tokens.new_ones(len(tokens), config.projection_length)
    return tokens, used_slots(tokens, min(config.projection_length, tokens.shape[1]))
