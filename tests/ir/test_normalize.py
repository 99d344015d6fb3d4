from __future__ import annotations

import pytest
import torch
import toy_models as models
from ditcache.passes.base import PassError
from torch import nn
from torch.nn import functional as F


def test_setitem_becomes_a_value(filecheck, lowered):
    filecheck(
        lowered(models.Rotary(), models.wide(), "normalize"),
        """
        CHECK:      %out = empty_like(%h) : f32[2,16,8]
        CHECK:      %setitem = functional_setitem(%out, (..., 0::2), %mul_1) : f32[2,16,8]
        CHECK:      %setitem_1 = functional_setitem(%setitem, (..., 1::2), %mul_2) : f32[2,16,8]
        CHECK-NEXT: return (%setitem_1,)
        """,
    )


def test_writes_chain_and_keep_the_written_dtype(filecheck, lowered):
    # `first` is `h` under another name: it reads what was last written.
    filecheck(
        lowered(models.Writes(), models.wide(), "normalize"),
        """
        CHECK:      %first = .add(%h, %getitem) : f32[2,16,8]
        CHECK-NEXT: %to_1 = .to(%first, bf16) : bf16[2,16,8]
        CHECK-NEXT: %mul = .mul(%to_1, 3) : bf16[2,16,8]
        CHECK-NEXT: %h_1 = add(%mul, %mul) : bf16[2,16,8]
        CHECK-NEXT: %silu = silu(%h_1, inplace=False) : bf16[2,16,8]
        CHECK-NEXT: %setitem = functional_setitem(%silu, (:, 0), 1) : bf16[2,16,8]
        CHECK-NEXT: %clamp = .clamp(%setitem, max=50) : bf16[2,16,8]
        CHECK-NEXT: %mul_1 = mul(%clamp, 2) : bf16[2,16,8]
        CHECK-NEXT: %add = add(%mul_1, %clamp) : bf16[2,16,8]
        """,
    )


@pytest.mark.parametrize("model", [models.Rotary, models.Writes, models.TupleOutput])
def test_the_functional_form_gives_the_same_bits(lowered, model):
    module, arguments = model().eval(), models.wide()
    with torch.no_grad():
        expected = module(*arguments)
        graph = lowered(module, arguments, "normalize", text=False)
        got = graph.module(*_arguments(graph, module, arguments))
    flat = torch.utils._pytree.tree_leaves
    wanted = {id(t): t for t in flat(expected)}
    for value in flat(got):
        assert any(torch.equal(value, t) for t in wanted.values())


def _arguments(graph, module, arguments):
    from ditcache.passes.ir import placeholders
    from ditcache.passes.names import source_name

    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    named |= dict(zip(("x", "t"), arguments, strict=True))
    return [named[source_name(n)] for n in placeholders(graph.graph)]


class Into(nn.Module):
    """Runs `body(x, t)`."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x, t):
        return self.body(x, t)


def _write_input(x, t):
    x.add_(1)
    return x * t[:, None, None]


def _write_view_of_input(x, t):
    x[0].mul_(2)
    return x * t[:, None, None]


def _view_read_after(x, t):
    h = x * t[:, None, None]
    view = h.reshape(2, -1)
    h += 1
    return view


def _base_read_after(x, t):
    h = x * t[:, None, None]
    h.transpose(1, 2).add_(1)
    return h


def _cast_that_is_no_copy(x, t):
    h = x * t[:, None, None]
    same = h.to(torch.float32)
    same.mul_(2)
    return h


def _dropout_that_is_no_copy(x, t):
    h = x * t[:, None, None]
    same = F.dropout(h, 0.5, training=False)
    same.mul_(2)
    return h


def _out_argument(x, t):
    h = torch.empty_like(x)
    torch.mul(x, t[:, None, None], out=h)
    return h


def _fresh_noise(x, t):
    return x * t[:, None, None] + torch.empty_like(x).normal_()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (_write_input, "writes into the input x"),
        (_write_view_of_input, "writes into a view of the input x"),
        (_view_read_after, "changes memory that view shares, which is read again later"),
        (_base_read_after, "changes memory that h shares, which is read again later"),
        (_cast_that_is_no_copy, "changes memory that h shares"),
        (_dropout_that_is_no_copy, "changes memory that h shares"),
        (_out_argument, "has no functional form"),
        (_fresh_noise, "has no functional form"),
    ],
)
def test_invalid(lowered, body, message):
    with pytest.raises(PassError, match=message):
        lowered(Into(body), models.wide(), "normalize")


def _cast_that_is_a_copy(x, t):
    h = x * t[:, None, None]
    other = h.to(torch.bfloat16)
    other.mul_(2)
    return h + other


def test_a_write_into_a_copy_is_no_write_into_its_source(lowered, filecheck):
    filecheck(
        lowered(Into(_cast_that_is_a_copy), models.wide(), "normalize"),
        """
        CHECK:      %mul = .mul(%other, 2) : bf16[2,16,8]
        CHECK-NEXT: %add = add(%h, %mul) : f32[2,16,8]
        """,
    )
