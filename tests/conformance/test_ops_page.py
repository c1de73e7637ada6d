"""docs/ops.md says what the operator cases show."""

import re
from pathlib import Path

import pytest
from op_run import targets_here
from ops_page import ops_page

PAGE = Path(__file__).parents[2] / "docs" / "ops.md"


def test_the_operator_page_is_up_to_date() -> None:
    written = PAGE.read_text()
    (header,) = re.findall(r"^\| operator .*$", written, re.MULTILINE)
    if {f"`{target.name}`" for target in targets_here()} != set(re.findall(r"`\S+`", header)):
        pytest.skip("the page was made on a machine with other devices")
    assert ops_page() == written, "run `make docs`"
