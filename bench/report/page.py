"""The page around the sections: style and the frame viewer. Nothing is fetched from elsewhere."""

from __future__ import annotations

from html import escape
from pathlib import Path

HERE = Path(__file__).parent


def page(title: str, sections: list[str], *, script: str = "viewer.js") -> str:
    """One HTML document; raises OSError if the package's style or script is gone."""
    style = (HERE / "page.css").read_text()
    code = (HERE / script).read_text()
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>"
        f"<h1>{escape(title)}</h1>{''.join(sections)}</main><script>{code}</script></body></html>\n"
    )
