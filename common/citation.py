"""How Luna is cited, for model cards."""

LUNA = """@inproceedings{ma2021luna,
  title     = {Luna: Linear Unified Nested Attention},
  author    = {Ma, Xuezhe and Kong, Xiang and Wang, Sinong and Zhou, Chunting and May, Jonathan and Ma, Hao and
               Zettlemoyer, Luke},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {34},
  year      = {2021},
  url       = {https://arxiv.org/abs/2106.01540}
}"""
