"""The records of metrics.jsonl, compared between runs."""

OF_TIME_AND_PLACE = {
    "training_seconds",
    "tokens_per_second",
    "tokens_per_second_per_device",
    "mfu",
    "data_wait_share",
    "peak_memory_gib",
    "xxh3",  # of the whole record
}


def timeless(records: list[dict]) -> list[dict]:
    """What two runs with the same results have alike."""
    return [{key: value for key, value in record.items() if key not in OF_TIME_AND_PLACE} for record in records]
