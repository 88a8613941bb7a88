"""Comparison of masked language models: what `pretrain/evaluate.py` is made of."""
