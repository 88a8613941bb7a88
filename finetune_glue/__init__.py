"""Fine-tuning on GLUE and on one's own tasks; run from the checkout, not installed by the wheel."""
