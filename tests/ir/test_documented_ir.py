"""The IR in the documentation and in the docstrings of passes is what the printer prints."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import toy_models as models
from ditcache.passes import pipeline, policies
from ditcache.passes.base import PassContext
from ditcache.passes.printer import print_graph
from ditcache.passes.selectors import outline
from ditcache.passes.trace import trace
from ditcache.passes.verifier import RULES

DOCS = Path(__file__).parents[2] / "docs" / "passes"
STEP = {**models.inputs(), "hidden_states": models.wide()[0]}


@pytest.fixture
def around(planned, profile_of):
    """The IR before and after a pass, on the model that its documentation shows."""

    def dumps(name: str) -> tuple[str, str]:
        context = PassContext(plan=planned("blocks.0.mlp", computed=(0, 2, 5), steps=8, history=2))
        model, arguments = models.Step(), STEP
        if name in ("normalize", "cleanup"):
            model = models.Written() if name == "normalize" else models.Twice()
            arguments, context = models.wide(), PassContext()
        elif name == "tag-stability":
            outputs = np.stack([np.array([1.0, 0.021 * i]) for i in range(8)])
            context = PassContext(profile=profile_of(outputs))
        elif name == "lower-cond":
            model = models.Step(depth=2)
            analysed, _ = pipeline.run(traced(model, STEP), pipeline.ANALYSIS, PassContext())
            times = tuple(float(8 - i) for i in range(8))
            subject = policies.Subject("0" * 16, times, outline(analysed))
            plan = policies.make("firstblockcache", {"threshold": 0.1}).plan(subject)
            context = PassContext(plan=plan, on_device=True)
        found = {}

        def before(graph, step):
            found[step.name] = print_graph(graph, plan=context.plan)

        def after(_, step, result, __):
            found[step.name] = found[step.name], print_graph(result.graph, plan=context.plan)

        passes = pipeline.DEFAULT[: list(pipeline.BY_NAME).index(name) + 1]
        pipeline.run(traced(model, arguments), passes, context, before=before, callback=after)
        return found[name]

    return dumps


def traced(model, arguments):
    args, kwargs = ((), arguments) if isinstance(arguments, dict) else (arguments, {})
    return trace(model.eval(), args, kwargs, name="step")


def of_page(name: str) -> list[str]:
    """The blocks under Given and Result of a pass's page."""
    text = (DOCS / f"{name}.md").read_text()
    return re.findall(r"## (?:Given|Result)\n\n```\n(.*?)```", text, re.S)


def of_docstring(name: str) -> list[str]:
    """The blocks under Given and Result of a pass's docstring."""
    text = inspect.getdoc(type(pipeline.BY_NAME[name])) or ""
    return re.findall(r"^(?:Given|Result)[^\n]*::\n\n(.*?)(?=\n\S|\Z)", text, re.S | re.M)


@pytest.mark.parametrize("source", [of_page, of_docstring])
@pytest.mark.parametrize("name", pipeline.BY_NAME)
def test_given_and_result_are_what_is_printed(around, source, name):
    blocks = source(name)
    assert len(blocks) == 2
    for block, dump in zip(blocks, around(name), strict=True):
        printed = iter(line.strip() for line in dump.splitlines())
        shown = [line.strip() for line in block.splitlines() if line.strip() not in ("", "…")]
        assert shown
        for line in shown:  # in this order; … stands for anything
            pattern = re.compile(".*".join(map(re.escape, line.split("…"))))
            assert any(pattern.fullmatch(p) for p in printed), f"not printed (here): {line}\n{dump}"


def test_every_pass_has_its_page():
    table = (DOCS / "README.md").read_text()
    for name in pipeline.BY_NAME:
        assert (DOCS / f"{name}.md").is_file()
        assert f"]({name}.md)" in table
    listed = re.findall(r"^\| \d+ \| \[([\w-]+)\]", table, re.M)
    assert listed == list(pipeline.BY_NAME)


def test_every_rule_is_listed():
    table = (DOCS / "README.md").read_text()
    assert re.findall(r"^\| (V\d+) \|", table, re.M) == list(RULES)
