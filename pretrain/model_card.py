"""The model card of a pretrained model."""

from pathlib import Path

from transformers import PreTrainedModel

from pretrain.configuration import PretrainConfig


def model_card(model: PreTrainedModel, config: PretrainConfig, metrics: dict) -> str:
    """Markdown with the metadata block of the Hub: what was trained on what, how far, and how to load it."""
    sources = ", ".join(source.path for source in config.sources())
    options = model.config
    name = Path(config.output_dir).name
    figures = "".join(f"| {key.replace('_', ' ')} | {_figure(value)} |\n" for key, value in metrics.items())
    return f"""---
library_name: transformers
pipeline_tag: fill-mask
tags: [luna, fill-mask]
---

# {name}

A [Luna](https://arxiv.org/abs/2106.01540) encoder with {model.num_parameters():,} parameters, trained by masked
language modelling on {sources}.

```python
import modeling_luna  # makes the Auto classes know Luna
from transformers import pipeline

fill_mask = pipeline("fill-mask", model="PATH_OR_ID")
```

| | |
|---|---|
| layers, hidden size, heads | {options.num_hidden_layers}, {options.hidden_size}, {options.num_attention_heads} |
| projection length, key and value | {options.projection_length}, {"tied" if options.tie_key_value else "untied"} |
| convolution | {options.conv_kernel_size or "none"} |
| tokens a row | {config.max_length} |
| rows a step | {config.batch_size} |
| learning rate, warm-up steps | {config.learning_rate}, {config.warmup_steps} |
{figures}"""


def _figure(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
