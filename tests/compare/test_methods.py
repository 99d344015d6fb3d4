"""What each method does to a pipeline, and which go together."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny_pipelines
import torch
from ditcache.bench.compare.combine import DEFAULT, UnknownMethod, parts, together, wanted
from ditcache.bench.compare.methods import METHODS, MethodError, Refused, Setup
from ditcache.bench.compare.methods.compiled import copy_output
from ditcache.bench.compare.methods.keyframes import keyframe_count, stretch
from ditcache.bench.compare.methods.sparse import magnitude_mask
from ditcache.bench.compare.subjects import Request
from ditcache.runtime.scope import current_generation
from torch import nn


@pytest.fixture(scope="module")
def wan():
    return tiny_pipelines.wan(Request("tiny-wan"))


def setup(*names):
    return Setup(names=names)


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ("M1+M5", "the format of linear weights"),
        ("M4+M7", "the denoiser"),
        ("M3-10+M7", "the number of steps"),
        ("C2+C3", "which steps are computed"),
        ("M0+M1", "baseline"),
        ("M1+M1", "twice"),
    ],
)
def test_pairs_that_exclude_each_other_are_refused_with_the_reason(pair, reason):
    with pytest.raises(Refused, match=reason):
        together(pair)


def test_weights_are_prepared_before_what_reads_them():
    names = [method.name for method in together("C3+M2+M1+M6+M4")]
    assert names.index("M4") < names.index("M1") < names.index("M6") < names.index("C3")


def test_combinations_do_not_share_state():
    first, second = together("C3")[0], together("C3")[0]
    assert first is not second
    assert first is not METHODS["C3"]


def test_names_are_checked_and_the_baseline_always_runs():
    assert parts("C3 + M1") == ("C3", "M1")
    assert wanted(["M1"], ["M1 + M2", "M1+M2"]) == ["M0", "M1", "M1+M2"]
    assert wanted([], []) == ["M0"]
    assert len(wanted(None, None)) == len(METHODS) + len(DEFAULT)
    with pytest.raises(UnknownMethod, match="M99"):
        wanted(["M99"], [])


def test_outputs_of_cuda_graphs_outlive_the_next_call(monkeypatch):
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    kept = torch.zeros(2)

    class Replayed(nn.Module):
        """Gives the same memory at every call, as a replayed graph does."""

        def forward(self, x):
            return (kept.add_(x),)

    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    subject = SimpleNamespace(
        denoisers={"transformer": Replayed()}, pipeline=SimpleNamespace(),
        device=torch.device("cuda"),
    )  # fmt: skip
    METHODS["M2"].prepare(subject, setup("M2"))
    first, second = (subject.pipeline.transformer(1.0)[0] for _ in range(2))
    assert (float(first[0]), float(second[0])) == (1, 2)
    output = Transformer2DModelOutput(sample=kept)
    assert copy_output(nn.Identity(), (), output).sample is not kept


def test_fewer_steps_keep_their_share_of_25():
    subject = tiny_pipelines.wan(Request("tiny-wan"))
    subject.steps = 50
    METHODS["M3-10"].prepare(subject, setup("M3-10"))
    assert subject.steps == 20
    subject.steps = 1
    with pytest.raises(MethodError, match="none can be left out"):
        METHODS["M3-15"].prepare(subject, setup("M3-15"))


def test_mask_keeps_the_two_largest_of_four():
    weight = torch.tensor([[1.0, -3.0, 2.0, 0.5, 0.0, 0.1, -0.2, 0.3]])
    assert magnitude_mask(weight).tolist() == [[False, True, True, False, False, False, True, True]]


def test_sparsity_on_a_cpu_is_labelled_quality_only():
    subject = tiny_pipelines.wan(Request("tiny-wan"))
    about = setup("M5")
    METHODS["M5"].prepare(subject, about)
    weight = subject.pipeline.transformer.blocks[0].attn1.to_q.weight
    assert float((weight == 0).float().mean()) >= 0.5
    assert "CUDA" in about.quality_only


def test_missing_weights_are_a_reason():
    for name in ("M4", "M6", "M7"):
        subject = tiny_pipelines.wan(Request("tiny-wan"))
        with pytest.raises(MethodError, match="weights for tiny-wan"):
            METHODS[name].prepare(subject, setup(name))


def test_weights_of_another_model_are_a_reason(tmp_path, wan):
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(2)}, path)
    wan.weights["distilled"] = str(path)
    with pytest.raises(MethodError, match="does not fit the denoiser"):
        METHODS["M4"].prepare(wan, setup("M4"))
    wan.weights["distilled"] = f"{path}#sha256=00"
    with pytest.raises(MethodError, match="SHA-256"):
        METHODS["M4"].prepare(wan, setup("M4"))


def test_distilled_weights_replace_the_denoisers(tmp_path):
    from safetensors.torch import save_file

    subject = tiny_pipelines.wan(Request("tiny-wan"))
    state = {k: v.clone() + 1 for k, v in subject.pipeline.transformer.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    subject.weights["distilled"] = str(tmp_path / "w.safetensors")
    before = subject.fingerprint_of_weights()
    METHODS["M4"].prepare(subject, setup("M4"))
    assert subject.fingerprint_of_weights() != before


def test_lcm_takes_the_flow_scheduler_and_refuses_continuous_noise_levels(tmp_path):
    subject = tiny_pipelines.wan(Request("tiny-wan"))
    subject.pipeline.transformer.save_pretrained(tmp_path / "transformer")
    (tmp_path / "call.json").write_text('{"guidance_scale": 1.0}')
    subject.weights["lcm"] = str(tmp_path)
    METHODS["M7"].prepare(subject, setup("M7"))
    assert type(subject.pipeline.scheduler).__name__ == "FlowMatchLCMScheduler"
    assert (subject.steps, subject.arguments["guidance_scale"]) == (4, 1.0)
    seen = []
    subject.pipeline.transformer.register_forward_hook(lambda *_: seen.append(current_generation()))
    for sample in subject.samples[:2]:
        subject.generate(sample)
    assert len(seen) == 8
    assert None not in seen
    assert len(set(map(id, seen))) == 2
    other = tiny_pipelines.svd(Request("tiny-svd"))
    other.pipeline.unet.save_pretrained(tmp_path / "unet")
    other.weights["lcm"] = str(tmp_path)
    with pytest.raises(MethodError, match="scheduler_config"):
        METHODS["M7"].prepare(other, setup("M7"))


def test_lcm_takes_the_scheduler_beside_the_weights_before_the_subjects_own(tmp_path):
    from diffusers import FlowMatchLCMScheduler

    subject = tiny_pipelines.wan(Request("tiny-wan"))
    subject.pipeline.transformer.save_pretrained(tmp_path / "transformer")
    subject.weights["lcm"] = str(tmp_path)
    FlowMatchLCMScheduler(shift=5.0).save_pretrained(str(tmp_path / "own"))
    subject.schedulers["lcm"] = str(tmp_path / "own")
    METHODS["M7"].prepare(subject, setup("M7"))
    assert subject.pipeline.scheduler.config.shift == 5.0
    FlowMatchLCMScheduler(shift=2.0).save_pretrained(str(tmp_path / "scheduler"))
    METHODS["M7"].prepare(subject, setup("M7"))
    assert subject.pipeline.scheduler.config.shift == 2.0


@pytest.mark.parametrize(
    ("frames", "ratio", "keys"), [(25, 1, 13), (14, 1, 8), (9, 4, 5), (2, 1, 2)]
)
def test_keyframes_fit_the_autoencoder(frames, ratio, keys):
    assert keyframe_count(frames, ratio) == keys


class Blend(nn.Module):
    def forward(self, before, after, time):
        t = time.view(-1, 1, 1, 1)
        return (1 - t) * before + t * after


@pytest.mark.parametrize(("keys", "wanted_frames"), [(5, 9), (8, 14), (13, 25)])
def test_interpolation_reaches_the_full_length_at_the_right_times(keys, wanted_frames):
    ramp = torch.linspace(0, 1, keys).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    made = stretch(ramp, wanted_frames, Blend())
    torch.testing.assert_close(made[:, 0, 0, 0], torch.linspace(0, 1, wanted_frames))


def test_keyframes_generate_half_and_interpolate(tmp_path):
    subject = tiny_pipelines.wan(Request("tiny-wan"))
    path = tmp_path / "blend.pt"
    torch.jit.script(Blend()).save(str(path))
    subject.weights["interpolation"] = str(path)
    (method,) = together("M6")
    method.prepare(subject, setup("M6"))
    assert subject.arguments["num_frames"] == 5
    made = method.post(torch.rand(5, 3, 8, 8))
    assert made.shape == (9, 3, 8, 8)
    (tmp_path / "flownet.pkl").write_bytes(b"x")
    subject.weights["interpolation"] = str(tmp_path / "flownet.pkl")
    with pytest.raises(MethodError, match="weights without their network"):
        together("M6")[0].prepare(subject, setup("M6"))
    subject.weights["interpolation"] = str(tmp_path / "absent.pt")
    subject.arguments["num_frames"] = 9
    with pytest.raises(MethodError, match="no such file"):
        together("M6")[0].prepare(subject, setup("M6"))
