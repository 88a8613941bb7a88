"""Masked language models judged: hidden words and minimal pairs; run from the checkout."""
