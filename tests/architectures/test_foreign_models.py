"""Models from outside diffusers: inputs are told for what they are, or the user is told how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ditcache
import pytest
import torch
from ditcache.passes.ir import kind_of, placeholders
from ditcache.passes.names import argument_name
from ditcache.runtime.session import session_of
from torch import Tensor, nn

from . import foreign
from .outside import planned_by_hand

STEPS = 8


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Foreign:
    """A model, the shape of its latents, how it is called with (x, t), its inputs' true kinds."""

    cls: type[nn.Module]
    shape: tuple[int, ...]
    call: Callable[[Any, Tensor, Tensor], Tensor]
    kinds: dict[str, str]
    times: tuple[float, float] = (1.0, 0.0)


LABEL, BOTH = torch.tensor([3]), torch.tensor([3, 10])
TEXT, WORDS = noise(1, 5, 8, seed=5), noise(1, 4, foreign.DIM, seed=6)
KEEP = torch.tensor([[True, True, True, False, False]])

MODELS = {
    "DiT, positional, learned sigma": Foreign(
        foreign.OriginalDiT,
        (1, 4, 8, 8),
        lambda m, x, t: m(x, (999 * t).round().long().expand(1), LABEL)[:, :4],
        {"x": "latents", "t": "timestep", "y": "condition"},
    ),
    "DiT, guidance inside": Foreign(
        foreign.Guided,
        (1, 4, 8, 8),
        lambda m, x, t: m(torch.cat([x, x]), (999 * t).expand(2), BOTH, cfg_scale=3.0)[:1, :4],
        {"x": "latents", "t": "timestep", "y": "condition"},
    ),
    "U-ViT, latents second, bool mask, dictionary": Foreign(
        foreign.UViT,
        (1, 3, 8, 8),
        lambda m, x, t: m(TEXT, x, t[None], KEEP)["sample"],
        {"context": "condition", "img": "latents", "timesteps": "timestep", "keep": "condition"},
    ),
    "UNet, keywords": Foreign(
        foreign.KeywordUNet,
        (1, 3, 8, 8),
        lambda m, x, t: m(noise_level=t[None], class_id=LABEL, noisy_images=x),
        {"noisy_images": "latents", "noise_level": "timestep", "class_id": "condition"},
    ),
    "EDM, sigma [B,1,1,1]": Foreign(
        foreign.Preconditioned,
        (1, 3, 8, 8),
        lambda m, x, t: (x - m(x, t.reshape(1, 1, 1, 1), LABEL)) / t,
        {"x": "latents", "sigma": "timestep", "class_labels": "condition"},
        times=(5.0, 0.1),
    ),
    "tokens, channels last, a time each, complex buffer, dataclass": Foreign(
        foreign.Tokens,
        (1, 3, 4, 6),
        lambda m, x, t: m(WORDS.to(x.dtype), t.expand(1, 12), x).velocity,
        {"frames": "latents", "ts": "timestep", "text": "condition", "rope": "parameter"},
    ),
}


def generate(case: Foreign, model: nn.Module, seed: int = 0) -> Tensor:
    start, end = case.times
    grid = torch.linspace(start, end, STEPS + 1)
    dtype = next(model.parameters()).dtype
    x = noise(*case.shape, seed=seed).to(dtype) * start
    with torch.no_grad():
        for i in range(STEPS):
            x = x + (grid[i + 1] - grid[i]).to(dtype) * case.call(model, x, grid[i])
    return x


def compiled(model: nn.Module, **options: Any) -> Any:
    return torch.compile(
        model, backend="ditcache", options={"inner": "eager", "remember": False, **options}
    )


def kinds(model: nn.Module, graph: int = 0) -> dict[str, str]:
    session = session_of(model)
    assert session is not None
    inputs = placeholders(session.executors[graph].graph.graph)
    return {argument_name(n): str(kind_of(n)) for n in inputs}


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


CASES = [(name, torch.float32) for name in MODELS]
CASES += [(name, dtype) for name in list(MODELS)[-1:] for dtype in (torch.bfloat16, torch.float16)]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_inputs_are_recognised_and_a_plan_means_what_it_says(name, dtype):
    case = MODELS[name]
    model = foreign.build(case.cls, dtype=dtype)
    made = compiled(model, computed_steps=4)
    for seed in range(2):
        same(generate(case, made, seed), generate(case, model, seed))
    found = kinds(model)
    assert {k: found[k] for k in case.kinds} == case.kinds
    is_planned(case, model, made)


@dataclass(frozen=True)
class Unclear:
    """A model of which an input cannot be told; the option that helps, and what is said."""

    case: Foreign
    inputs: dict[str, str]
    says: tuple[str, ...]


LAST: list[Tensor] = []


def self_conditioned(model: Any, x: Tensor, t: Tensor) -> Tensor:
    """Calls the model on its last prediction, zero at the first step."""
    if float(t) == 1.0:
        LAST[:] = [torch.zeros_like(x)]
    LAST[:] = [model(x, t[None], LAST[0])]
    return LAST[0]


