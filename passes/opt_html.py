"""ditcache-opt's report page: one file, no script, no link to anywhere."""

from __future__ import annotations

import html
import re

from .ir import StepGraph
from .opt_stats import CLASSES, bytes_text, percent, shares
from .plan_format import Plan
from .printer import macs_text, print_graph

_STYLE = """
body{font:14px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;
color:#1c2330;background:#fff}
table{border-collapse:collapse;margin:1rem 0}th,td{padding:.2rem .8rem;text-align:right;
border-bottom:1px solid #e3e7ee}th:first-child,td:first-child,td.l,th.l{text-align:left}
pre{font:12px/1.45 ui-monospace,monospace;overflow-x:auto;background:#f7f9fc;padding:.8rem}
summary{cursor:pointer;font-weight:600;margin:.6rem 0}
.bar{display:inline-block;height:.7em;background:#6c8ebf}
.v{color:#23527c}.s{color:#a0522d;font-weight:600}.w{color:#5a7d2a}.c{color:#8a93a3}
.k{color:#7b3fa0;font-weight:600}
@media(prefers-color-scheme:dark){body{background:#14181f;color:#dfe4ec}pre{background:#1b212b}
th,td{border-color:#2b3342}.v{color:#7fb2e5}.s{color:#e0a070}.w{color:#a6c76c}.k{color:#c792ea}}
"""
_TOKENS = re.compile(
    r"(?P<c>//.*$)|(?P<v>%[\w.]+)|(?P<s>\$[\w.#]+)|(?P<w>@[\w.#]+)"
    r"|(?P<k>\b(?:graph|region|slot|prologue|variant|return|yield|hit|miss|cache\.\w+)\b)",
    re.M,
)


def to_html(graph: StepGraph, analysed: StepGraph | None, plan: Plan | None) -> str:
    """A page with the shares, the table of regions, and the IR in parts that fold.

    `analysed` is the graph before rewriting, None if no pass got there.
    """
    name = html.escape(graph.name)
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f"<title>ditcache-opt: {name}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{name}</h1>",
    ]
    if analysed is not None:
        parts += _shares_table(analysed)
        parts += _regions_table(analysed)
    parts.append("<h2>IR</h2>")
    for title, text, is_open in _sections(print_graph(graph, plan=plan)):
        state = " open" if is_open else ""
        parts.append(
            f"<details{state}><summary>{html.escape(title)}</summary>"
            f"<pre>{_highlight(text)}</pre></details>"
        )
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _shares_table(graph: StepGraph) -> list[str]:
    found = shares(graph)
    total = sum(s.macs for s in found.values())
    weights = sum(s.weight_bytes for s in found.values())
    rows = [
        f"<p>{2 * total / 1e12:.4g} TFLOP a step, {bytes_text(weights)} of weights.</p>",
        "<table><tr><th>changes with</th><th>MACs</th><th>share</th><th>weights</th>"
        "<th>share</th><th>ops</th></tr>",
    ]
    for name in CLASSES:
        s = found[name]
        rows.append(
            f"<tr><td>{name}</td><td>{macs_text(s.macs)}</td><td>{percent(s.macs, total)}</td>"
            f"<td>{bytes_text(s.weight_bytes)}</td><td>{percent(s.weight_bytes, weights)}</td>"
            f"<td>{s.ops}</td></tr>"
        )
    return [*rows, "</table>"]


def _regions_table(graph: StepGraph) -> list[str]:
    total = max((r.macs for r in graph.regions), default=0)
    rows = [
        "<h2>Regions</h2><table><tr><th>region</th><th class=l>kind</th><th>MACs</th>"
        "<th class=l>share</th><th>weights</th><th>live</th><th class=l>stability</th></tr>"
    ]
    for r in graph.regions:
        width = 8 * r.macs / total if total else 0
        note = f" ({html.escape(r.refusal)})" if r.refusal else ""
        rows.append(
            f"<tr><td>{html.escape(r.name)}</td><td class=l>{r.kind}</td>"
            f"<td>{macs_text(r.macs)}</td><td class=l>"
            f'<span class="bar" style="width:{width:.2f}rem"></span> {percent(r.macs, total)}</td>'
            f"<td>{bytes_text(r.weight_bytes)}</td><td>{bytes_text(r.live_bytes)}</td>"
            f"<td class=l>{r.label}{note}</td></tr>"
        )
    return [*rows, "</table>"]


def _sections(text: str) -> list[tuple[str, str, bool]]:
    """The printed graph cut at prologues, body and variants: title, text, unfolded or not."""
    sections: list[tuple[str, list[str]]] = [("signature and regions", [])]
    in_part = False
    for line in text.splitlines():
        if re.match(r"  (prologue|variant) ", line):
            sections.append((line.strip().rstrip("{ "), []))
            in_part = True
        elif not in_part and line.startswith("  %") and sections[-1][0] != "step":
            sections.append(("step", []))
        sections[-1][1].append(line)
        if in_part and line == "  }":
            in_part = False
            sections.append(("step", []))
    kept = [(title, lines) for title, lines in sections if lines and lines != ["}"]]
    return [(title, "\n".join(lines), i == 0) for i, (title, lines) in enumerate(kept)]


def _highlight(text: str) -> str:
    out: list[str] = []
    at = 0
    for token in _TOKENS.finditer(text):
        out.append(html.escape(text[at : token.start()]))
        out.append(f'<span class="{token.lastgroup}">{html.escape(token.group())}</span>')
        at = token.end()
    out.append(html.escape(text[at:]))
    return "".join(out)
