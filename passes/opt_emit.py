"""ditcache-opt's outputs other than text and HTML: JSON, Graphviz, Python."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict
from typing import Any

from torch import Tensor, fx

from .ir import InputKind, Region, StepGraph, kind_of, output_node, placeholders, value_of
from .names import source_name
from .opt_stats import shares
from .printer import macs_text, type_text
from .symbolic import hints


def to_json(graph: StepGraph, analysed: StepGraph | None, stats: dict[str, Any]) -> str:
    """Everything that the step graph knows, as indented JSON.

    `analysed` is the graph before rewriting (for the shares), None if no pass got there.
    """
    document: dict[str, Any] = {
        "format": "ditcache.opt",
        "version": 1,
        "name": graph.name,
        "facts": sorted(graph.facts),
        "inputs": [_input(n) for n in placeholders(graph.graph)],
        "ops": sum(n.op.startswith("call") for n in graph.graph.nodes),
        "totals": {k: asdict(s) for k, s in shares(analysed).items()} if analysed else None,
        "regions": [asdict(r) for r in graph.regions],
        "scheduled": list(graph.scheduled),
        "slots": [
            {
                "name": s.name,
                "region": s.region,
                "value": s.value,
                "type": type_text(s.shape, s.dtype),
                "history": s.history,
                "format": s.format or None,
                "bytes": s.nbytes,
            }
            for s in graph.slots
        ],
        "prologues": [
            {
                "name": p.name,
                "inputs": [n.name for n in placeholders(p.module.graph)],
                "outputs": list(p.outputs),
                "macs": p.macs,
            }
            for p in graph.prologues
        ],
        "variants": [
            {
                "forecast": [n for n, hit in zip(graph.scheduled, v.modes, strict=True) if hit],
                "inputs": [n.name for n in placeholders(v.module.graph)],
                "writes": list(v.writes),
                "macs": v.macs,
                "ops": sum(n.op.startswith("call") for n in v.module.graph.nodes),
            }
            for v in graph.variants
        ],
        "passes": stats,
    }
    return json.dumps(document, indent=1) + "\n"


def _input(node: fx.Node) -> dict[str, Any]:
    value = value_of(node)
    found: dict[str, Any] = {
        "name": node.name,
        "source": source_name(node),
        "kind": str(kind_of(node) or "") or None,
    }
    if isinstance(value, Tensor):
        found["shape"] = list(hints(value.shape))
        found["type"] = type_text(value.shape, value.dtype)
    return found


def to_python(graph: StepGraph) -> str:
    """The FX code of every variant and prologue; of the step itself before specialize ran."""
    parts: list[str] = []
    for prologue in graph.prologues:
        parts.append(_code(f"prologue {prologue.name}", prologue.module))
    for i, variant in enumerate(graph.variants):
        pairs = zip(graph.scheduled, variant.modes, strict=True)
        modes = ", ".join(f"{n}: {'forecast' if hit else 'compute'}" for n, hit in pairs)
        parts.append(_code(f"variant {i} ({modes or 'compute'})", variant.module))
    if not parts:
        parts.append(_code("step", graph.module))
    return "\n\n".join(parts)


def _code(title: str, module: fx.GraphModule) -> str:
    return f"# {title}\n{module.graph.python_code('self').src.strip()}\n"


def to_dot(graph: StepGraph) -> str:
    """Graphviz text of the analysed step: a cluster for each block, a box for each branch.

    Ops are not drawn; an edge stands for all values that flow between two boxes. A
    graph without regions is one box.
    """
    owner, clusters = _units(graph)
    lines = [
        f"digraph {_quote(graph.name)} {{",
        '  graph [rankdir=TB, fontname="Helvetica", compound=true];',
        '  node [shape=box, style="rounded,filled", fillcolor="#eef3fb", fontname="Helvetica"];',
    ]
    counts: defaultdict[str, int] = defaultdict(int)
    for unit in owner.values():
        counts[unit] += 1
    regions = {r.name: r for r in graph.regions}
    for node in placeholders(graph.graph):
        if kind_of(node) is not InputKind.PARAMETER:
            kind = f"\\n{kind_of(node)}" if kind_of(node) else ""
            lines.append(
                f"  {_quote(node.name)} [shape=ellipse, label={_quote(node.name + kind)}];"
            )
    for number, (block, units) in enumerate(clusters.items()):
        inner = "    " if block else "  "
        if block:
            region = regions[block]
            label = f"{block}  {macs_text(region.macs)}  [{region.label}]"
            lines += [f"  subgraph cluster_{number} {{", f"    label={_quote(label)};"]
        for unit in units:
            region = regions.get(unit)
            size = macs_text(region.macs) if region else f"{counts[unit]} ops"
            label = f"{unit}\\n{size}"
            lines.append(f"{inner}{_quote(unit)} [label={_quote(label)}];")
        if block:
            lines.append("  }")
    lines.append('  "return" [shape=ellipse];')
    lines += [f"  {_quote(a)} -> {_quote(b)};" for a, b in _edges(graph, owner)]
    lines.append("}")
    return "\n".join(lines) + "\n"


def _units(graph: StepGraph) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The box of each op, and the boxes of each cluster (block), in graph order."""
    owner: dict[str, str] = {}
    home: dict[str, str] = {}
    blocks: list[Region] = [r for r in graph.regions if r.kind == "block"]
    branches: list[Region] = [r for r in graph.regions if r.kind == "branch"]
    for block in blocks:
        for name in block.nodes:
            owner[name] = f"{block.name} rest"
        home[f"{block.name} rest"] = block.name
    for branch in branches:
        block = next((b for b in blocks if branch.name.startswith(f"{b.name}.")), None)
        for name in branch.nodes:
            owner[name] = branch.name
        home[branch.name] = block.name if block else ""
    glue = 0
    clusters: dict[str, list[str]] = {}
    last = ""
    for node in graph.graph.nodes:
        if not node.op.startswith("call"):
            continue
        if node.name not in owner:
            # What stands between two blocks is one box; so is what no latent reaches.
            hoisted = node.meta.get("depends") is not None and not node.meta["depends"] & 4
            glue += last != "" and not hoisted
            unit = "hoisted" if hoisted else f"glue {glue}"
            last = last if hoisted else ""
            owner[node.name] = unit
            home.setdefault(unit, "")
        else:
            last = owner[node.name]
        boxes = clusters.setdefault(home[owner[node.name]], [])
        if owner[node.name] not in boxes:
            boxes.append(owner[node.name])
    return owner, clusters


def _edges(graph: StepGraph, owner: dict[str, str]) -> list[tuple[str, str]]:
    edges: dict[tuple[str, str], None] = {}
    for node in graph.graph.nodes:
        if not node.op.startswith("call"):
            continue
        for arg in node.all_input_nodes:
            if kind_of(arg) is InputKind.PARAMETER or arg.op == "get_attr":
                continue
            source = str(owner.get(arg.name, arg.name))
            if source != owner[node.name]:
                edges[source, owner[node.name]] = None
    for arg in output_node(graph.graph).all_input_nodes:
        edges[owner.get(arg.name, arg.name), "return"] = None
    return list(edges)


def _quote(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"'
