"""Speed and memory against other encoders."""
