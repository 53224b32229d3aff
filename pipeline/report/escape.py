"""Names come from anyone's files: every one goes through here on its way into a page.

One function for each place where text can stand. Nothing else in this package joins a name to
markup.
"""

import html
import json
import re
import unicodedata
from typing import Any

_MARKDOWN = re.compile(r"([\\`*_\[\]#~|])")
_IN_SCRIPT = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&"}
_CONTROL = ("Cc", "Cf")


def text(value: object) -> str:
    """For HTML, between tags or inside a quoted attribute."""
    return html.escape(_encodable(str(value)), quote=True)


def name(value: object) -> str:
    """As `text`, and a right-to-left sign in it turns nothing outside it around."""
    return f"<bdi>{text(value)}</bdi>"


def script(value: Any) -> str:
    """A JavaScript expression: JSON, and Infinity; it cannot end the script it stands in."""
    dumped = json.dumps(value, separators=(",", ":"), ensure_ascii=True)
    return dumped.translate(_IN_SCRIPT)


def markdown(value: object) -> str:
    """For a cell of a Markdown table."""
    escaped = html.escape(plain(value), quote=False)
    return _MARKDOWN.sub(r"\\\1", escaped)


def plain(value: object) -> str:
    """For a terminal: one line, and nothing in it that a terminal would obey."""
    words = " ".join(_encodable(str(value)).split())
    return "".join("?" if unicodedata.category(sign) in _CONTROL else sign for sign in words)


def _encodable(value: str) -> str:
    """File names may hold bytes that are no text (lone surrogates); UTF-8 has no place for them."""
    return value.encode(errors="replace").decode()
