"""What a result was made from: it counts only as long as all of it is what it was."""

INPUTS = {"task": "another description of the task", "data": "other data", "model": "another model"}
LISTED = 3  # names of what has changed


def difference(wanted: dict, found: dict) -> str:
    """What a result was made from that is different from what is wanted, '' where nothing is.

    Args:
        wanted: "task", "data", "model" (the content of each part by its name), "mixed_precision" and "start" (the
            checksum of a result), as far as they are known; what is null is not compared.
        found: the same of the result.
    """
    for key, value in wanted.items():
        other = found.get(key)
        if value is None or value == other:
            continue
        if key == "mixed_precision":
            return f"it was made with mixed_precision {other}, not {value}"
        if key == "start":
            return "it started from another fine-tuned model"
        names = [name for name in value if value[name] != (other or {}).get(name)]
        if key == "model":  # files of data that are gone cannot be compared
            names += [name for name in other or {} if name not in value]
        if names:
            listed = ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
            return f"it was made from {INPUTS[key]}: {listed}"
    return ""
