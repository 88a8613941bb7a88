"""What pretraining and fine-tuning share: configuration files, errors, and files that are whole or not there."""
