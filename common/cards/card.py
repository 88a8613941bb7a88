"""The form of a model card: Markdown with the metadata block of the Hub."""

import os
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData


TEMPLATE = Path(__file__).with_name("card.md.jinja")


def card_text(data: ModelCardData, introduction: str, sections: Mapping[str, str]) -> str:
    """The text of a card, whose title is the name of the model.

    Args:
        sections: the text of each by its heading; those without text are left out.
    """
    card = ModelCard.from_template(
        data, template_path=str(TEMPLATE), title=data.model_name, introduction=introduction, sections=sections
    )
    return card.content


def facts_table(facts: Mapping[str, object]) -> str:
    """A table with a row for each fact that is known; no text where there is none."""
    rows = [f"| {name} | {shown(value)} |" for name, value in facts.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *rows]) if rows else ""


def shown(value: object) -> str:
    """A value; of a path from the root it is the end, since the rest is nobody's business."""
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else str(value)
