"""Rows of text of tasks: where they are, how they are read, and the tokens that they become."""
