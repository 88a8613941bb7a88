"""One fine-tuning: a model with a new head, its batches, how it is trained and judged."""
