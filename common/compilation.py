"""torch.compile where it pays: layer by layer."""

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def compile_layers(model: nn.Module):
    """Compile each layer of a model of Transformers, when it is first called.

    All layers share what is compiled, so that it takes as long as for one of them. Names of parameters stay as they
    are.
    """
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile()
