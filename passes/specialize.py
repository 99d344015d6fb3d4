"""specialize: one straight-line program for each choice of compute or forecast in the plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import fx

from .base import PassContext, PassResult
from .cost import total_macs
from .ir import InputKind, StepGraph, Variant, cache_cond, cache_write, kind_of, output_node
from .plan_format import Plan


@dataclass(frozen=True)
class Specialize:
    """Partially evaluate the predicates: a variant for each mode vector in the plan.

    Inlines the chosen arm of every `cache.cond`, turns writes into a second output (the runtime
    pushes them into the ring after the call, so the program stays functional), and drops dead
    code. The all-compute variant always exists: it is what runs when in doubt.

    Given::

        %cache_cond = cache.cond %plan_blocks_0_mlp $blocks.0.mlp { hit: …  miss: … }
        %getitem_1 = getitem(%cache_cond, 0) : f32[2,16,8] @blocks.0.mlp
        %h = add(%x, %getitem_1) : f32[2,16,8] @blocks.0
        return (%h,)

    Result::

        variant 0 (blocks.0.mlp: compute) writes $blocks.0.mlp  // 9.73 kMAC {
          %mul = mul(%x, %emb) : f32[2,16,8] @blocks.0
          %linear_3 = linear(%mul, …) : f32[2,16,8] @blocks.0.mlp
          %h = add(%x, %linear_3) : f32[2,16,8] @blocks.0
          yield ((%h,), (%linear_3,))
        }
        variant 1 (blocks.0.mlp: forecast)  // 7.68 kMAC {
          %cache_forecast = cache.forecast $blocks.0.mlp, %weights_blocks_0_mlp : f32[2,16,8]
          %h = add(%x, %cache_forecast) : f32[2,16,8] @blocks.0
          yield ((%h,), ())
        }
    """

    name: ClassVar[str] = "specialize"
    requires: ClassVar[frozenset[str]] = frozenset({"cached"})
    ensures: ClassVar[frozenset[str]] = frozenset({"specialized"})

    def apply(self, graph: StepGraph, ctx: PassContext) -> PassResult:
        """Attach the variants; the step graph itself stays for printing."""
        wanted = sorted(modes_of(graph, ctx.plan))
        variants = tuple(_variant(graph, modes) for modes in wanted)
        done = graph.with_(variants=variants, facts=graph.facts | self.ensures)
        return PassResult(done, True, {"variants": len(variants)})


def modes_of(graph: StepGraph, plan: Plan | None) -> set[tuple[bool, ...]]:
    """The mode vectors (true: forecast) that occur over the plan's steps, all-compute included."""
    count = len(graph.scheduled)
    modes: set[tuple[bool, ...]] = {(False,) * count}
    if plan is None:
        return modes
    computed = {s.region: set(s.computed) for s in plan.regions}
    for step in range(len(plan.timesteps)):
        modes.add(tuple(step not in computed[name] for name in graph.scheduled))
    return modes


def _variant(graph: StepGraph, modes: tuple[bool, ...]) -> Variant:
    new = fx.Graph()
    env: dict[fx.Node, Any] = {}
    writes: dict[str, fx.Node] = {}
    mode = dict(zip(graph.scheduled, modes, strict=True))
    for node in graph.graph.nodes:
        if node.op == "get_attr" and all(u.target is cache_cond for u in node.users):
            continue
        if node.target is cache_cond:
            arm = node.args[1] if mode[node.meta["region"]] else node.args[2]
            body = cast(fx.GraphModule, graph.module.get_submodule(str(arm.target)))
            env[node] = _inline(body.graph, node.args[3], new, env, writes)
        elif isinstance(parts := _parts(node, env), tuple):
            env[node] = parts[cast(int, node.args[1])]
        elif node.target is cache_write:
            writes[_slot_name(node)] = env[cast(fx.Node, node.args[1])]
        elif node.op == "output":
            results = fx.map_arg(node.args[0], env.__getitem__)
            new.output((results, tuple(writes.values())))
        else:
            env[node] = new.node_copy(node, env.__getitem__)
    new.eliminate_dead_code(lambda n: n.op == "output" or n.is_impure())
    for node in list(new.nodes):
        if node.op == "placeholder" and not node.users:
            new.erase_node(node)
    module = fx.GraphModule(graph.module, new)
    module.meta = dict(graph.module.meta)
    return Variant(modes, module, tuple(writes), total_macs(new.nodes))


def _parts(node: fx.Node, env: dict[fx.Node, Any]) -> Any:
    """The inlined results if the node projects a cond that was inlined."""
    if node.op == "call_function" and node.args and isinstance(node.args[0], fx.Node):
        return env.get(node.args[0])
    return None


def _slot_name(write: fx.Node) -> str:
    return str(cast(fx.Node, write.args[0]).meta["slot"])


def _inline(
    body: fx.Graph,
    operands: Any,
    new: fx.Graph,
    outer: dict[fx.Node, Any],
    writes: dict[str, fx.Node],
) -> tuple[Any, ...]:
    """Copy an arm into `new`; gives its yielded values and adds its writes."""
    passed = iter(operands)
    local: dict[fx.Node, Any] = {}
    for node in body.nodes:
        if node.op == "placeholder":
            local[node] = outer[next(passed)]
        elif node.target is cache_write:
            writes[_slot_name(node)] = local[node] = local[node.args[1]]
        elif node.op == "output":
            return cast("tuple[Any, ...]", fx.map_arg(node.args[0], local.__getitem__))
        else:
            local[node] = new.node_copy(node, local.__getitem__)
    raise AssertionError(f"{output_node(body)}: an arm without an output")


def needed_inputs(variant: Variant) -> dict[str, InputKind | None]:
    """Names and kinds of the variant's inputs, in call order."""
    nodes = variant.module.graph.nodes
    return {n.name: kind_of(n) for n in nodes if n.op == "placeholder"}
