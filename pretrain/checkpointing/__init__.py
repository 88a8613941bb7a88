"""Checkpoints: whole or not there, averaged, sharded, with a model card."""