UNCLEAR = {
    "self-conditioning": Unclear(
        Foreign(foreign.SelfConditioned, (1, 3, 8, 8), self_conditioned, {}),
        {"x_self_cond": "latents"},
        ("'x_self_cond' changes at every call", "{'x_self_cond': 'latents'}"),
    ),
    "two times": Unclear(
        Foreign(
            foreign.TwoTimes, (1, 3, 8, 8), lambda m, x, t: m(x, t[None], t[None] - 1 / STEPS), {}
        ),
        {"r": "timestep"},
        ("'r' changes at every call", "{'r': 'timestep'}"),
    ),
    "no telling names": Unclear(
        Foreign(
            foreign.Unnamed, (1, 3, 8, 8), lambda m, x, t: m(x, t[None], torch.tensor([2.0])), {}
        ),
        {"b": "timestep"},
        ("No input tells the time", "inputs are: b, c", "'timestep'}"),
    ),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_cannot_be_told_is_computed_in_full_and_the_option_named(name, caplog):
    unclear = UNCLEAR[name]
    case, model = unclear.case, foreign.build(unclear.case.cls)
    made = compiled(model, computed_steps=4)
    for seed in range(3):
        same(generate(case, made, seed), generate(case, model, seed))
    assert ditcache.summary(made).forecast == 0
    for text in unclear.says:
        assert text in caplog.text


@pytest.mark.parametrize("name", UNCLEAR)
def test_with_the_option_it_is_cached(name):
    unclear = UNCLEAR[name]
    case, model = unclear.case, foreign.build(unclear.case.cls)
    made = compiled(model, computed_steps=4, inputs=unclear.inputs)
    for seed in range(2):
        same(generate(case, made, seed), generate(case, model, seed))
    is_planned(case, model, made)


def test_a_step_counted_in_python_is_the_time_from_its_second_value_on(caplog):
    """A number is a constant to Dynamo until it changes: the very first call does not tell it."""
    case = Foreign(
        foreign.Counted,
        (1, 3, 8, 8),
        lambda m, x, t: m(x, int(1000 * t), None)["prediction"]["eps"],
        {},
    )
    model = foreign.build(case.cls)
    made = compiled(model, computed_steps=4)
    for seed in range(3):
        same(generate(case, made, seed), generate(case, model, seed))
    ditcache.reset(made)
    is_planned(case, model, made)
    assert kinds(model, 1) == kinds(model) | {"step": "timestep"}
    assert "no timestep" not in caplog.text


def test_generations_that_never_agree_are_explained(caplog):
    """What a model keeps as an attribute looks like a weight, and is another every time."""
    case = Foreign(foreign.Recurrent, (1, 3, 8, 8), lambda m, x, t: m(x, t[None]), {})
    made = compiled(foreign.build(case.cls), computed_steps=4)
    plain = foreign.build(case.cls)
    for seed in range(6):
        same(generate(case, made, seed), generate(case, plain, seed))
    assert ditcache.summary(made).forecast == 0
    assert caplog.text.count("which differ in weights;") == 1


def test_a_compiled_function_is_cached_and_the_module_is_asked_for():
    case = Foreign(foreign.KeywordUNet, (1, 3, 8, 8), MODELS["UNet, keywords"].call, {})
    model = foreign.build(case.cls)

    def denoise(**inputs: Tensor) -> Tensor:
        return model(**inputs)

    made = compiled(denoise, computed_steps=4)
    made.parameters = model.parameters  # generate() looks there for the dtype
    for seed in range(2):
        same(generate(case, made, seed), generate(case, model, seed))
    with pytest.raises(TypeError, match="give the module that it calls"):
        ditcache.summary(made)
    generate(case, made, 2)
    assert ditcache.summary(model).forecast == 4


class Discrete(nn.Module):
    """A masked language diffusion model: its latents are token numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)

    def forward(self, ids: Tensor, t: Tensor) -> Tensor:
        return self.head(self.embedding(ids) * t[:, None, None])


def test_discrete_latents_are_refused():
    model, ids = foreign.build(Discrete), torch.arange(6)[None]
    made = compiled(model)
    for t in (0.9, 0.5, 0.1):
        same(made(ids, torch.tensor([t])), model(ids, torch.tensor([t])))
    assert "no denoising step" in ditcache.summary(made).uncached[0]


def same(one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two, rtol=0, atol=0)


def is_planned(case: Foreign, model: nn.Module, made: Any) -> None:
    """The third generation runs under the plan made from two, and equals the plan by hand."""
    ours = generate(case, made, 2)
    session = session_of(model)
    assert session is not None
    with planned_by_hand(model, session.plans[0], branches=1):
        theirs = generate(case, model, 2)
    tolerance = max(1e-5, 4 * torch.finfo(ours.dtype).eps)
    assert (ours - theirs).norm() <= tolerance * theirs.norm()
    summary = ditcache.summary(made)
    assert (summary.forecast, summary.fallbacks, summary.uncached) == (4, {}, ())
    assert (ours - generate(case, model, 2)).norm() > 1e-6 * ours.norm(), "the plan did nothing"
