"""The form of model cards."""

from huggingface_hub import ModelCard, ModelCardData

from common.cards.card import card_text, facts_table


def test_a_card_has_metadata_title_and_the_sections_that_have_text():
    data = ModelCardData(language="en", license="mit", model_name="moon", tags=["luna"])
    text = card_text(
        data, "A model of {{ braces }}.", {"Use": "Like this:\n\n```\nx\n```", "Data": "", "Limits": "None."}
    )
    assert text == (
        "---\nlanguage: en\nlicense: mit\nmodel_name: moon\ntags:\n- luna\n---\n\n# moon\n\n"
        "A model of {{ braces }}.\n\n"
        "## Use\n\nLike this:\n\n```\nx\n```\n\n## Limits\n\nNone.\n"
    )
    assert ModelCard(text).data.tags == ["luna"]


def test_facts_that_are_not_known_are_left_out_and_paths_end_with_their_last_part():
    facts = {"seed": 1, "steps": None, "data": "/home/somebody/texts", "model": "runs/x"}
    assert facts_table(facts) == "| | |\n|---|---|\n| seed | 1 |\n| data | texts |\n| model | runs/x |"
    assert facts_table({"steps": None}) == ""
