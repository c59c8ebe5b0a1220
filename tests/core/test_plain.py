"""Text from outside, as people are shown it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klagg_trio.core.plain import plain, plain_body

HOSTILE = st.text(
    st.sampled_from("ab <>/!-\x00\x07\x08\x1b\x9b[]m;?\\\r\n\t\u202e\u2066\u200b\ud800é币")
    | st.characters(),
    max_size=400,
)


@given(HOSTILE, st.integers(1, 400))
def test_what_is_shown_is_one_printable_line(text, length_max):
    """Whatever comes, the result is printable, short enough, and stays what it is."""
    line = plain(text, length_max)
    assert line.isprintable()
    assert len(line) <= length_max
    assert line == line.strip()
    assert plain(line, length_max) == line


@given(st.binary(max_size=400))
def test_any_body_is_shown_as_one_line(body):
    """Bytes that are no text, too."""
    assert plain_body(body).isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain words", "plain words"),
        ("two\r\nlines\tand a tab", "two lines and a tab"),
        ("\x1b[31;1mred\x1b[0m", "red"),
        ("\x9b2Jcleared", "cleared"),
        ("\x1b]0;a title\x07seen", "seen"),
        ("\x1b]52;c;c3RvbGVu\x1b\\seen", "seen"),
        ("abc\u202etxt", "abc txt"),
        ("币安人生USDT", "币安人生USDT"),
        ("x" * 400, "x" * 299 + "…"),
    ],
)
def test_escape_sequences_go_as_a_whole(text, shown):
    """Colours, titles, the clipboard, the direction of reading: nothing of them is left."""
    assert plain(text) == shown


def test_of_a_page_only_the_words_are_shown():
    """An html page of a firewall: no tags, no script, no style."""
    page = (
        b"<!DOCTYPE html><html><head><style>b {color: red}</style><title>403 Forbidden</title>"
        b"<script>alert('x')</script></head><body>\n<h1>Request  blocked</h1><!-- no --></body>"
    )
    assert plain_body(page) == "403 Forbidden Request blocked"


def test_a_long_body_costs_no_more_than_its_beginning():
    """Only the beginning is looked at, however the rest tries to be slow."""
    assert plain_body(b"<!--" * 5_000_000).startswith("<!--")
