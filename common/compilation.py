"""torch.compile where it pays: part by part."""

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def compile_parts(model: PreTrainedModel):
    """Compile the layers, the head and the loss of a model, each when it is first called.

    All layers share what is compiled, so that this takes about as long as for one of them. Names of parameters stay as
    they are, but the model can no longer be pickled (`save_pretrained` works).
    """
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile()
    if model.base_model is model:
        return
    for head in model.children():
        if head is not model.base_model:
            head.compile()
    model.loss_function = torch.compile(model.loss_function)
