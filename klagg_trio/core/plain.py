"""Text from outside as people may be shown it: one line, no control characters, not too long.

Words of the exchange, of a proxy, of a file or of an old database may hold anything: escape
sequences that steer a terminal, marks that turn the direction of reading, a page of html. Whatever
of it reaches a log, an event, a terminal or an error message goes through `plain` first.
"""

from __future__ import annotations

import re
from typing import Final

LENGTH_MAX: Final = 300
"""Characters of one message. The longest that the exchange is known to give has 220."""

READ_MAX: Final = 8_192
"""Characters that are looked at: what is to be shown is never further away."""

_ESCAPES: Final = re.compile(
    r"\x1b\][^\x07\x1b]{0,1000}(?:\x07|\x1b\\)?"  # OSC: titles, links, the clipboard
    r"|\x1b[P^_X][^\x1b]{0,1000}(?:\x1b\\)?"  # DCS and its like
    r"|(?:\x1b\[|\x9b)[0-?]{0,100}[ -/]{0,100}[@-~]?"  # CSI: colours, the cursor
    r"|\x1b[ -/]{0,10}[0-~]?"
)
_UNSEEN: Final = re.compile(r"(?is)<!--.*?-->|<(script|style)\b.*?</\1\s*>")
_MARKUP: Final = re.compile(r"<[!/?A-Za-z][^<>]{0,1000}>")


def plain(text: str, length_max: int = LENGTH_MAX) -> str:
    """Return text as one line of printable characters, cut to `length_max` of them.

    Escape sequences go as a whole. What cannot be printed, marks that change the direction of
    reading among it, becomes a space; spaces in a row become one.
    """
    visible = _ESCAPES.sub(" ", text[:READ_MAX])
    line = " ".join("".join(c if c.isprintable() else " " for c in visible).split())
    return line if len(line) <= length_max else line[: length_max - 1].rstrip() + "…"


def plain_body(body: bytes, length_max: int = LENGTH_MAX) -> str:
    """Return the words of an answer, those of an html page too, as `plain` does."""
    text = body[:READ_MAX].decode("utf-8", "replace")
    if "<" in text:
        text = _MARKUP.sub(" ", _UNSEEN.sub(" ", text))
    return plain(text, length_max)
