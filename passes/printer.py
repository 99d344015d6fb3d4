"""Print a step graph as IR text: `%` values, `$` slots, `@` module paths."""

from __future__ import annotations

import builtins
import operator
from collections.abc import Iterable, Sized
from typing import Any

import torch
from torch import Tensor, fx

from .ir import Depends, InputKind, StepGraph, depends_of, kind_of, value_of
from .names import module_path, source_name
from .ops import CACHE_OPS, cache_cond, cache_decide, cache_prologue
from .plan_format import Plan

DTYPES = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
    torch.complex64: "c64",
    torch.float8_e4m3fn: "f8e4m3",
}


def print_graph(
    graph: StepGraph, *, after: str = "", before: str = "", plan: Plan | None = None
) -> str:
    """IR text of the whole step: regions, slots, prologues, body and variants.

    Names are the graph's own, so two dumps of neighbouring passes differ only where the graph
    does. `after` or `before` names the pass for the header line.
    """
    where = f"after {after}" if after else f"before {before}" if before else ""
    lines = [_header(graph, where), _signature(graph)]
    for slot in graph.slots:
        shape = type_text(slot.shape, slot.dtype)
        notes = [slot.what] if slot.what != "output" else []
        notes += [f"{slot.reference} step"] if slot.reference else []
        notes += ["measured"] if slot.measured else []
        notes += [f"stored as {slot.format}"] if slot.format else []
        line = f"  slot ${slot.name} : {shape} x{slot.history}  {size_text(slot.nbytes)}"
        lines.append(line + (f"  // {', '.join(notes)}" if notes else ""))
    lines += _region_lines(graph, plan)
    for prologue in graph.prologues:
        head = f"  prologue {prologue.name} -> {_percent(prologue.outputs)}"
        lines.append(f"{head}  // {macs_text(prologue.macs)} {{")
        lines += _body(prologue.module.graph, indent=4)
        lines.append("  }")
    lines += _body(graph.graph, indent=2, module=graph.module)
    for i, variant in enumerate(graph.variants):
        modes = dict(zip(graph.scheduled, variant.modes, strict=False))
        what = ", ".join(_modes(graph, modes)) if variant.stage != "head" else "head"
        writes = "".join(f" ${w}" for w in variant.writes)
        stage = f"{variant.stage}, " if variant.stage in ("tail", "decided") else ""
        head = f"  variant {i} ({stage}{what or 'compute'})"
        lines.append(
            f"{head}{' writes' + writes if writes else ''}  // {macs_text(variant.macs)} {{"
        )
        lines += _body(variant.module.graph, indent=4, module=variant.module)
        lines.append("  }")
    lines.append("}")
    return "\n".join(lines) + "\n"


def _modes(graph: StepGraph, modes: dict[str, bool]) -> list[str]:
    """What each schedule does in a variant: regions that share one are named once."""
    by_schedule = {graph.schedules.get(name, name): hit for name, hit in modes.items()}
    return [f"{name}: {'forecast' if hit else 'compute'}" for name, hit in by_schedule.items()]


def _header(graph: StepGraph, where: str) -> str:
    notes: list[str] = []
    if graph.regions:
        notes.append(_count(graph.regions, "region"))
        notes.append(macs_text(next(r.macs for r in graph.regions)) + "/step")
    if graph.slots:
        notes.append(_count(graph.slots, "slot"))
    if graph.variants:
        notes.append(_count(graph.variants, "variant"))
    return "// ditcache-opt: " + ", ".join([where or graph.name, *notes])


def _signature(graph: StepGraph) -> str:
    inputs: list[str] = []
    weights = 0
    for node in graph.graph.nodes:
        if node.op != "placeholder":
            continue
        kind = kind_of(node)
        if kind is InputKind.PARAMETER or (kind is None and "." in source_name(node)):
            weights += 1
        else:
            inputs.append(_input_text(node, kind))
    if weights:
        inputs.append(f"{weights} parameters")
    return f"graph @{graph.name}({', '.join(inputs)}) {{"


def _input_text(node: fx.Node, kind: InputKind | None) -> str:
    if kind is InputKind.PREDICATE:
        return f"%{node.name}: i1 host"
    if kind is InputKind.SLOT:
        return f"${node.meta['slot']}"
    mark = f" {kind}" if kind is not None else ""
    return f"%{node.name}: {_type(value_of(node))}{mark}"


def _region_lines(graph: StepGraph, plan: Plan | None) -> list[str]:
    strips: dict[str, str] = {}
    if plan is not None:
        for schedule in plan.regions:
            done = set(schedule.computed)
            steps = range(len(plan.timesteps))
            skipped = "." if plan.rule is None else "?"
            strips[schedule.region] = "".join("C" if i in done else skipped for i in steps)
    lines: list[str] = []
    for r in graph.regions:
        name = f"@{r.name}" if r.path and "[" not in r.name else r.name
        text = f"  region {name} ({_percent(r.live_ins, 4)}) -> ({_percent(r.live_outs, 4)})"
        kind = f"{r.role} {r.kind}".lstrip()
        text += f" [{r.label}]  // {kind}, {macs_text(r.macs)}, {_count(r.nodes, 'op')}"
        if r.name in graph.scheduled:
            shared = graph.schedules.get(r.name, r.name)
            under = "" if shared == r.name else f"by {shared} "
            text += f", scheduled {under}{strips.get(shared, '')}".rstrip()
        if r.refusal:
            text += f", not cacheable: {r.refusal}"
        lines.append(text)
    return lines


