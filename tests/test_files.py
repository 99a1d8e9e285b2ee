"""Files of the package: JSON in its layout."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgtg_logits.files import format_json, write_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def test_lists_of_numbers_are_on_one_line():
    content = {"name": "[1, 2]", "ms": [1, -2.5, 1e-07, None, float("inf")], "rows": [[0.5], [1, 2]], "words": ["a"]}
    assert format_json(content).splitlines() == [
        "{",
        ' "name": "[1, 2]",',
        ' "ms": [1, -2.5, 1e-07, null, Infinity],',
        ' "rows": [',
        "  [0.5],",
        "  [1, 2]",
        " ],",
        ' "words": [',
        '  "a"',
        " ]",
        "}",
    ]


@given(VALUES)
def test_what_is_written_is_read_again(content):
    text = format_json(content)
    assert json.loads(text) == content
    assert format_json(json.loads(text)) == text


def test_strict_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "figures.json", [float("nan")], allow_nan=False)
    assert not any(tmp_path.iterdir())
    write_json(tmp_path / "figures.json", [float("nan"), 1])
    assert (tmp_path / "figures.json").read_text() == "[NaN, 1]\n"
