"""The models that are pretrained: Luna, saved ones as a start, and other encoders."""
