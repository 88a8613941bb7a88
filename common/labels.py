"""The label of what is not predicted."""

IGNORED = -100  # the losses of torch and Transformers leave it out
