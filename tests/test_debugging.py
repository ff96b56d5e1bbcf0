"""docs/debugging.md leads from a metric, a code and a key to the code that uses it."""

from __future__ import annotations

import pytest

from tests.debug_tables import PAGE, page, tables


def test_the_tables_are_those_of_the_sources() -> None:
    text = PAGE.read_text()

    assert page(text) == text, "run `python -m tests.debug_tables`"


@pytest.mark.parametrize("name", ["metrics", "codes", "keys"])
def test_every_name_leads_to_code(name: str) -> None:
    rows = tables()[name].splitlines()[2:]

    assert rows
    assert [row for row in rows if row.endswith("| – |")] == []