def _body(graph: fx.Graph, indent: int, module: fx.GraphModule | None = None) -> list[str]:
    lines: list[str] = []
    pad = " " * indent
    for node in graph.nodes:
        if node.op == "placeholder" or (node.op == "get_attr" and _is_arm(node)):
            continue
        if node.op == "output":
            word = "return" if indent == 2 else "yield"
            lines.append(f"{pad}{word} {_arg(node.args[0])}")
        elif node.target is cache_cond and module is not None:
            lines += _cond_lines(node, pad, indent, module)
        else:
            lines.append(pad + node_text(node))
    return lines


def _is_arm(node: fx.Node) -> bool:
    return any(u.target in (cache_cond, cache_prologue) for u in node.users)


def _cond_lines(node: fx.Node, pad: str, indent: int, module: fx.GraphModule) -> list[str]:
    args: Any = node.args
    slots = [a for a in args[3] if isinstance(a, fx.Node) and kind_of(a) is InputKind.SLOT]
    names = "".join(f" ${s.meta['slot']}" for s in slots)
    lines = [f"{pad}%{node.name} = cache.cond {_arg(args[0])}{names} {{"]
    for word, arm in (("hit", args[1]), ("miss", args[2])):
        lines.append(f"{pad}  {word}:")
        lines += _body(module.get_submodule(str(arm.target)).graph, indent + 4)  # pyright: ignore[reportArgumentType]
    lines.append(f"{pad}}}")
    return lines


def node_text(node: fx.Node) -> str:
    """One line for one node: result, op, operands, type and stability."""
    if node.op == "call_method":
        call = f".{node.target}"
    elif node.op == "get_attr":
        call = f"get @{node.target}"
    else:
        call = op_name(node.target)
    # A conditional's operands are what its arms read, and shown there.
    operands = [_arg(a) for a in (node.args[:1] if node.target is cache_cond else node.args)]
    operands += [f"{k}={_arg(v)}" for k, v in node.kwargs.items()]
    if node.target in CACHE_OPS:
        text = f"%{node.name} = {call} {', '.join(operands)}"
    else:
        text = f"%{node.name} = {call}({', '.join(operands)})"
    kind = _type(value_of(node))
    path = module_path(node)
    notes = f" : {kind}" if kind else ""
    if "runs" in node.meta:
        notes = f" : i1 {node.meta['runs']}{' probe' if node.target is cache_decide else ''}"
    if path:
        notes += f" @{path}"
    if "depends" in node.meta and not depends_of(node) & Depends.LATENT:
        notes += f" [{depends_of(node).stability}]"
    return text + notes


def op_name(target: Any) -> str:
    """Short name of an op: `linear`, `cache.forecast`, `aten.mm.default`."""
    if target in CACHE_OPS:
        return str(target.__name__).replace("cache_", "cache.")
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    module = getattr(target, "__module__", "") or ""
    name = getattr(target, "__name__", str(target))
    plain = module.startswith(("torch", "_operator", "ditcache")) or hasattr(builtins, name)
    return name if plain or target is operator.getitem else f"{module}.{name}"


def _arg(value: Any) -> str:
    if isinstance(value, fx.Node):
        kind = kind_of(value)
        if value.op == "placeholder" and kind is InputKind.PARAMETER:
            return f"@{source_name(value)}"
        if kind is InputKind.SLOT:
            return f"${value.meta['slot']}"
        return f"%{value.name}"
    if isinstance(value, tuple):
        inner = ", ".join(_arg(v) for v in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, list):
        return f"[{', '.join(_arg(v) for v in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_arg(v)}" for k, v in value.items()) + "}"
    if isinstance(value, slice):
        parts = ["" if v is None else _arg(v) for v in (value.start, value.stop)]
        step = "" if value.step is None else f":{_arg(value.step)}"
        return ":".join(parts) + step
    if value is Ellipsis:
        return "..."
    if isinstance(value, torch.dtype):
        return DTYPES.get(value, str(value))
    return str(value)


def _type(value: Any) -> str:
    if isinstance(value, Tensor):
        return type_text(value.shape, value.dtype)
    if isinstance(value, (tuple, list)):
        return f"({', '.join(_type(v) for v in value)})"
    if isinstance(value, (torch.SymInt, torch.SymFloat)):
        return "sym"
    return ""


def type_text(shape: Iterable[Any], dtype: torch.dtype) -> str:
    """`f32[2,16,4]`."""
    return f"{DTYPES.get(dtype, str(dtype).removeprefix('torch.'))}[{','.join(map(str, shape))}]"


def _percent(names: Iterable[str], limit: int = 8) -> str:
    listed = list(names)
    more = f", … {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(f"%{n}" for n in listed[:limit]) + more


def macs_text(macs: int) -> str:
    """MACs to three digits or more, with a unit: `37.2 TMAC`, `652 GMAC`."""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if macs >= size:
            number = f"{macs / size:.3g}" if macs < 100 * size else f"{macs / size:.0f}"
            return f"{number} {unit}MAC"
    return f"{macs} MAC"


def _count(things: Sized, word: str) -> str:
    return f"{len(things)} {word}{'' if len(things) == 1 else 's'}"


def size_text(n: int) -> str:
    """Bytes in binary units, as memory is quoted: `1.50 MiB`, `6.0 KiB`."""
    return f"{n / 2**20:.2f} MiB" if n >= 2**20 else f"{n / 2**10:.1f} KiB"
