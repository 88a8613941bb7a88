"""What a person sees of a run: metrics, curves, health, trackers and the report."""
