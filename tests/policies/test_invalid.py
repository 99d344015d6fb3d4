"""Bad names, options and subjects: one clear error each."""

from __future__ import annotations

import pytest
from ditcache import OptionError, PlanError
from ditcache.passes import policies
from ditcache.passes.outline import Outline
from ditcache.runtime import config

TIMES = tuple(1.0 - i / 12 for i in range(12))
UNET = Outline(0, (), True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("foro", {}, "no policy 'foro'; did you mean 'fora'. There are edf, .*taylorseer"),
        ("fora", {"order": 1}, "policy 'fora' has no option 'order'; it has interval"),
        ("fora", {"interval": 0}, "interval must be of type int, at least 1, got 0"),
        ("fora", {"interval": 2.5}, "interval must be of type int, at least 1, got 2.5"),
        ("fora", {"interval": True}, "interval must be of type int"),
        ("teacache", {"threshold": -1.0}, "threshold must be of type float, at least 0"),
        ("teacache", {"coefficients": "steep"}, "coefficients must be numbers, got 'steep'"),
        ("taylorseer", {"level": 3}, "level must be of type str"),
    ],
)
def test_bad_policy_options_are_named(name, options, message):
    with pytest.raises(PlanError, match=message):
        policies.make(name, options)


@pytest.mark.parametrize(
    ("name", "options", "outline", "message"),
    [
        ("fora", {}, UNET, "needs branches, which this model lacks: 0 blocks, no branches, a deep"),
        (
            "deepcache",
            {},
            Outline(4, ("mlp",)),
            "needs deep, which this model lacks: 4 blocks, mlp",
        ),
        ("dbcache", {}, Outline(8), "needs at least 9 blocks, this model has 8"),
        ("partial", {}, Outline(2), "needs at least 3 blocks"),
        ("taylorseer", {"order": 4}, Outline(4, ("mlp",)), "order must be 0 to 3, got 4"),
        ("taylorseer", {"level": "token"}, Outline(4, ("mlp",)), "level is 'token'"),
        (
            "pab",
            {"attention": 1, "cross_attention": 1},
            Outline(4, ("attention",)),
            "skips nothing",
        ),
        ("magcache", {}, Outline(4), r"needs measurements of 'blocks\[:\] delta'.*regions="),
        ("l2p", {}, Outline(4), "needs measurements of 'denoiser'"),
    ],
)
def test_what_a_model_lacks_for_a_policy_is_named(name, options, outline, message):
    subject = policies.Subject("0" * 16, TIMES, outline)
    with pytest.raises(PlanError, match=message):
        policies.make(name, options).plan(subject)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "fora", "speedup": 2.0}, "options of its own .interval. in place of a budget"),
        ({"policy": "fora", "order": 2}, "unknown option 'order'.*interval"),
        ({"policy": "fora", "interval": 0}, "at least 1, got 0"),
        ({"interval": 3}, "unknown option 'interval'"),
        ({"policy": "fast"}, "expected one of edf.*fora.*none"),
    ],
)
def test_compile_options_that_do_not_go_with_the_policy_are_named(options, message):
    with pytest.raises(OptionError, match=message):
        config.parse(options)


def test_a_policy_on_the_command_line():
    assert policies.parse("fora") == ("fora", {})
    name, options = policies.parse("teacache:threshold=0.3,coefficients=2/1/0")
    assert (name, options) == ("teacache", {"threshold": 0.3, "coefficients": (2.0, 1.0, 0.0)})
    assert policies.parse("taylorseer:order=2,level=output")[1] == {"order": 2, "level": "output"}
    with pytest.raises(PlanError, match=r"'order' in policy .* is no NAME=VALUE"):
        policies.parse("taylorseer:order")


def test_a_taken_name_cannot_be_registered():
    for name in ("edf", "fora"):
        kind = type("Mine", (policies.Policy,), {"name": name})
        with pytest.raises(PlanError, match="exists already"):
            policies.register(kind)
