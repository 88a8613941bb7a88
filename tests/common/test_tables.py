"""Tables as text."""

from common.tables import csv_text, markdown_table, shortened


def test_columns_line_up_and_bars_are_escaped():
    assert markdown_table(["model", "a|b"], [["x", "1.5"], ["longer", "-"]]).splitlines() == [
        "| model  | a\\|b |",
        "|--------|-----:|",
        "| x      |  1.5 |",
        "| longer |    - |",
    ]


def test_csv_quotes_what_needs_it():
    assert csv_text([["a", 1.5], ['with "quotes", and commas', ""]]) == 'a,1.5\n"with ""quotes"", and commas",\n'


def test_a_long_message_becomes_one_short_line():
    assert shortened("two\n  lines") == "two lines"
    assert shortened("x" * 400) == "x" * 300 + " ..."
