"""form-regions: name the subgraphs that a policy may cache."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import ClassVar

from torch import fx

from .base import PassContext, PassResult
from .cost import annotate_macs, total_macs
from .effects import op_base
from .ir import Depends, Region, StepGraph, depends_of, value_of
from .names import module_path
from .regions import Order, make_region
from .roles import ADDS, CASTS, partners, role_of
from .symbolic import shape_of, tensor_bytes


@dataclass(frozen=True)
class FormRegions:
    """Find the denoiser, its blocks, their residual branches and the deep part, from dataflow.

    A region holds only nodes that depend on the latents: the rest is hoisted anyway, and stays
    outside as a live-in. Blocks are contiguous runs by module path, since a model may call a
    block's submodule again elsewhere. Branches end at the residual adds, less the gate; branches
    that share nodes (joint attention over image and text) are one region. What a branch is for
    (attention, cross-attention, mlp) is read off its ops. The deep part is the run of blocks with
    at least half of the work and the fewest live-out bytes: DeepCache's cut on a UNet. Runs of
    blocks are formed on demand, where a plan names one.

    Given::

        %x = add(%hidden_states, %linear_2) : f32[2,16,8] @blocks.0
        %mul = mul(%x, %emb) : f32[2,16,8] @blocks.0
        %linear_3 = linear(%mul, …) : f32[2,16,8] @blocks.0.mlp
        %h = add(%x, %linear_3) : f32[2,16,8] @blocks.0
        %linear_4 = linear(%h, @out.weight, @out.bias) : f32[2,16,8] @out

    Result::

        region denoiser (%hidden_states, %kv, %emb) -> (%linear_4) [volatile]  // denoiser, …
        region @blocks.0 (%hidden_states, %kv, %emb) -> (%h) [volatile]  // block, 7.68 kMAC, …
        region @blocks.0.mlp (%x, %emb) -> (%linear_3) [volatile]  // mlp branch, 2.05 kMAC, 2 ops
    """

    name: ClassVar[str] = "form-regions"
    requires: ClassVar[frozenset[str]] = frozenset({"dependence"})
    ensures: ClassVar[frozenset[str]] = frozenset({"regions"})

    def apply(self, graph: StepGraph, ctx: PassContext) -> PassResult:
        """Attach the regions, outermost first."""
        annotate_macs(graph.graph)
        order, by_name = Order(graph.graph), graph.nodes_by_name()
        latent = [n for n in order.nodes if n.op.startswith("call") and _is_latent(n)]
        if not latent:
            return PassResult(graph.with_(facts=graph.facts | self.ensures), False, {"regions": 0})
        regions = [make_region("denoiser", "denoiser", "", latent, order)]
        runs = block_runs(latent)
        seen: Counter[str] = Counter()
        for path, nodes in runs:
            if not path:
                continue
            seen[path] += 1
            name = path if seen[path] == 1 else f"{path}#{seen[path]}"
            block = make_region(name, "block", path, nodes, order)
            streams = {by_name[n] for n in partners(graph, block, by_name).values()}
            regions.append(block)
            regions.extend(_branches(name, nodes, order, streams))
        if (deep := _deep_part(runs)) is not None:
            regions.append(make_region("deep", "deep", "", deep, order))
        facts = graph.facts | self.ensures
        kinds = Counter(r.kind for r in regions)
        done = graph.with_(regions=tuple(regions), facts=facts)
        return PassResult(done, True, {f"{k} regions": v for k, v in kinds.items()})


def block_path(node: fx.Node) -> str:
    """Module path up to its first numbered part: `blocks.3` of `blocks.3.attn.to_q`, else ""."""
    parts = module_path(node).split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: i + 1])
    return ""


def block_runs(nodes: Sequence[fx.Node]) -> list[tuple[str, list[fx.Node]]]:
    """Contiguous runs of nodes by block path, in order; glue between blocks has path ""."""
    return [(path, list(run)) for path, run in groupby(nodes, key=block_path)]


def _branches(
    block: str, nodes: list[fx.Node], order: Order, streams: set[fx.Node]
) -> list[Region]:
    """Residual branches of one block: what lies between the stream and a residual add.

    `streams` are the live-ins that the block's results are sums on; the first block's text stream
    is one of them that no latent has reached yet.
    """
    inside = set(nodes)
    stream = {a for n in nodes for a in n.all_input_nodes if a not in inside and _is_latent(a)}
    stream |= streams
    groups: list[set[fx.Node]] = []
    for node in nodes:
        joined = op_base(node) in ("cat", "concat") and stream.issuperset(node.all_input_nodes)
        if joined or (op_base(node) in CASTS and node.args[0] in stream):
            stream.add(node)  # two streams as one, or one in another type, as where fp32 is added
            continue
        branch = _residual_operand(node, stream)
        if branch is None:
            continue
        stream.add(node)
        found = _between(_ungated(branch), stream, inside)
        if not found:
            continue
        merged = [g for g in groups if g & found]
        groups = [g for g in groups if not g & found]
        groups.append(found.union(*merged))
    regions: list[Region] = []
    names: Counter[str] = Counter()
    for group in groups:
        if total_macs(group) == 0 or len(group) == len(nodes):
            continue
        heavy: defaultdict[str, int] = defaultdict(int)
        # In graph order: of two equally heavy parts the first names the branch, in every process.
        for n in (n for n in nodes if n in group):
            tail = (
                module_path(n)
                .removeprefix(block.split("#", maxsplit=1)[0])
                .lstrip(".")
                .split(".")[0]
            )
            heavy[tail] += total_macs([n])
        label = max(heavy, key=lambda k: heavy[k]) or "branch"
        names[label] += 1
        suffix = "" if names[label] == 1 else f"#{names[label]}"
        name = f"{block}.{label}{suffix}"
        made = make_region(name, "branch", f"{block}.{label}", group, order)
        regions.append(replace(made, role=role_of(group)))
    return regions


def _is_latent(node: fx.Node) -> bool:
    return bool(depends_of(node) & Depends.LATENT)


def _residual_operand(node: fx.Node, stream: set[fx.Node]) -> fx.Node | None:
    """The branch that a residual add joins to the stream, None if the node is no such add."""
    if not (node.target in ADDS or (node.op == "call_method" and node.target == "add")):
        return None
    if len(node.args) < 2:
        return None
    left, right = node.args[0], node.args[1]
    if not (isinstance(left, fx.Node) and isinstance(right, fx.Node)):
        return None
    for kept, branch in ((left, right), (right, left)):
        if kept in stream and branch not in stream and _shape(kept) == _shape(node):
            return branch
    return None


def _ungated(branch: fx.Node) -> fx.Node:
    """The branch less its gate: what a step multiplies it with is not the branch's own work.

    So a cached branch meets the gate of the step in which it is used, as it does where methods that
    cache attention and MLP are published.
    """
    while True:
        operands = [a for a in branch.all_input_nodes if _is_latent(a)]
        gate = len(operands) == 1 and op_base(branch) in ("mul", "__mul__")
        if not (gate or (op_base(branch) in CASTS and operands)):
            return branch
        if _shape(operands[0]) != _shape(branch):
            return branch
        branch = operands[0]


def _shape(node: fx.Node) -> tuple[int, ...]:
    return shape_of(value_of(node))


def _between(branch: fx.Node, stream: set[fx.Node], inside: set[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    todo = [branch]
    while todo:
        node = todo.pop()
        if node in found or node in stream or node not in inside:
            continue
        found.add(node)
        todo.extend(node.all_input_nodes)
    return found


def _deep_part(runs: list[tuple[str, list[fx.Node]]]) -> list[fx.Node] | None:
    """The nodes of the run interval with >= half of the MACs and the fewest live-out bytes."""
    if sum(bool(path) for path, _ in runs) < 3:
        return None
    where = {n: i for i, (_, nodes) in enumerate(runs) for n in nodes}
    count = len(runs)
    leaving = [[0] * (count + 1) for _ in range(count)]  # bytes of run i still live after run j
    for node, i in where.items():
        last = max((where.get(u, count) for u in node.users), default=i)
        size = tensor_bytes(value_of(node))
        for j in range(i, min(last, count)):
            leaving[i][j] += size
    macs = [total_macs(nodes) for _, nodes in runs]
    total = sum(macs)
    best: tuple[int, int, int, int] | None = None
    for i in range(count):
        for j in range(i, count):
            work = sum(macs[i : j + 1])
            if 2 * work < total or work == total or not runs[i][0] or not runs[j][0]:
                continue
            out = sum(leaving[k][j] for k in range(i, j + 1))
            candidate = (out, -work, i, j)
            if out and (best is None or candidate < best):
                best = candidate
    if best is None:
        return None
    _, _, i, j = best
    return [n for _, nodes in runs[i : j + 1] for n in nodes]
