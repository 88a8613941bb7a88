"""What the cards of all Luna models say."""

LINK = "[Luna](https://arxiv.org/abs/2106.01540)"
TAGS = ["luna", "linear-attention"]
ATTENTION = (
    "Luna's attention packs the tokens of a row into a few slots and unpacks them again, so that time and memory grow "
    "linearly with the length of the row."
)
CITATION = """@inproceedings{ma2021luna,
  title     = {Luna: Linear Unified Nested Attention},
  author    = {Ma, Xuezhe and Kong, Xiang and Wang, Sinong and Zhou, Chunting and May, Jonathan and Ma, Hao and
               Zettlemoyer, Luke},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {34},
  year      = {2021},
  url       = {https://arxiv.org/abs/2106.01540}
}"""


def usage(with_package: str, without: str) -> str:
    """How a Luna model is loaded.

    Args:
        with_package, without: code that loads it with `modeling_luna` imported, and by the code beside its weights.
    """
    return (
        "With the package `modeling_luna` of Luna for Hugging Face Transformers:\n\n```python\n"
        f"import modeling_luna  # makes the Auto classes know Luna\n{with_package}\n```\n\n"
        f"Without it, by the code that lies beside the weights:\n\n```python\n{without}\n```"
    )
