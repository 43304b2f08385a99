"""The program for a GPU, tried on the small model: it measures everything, and floors add up."""

import pytest
import torch

from bench import gpu


@pytest.mark.long
def test_it_measures_everything_on_the_small_model() -> None:
    *_, figures = gpu.measure(tiny=True, num_tokens=6, repeats=1)
    assert figures["on_gpu"] is False
    assert figures["prompt_tokens"] > 600
    assert figures["step"]["seconds"]["step"] > figures["step"]["seconds"]["rollout"] > 0
    passes = figures["logprob_pass_of_one_question"]
    assert set(passes) == {"packed, sdpa", "plain"}
    assert passes["packed, sdpa"]["seconds"] < passes["plain"]["seconds"]
    decoding = figures["decoding"]
    assert decoding["rows"] == 8
    for mode in ("static", "dynamic"):
        share = decoding[mode]["tokens_per_second"] / decoding["floor_tokens_per_second"]
        assert decoding[mode]["share_of_floor"] == pytest.approx(share)


def test_without_a_gpu_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["bench.gpu"])
    gpu.main()
    assert "no GPU here" in capsys.readouterr().out
