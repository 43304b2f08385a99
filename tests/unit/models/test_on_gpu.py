"""What runs on a GPU alone: the compiled step, flex-attention with gradients, bfloat16."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from strive.models.language import FlexSegments, SplitSegments
from strive.models.loading import Policy, load_policy
from strive.models.logprobs import completion_logprobs_batch
from strive.models.sampling import Sampling
from strive.models.vision import encode_videos

from .conftest import FAMILIES, generate, make_prompts
from .test_generate import ending_often, uneven_prompts, uniforms
from .test_language import make_rows

pytestmark = pytest.mark.gpu


@pytest.fixture(params=FAMILIES)
def on_gpu(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Policy:
    return load_policy(folders[request.param], dtype="float32", device="cuda")


def test_the_compiled_step_writes_what_the_plain_one_writes(on_gpu: Policy) -> None:
    policy = ending_often(on_gpu)
    prompts = uneven_prompts(policy, count=8)
    static, dynamic = (
        generate(
            policy,
            prompts,
            sampling=Sampling(
                num_generations=4, max_new_tokens=40, sampling_temperature=0.8, top_p=0.9
            ),
            uniforms_RGL=uniforms(8, 4, 40),
            decode_mode=mode,
        )
        for mode in ("static", "dynamic")
    )
    assert torch.equal(static.tokens_RGL, dynamic.tokens_RGL)
    torch.testing.assert_close(static.logprobs_RGL, dynamic.logprobs_RGL, atol=1e-4, rtol=0)


@pytest.mark.parametrize("trained_tower", [False, True])
def test_flex_equals_sdpa_and_plain(on_gpu: Policy, trained_tower: bool) -> None:
    prompts = make_prompts(on_gpu)
    tokens = torch.randint(0, 256, (3, 4, 9), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([[5, 9, 1, 3], [2, 2, 7, 4], [1, 1, 1, 9]])
    weights = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(2)).cuda()
    found = []
    for mode, attention in (("packed", "flex"), ("packed", "sdpa"), ("plain", "auto")):
        on_gpu.model.zero_grad()
        features = encode_videos(on_gpu, prompts, with_graph=trained_tower)
        result = completion_logprobs_batch(
            on_gpu, prompts, features, tokens, lengths,
            mode=mode, attention=attention,  # type: ignore[arg-type]
        )  # fmt: skip
        (weights * result.logprobs).sum().backward()
        grads = {
            n: p.grad.clone() for n, p in on_gpu.model.named_parameters() if p.grad is not None
        }
        found.append((result.logprobs.detach(), grads))
    for logprobs, grads in found[:2]:
        torch.testing.assert_close(logprobs, found[2][0], atol=1e-4, rtol=0)
        for name, wanted in found[2][1].items():
            assert (grads[name] - wanted).norm() <= 1e-3 * wanted.norm() + 1e-6, name


def test_rollout_logprobs_are_teacher_forced_ones_in_bfloat16(
    on_gpu: Policy, folders: dict[str, Path]
) -> None:
    policy = load_policy(folders[on_gpu.family.name], dtype="bfloat16", device="cuda")
    prompts = make_prompts(policy)
    features = encode_videos(policy, prompts)
    out = generate(
        policy,
        prompts,
        features,
        sampling=Sampling(num_generations=4, max_new_tokens=16),
        uniforms_RGL=uniforms(3, 4, 16),
    )
    with torch.no_grad():
        again = completion_logprobs_batch(policy, prompts, features, out.tokens_RGL, out.lengths_RG)
    difference = (again.logprobs.cpu() - out.logprobs_RGL)[again.mask.cpu()].abs()
    assert difference.mean() < 0.05


def test_flex_over_many_sizes_is_few_kernels_and_exact() -> None:
    """7B's heads in bfloat16, gradients too, against sdpa in float32 on the same numbers."""
    backend = CompileCounterWithBackend("inductor")
    generator = torch.Generator().manual_seed(0)
    for step in range(8):
        prompt, *new = torch.randint(20, 700, (4,), generator=generator).tolist()
        segments = [0] * prompt + [g + 1 for g, n in enumerate(new) for _ in range(n)]
        rows = make_rows([segments] * (1 + step % 3))
        rows = replace(rows, segments_BT=rows.segments_BT.cuda(), ids_BT=rows.ids_BT.cuda())
        shapes = [(len(rows.runs_B), heads, len(segments), 128) for heads in (28, 4, 4)]
        tensors = [torch.randn(shape, generator=generator).bfloat16().cuda() for shape in shapes]
        weights = torch.randn(shapes[0], generator=generator).transpose(1, 2).cuda()
        found = []
        for attend, dtype in (
            (FlexSegments(rows, backend), torch.bfloat16),
            (SplitSegments(rows), torch.float32),
        ):
            inputs = [tensor.to(dtype).requires_grad_() for tensor in tensors]
            output = attend(nn.Module(), *inputs, scale=128**-0.5)
            found.append([output, *torch.autograd.grad((output * weights).sum(), inputs)])
        for ours, wanted in zip(*found, strict=True):
            assert (ours - wanted).norm() <= 1e-2 * wanted.norm()
    assert backend.frame_count <= 5
