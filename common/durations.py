"""Times as people say them."""


def duration(seconds: float) -> str:
    """2 h 05 min, 3 min 20 s, or 12 s."""
    minutes, seconds = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
