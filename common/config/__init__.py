"""Configuration files: YAML with overrides, checked and explained key by key."""
