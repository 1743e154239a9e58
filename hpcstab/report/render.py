"""The page as one self-contained HTML file and as Markdown for GitHub. Everything is escaped."""

from __future__ import annotations

import base64
import html
import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hpcstab.report.page import Page

_MARKDOWN_SPECIAL = re.compile(r"([\\`*_{}\[\]|~$#@!])")


def render_html(page: Page) -> str:
    """One file: no script, no request, pictures inside."""
    return _environment(escaped=True).get_template("report.html.jinja").render(page=page)


def render_markdown(page: Page) -> str:
    """Refers to the PNG files in ``figures/`` beside it."""
    return _environment(escaped=False).get_template("report.md.jinja").render(page=page)


def markdown_text(text: object) -> str:
    """``text`` as GitHub shows it literally, in a table cell or a paragraph."""
    plain = " ".join(str(text).split())
    return _MARKDOWN_SPECIAL.sub(r"\\\1", html.escape(plain, quote=False))


def data_uri(png: bytes) -> Markup:
    """A picture inside the page."""
    return Markup(f"data:image/png;base64,{base64.b64encode(png).decode()}")


@cache
def _environment(escaped: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("hpcstab.report"),
        autoescape=escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = markdown_text
    environment.filters["data_uri"] = data_uri
    return environment
