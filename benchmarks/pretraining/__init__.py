"""What pretraining costs: steps, checkpoints, preparation, kills and resumption."""
