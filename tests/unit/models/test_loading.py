"""Opening and saving policies."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from strive.errors import MissingInputError, ModelError, UnknownNameError
from strive.models.loading import Policy, evaluation_mode, load_policy, save_policy


def test_a_policy_is_opened_in_evaluation_mode_with_its_ends(policy: Policy) -> None:
    assert not policy.model.training
    assert policy.dtype == torch.float32
    names = policy.tokenizer.convert_ids_to_tokens(list(policy.eos_ids))
    assert names == ["<|im_end|>", "<|endoftext|>"]
    never = set(policy.tokenizer.convert_ids_to_tokens(policy.never_sampled_ids[:5].tolist()))
    assert never == {
        "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
    }  # fmt: skip
    # The embedding has 272 rows, the tokenizer 264 tokens: the rest has no text.
    assert policy.never_sampled_ids[5:].tolist() == list(range(264, 272))


def test_dtype(folders: dict[str, Path]) -> None:
    assert load_policy(folders["qwen3_vl"], dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(ModelError, match="float32, bfloat16"):
        load_policy(folders["qwen3_vl"], dtype="int8")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped")
def test_weights_take_no_second_place_in_the_hosts_memory(folders: dict[str, Path]) -> None:
    """On a CPU they are the mapped file's own pages; for another device they are never here."""
    model = load_policy(folders["qwen2_5_vl"]).model
    mapped = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(folders["qwen2_5_vl"] / "model.safetensors"))
    ]
    for name, weight in model.named_parameters():
        assert any(start <= weight.data_ptr() < end for start, end in mapped), name
    away = load_policy(folders["qwen2_5_vl"], device="meta", dtype="bfloat16").model
    assert {(weight.device.type, weight.dtype) for weight in away.parameters()} == {
        ("meta", torch.bfloat16)
    }


def test_saved_folder_is_plain_hugging_face(policy: Policy, tmp_path: Path) -> None:
    save_policy(policy, tmp_path / "final")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "final")
    processor = AutoProcessor.from_pretrained(tmp_path / "final")
    for name, weight in policy.model.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name
    assert processor.chat_template == policy.processor.chat_template
    assert tuple(model.generation_config.eos_token_id) == policy.eos_ids
    assert not list((tmp_path / "final").glob("*.bin"))


def test_other_families_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match="'llama'; policies can be of qwen2_5_vl or qwen3_vl"):
        load_policy(tmp_path)


def test_unreachable_hub_names_the_embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    # A port of this machine that nothing listens on stands for a hub that does not answer.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://127.0.0.1:9")
    monkeypatch.setattr("strive.models.loading.getproxies", dict)
    with pytest.raises(ModelError, match="lab:qwen2_5_vl") as caught:
        load_policy("Qwen/Qwen2.5-VL-0B-nowhere")
    assert "\n" not in str(caught.value)


def test_missing_and_broken_folders(tmp_path: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(MissingInputError, match="no model folder"):
        load_policy(tmp_path / "absent")
    (tmp_path / "config.json").write_text((folders["qwen2_5_vl"] / "config.json").read_text())
    with pytest.raises(ModelError, match="cannot be opened as a model"):
        load_policy(tmp_path)
    with pytest.raises(UnknownNameError, match="position_rule"):
        load_policy(folders["qwen2_5_vl"], position_rule="newest")  # type: ignore[arg-type]


def test_evaluation_mode_is_left_as_it_was(policy: Policy) -> None:
    policy.model.train()
    with evaluation_mode(policy.model):
        assert not policy.model.training
    assert policy.model.training
    policy.model.eval()
    with evaluation_mode(policy.model):
        assert not policy.model.training
    assert not policy.model.training
