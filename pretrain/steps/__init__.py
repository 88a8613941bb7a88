"""What a training step is: batches, masks, schedules and optimisation."""
