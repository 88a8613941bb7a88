"""Uploads to the Hub, beside training."""
