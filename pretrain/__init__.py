"""Masked-LM pretraining of Luna; run from the checkout, not installed by the wheel."""
