"""Opening and saving policies."""

import json
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from strive.errors import MissingInputError, ModelError, UnknownNameError, short_reason
from strive.models.loading import (
    Policy,
    evaluation_mode,
    load_policy,
    open_model,
    save_policy,
)


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


@pytest.fixture(params=["refuses", "never answers"])
def unreachable_hub(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """A port of this machine stands for a hub that cannot be reached."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if request.param == "never answers":
            listening.listen()
        port = listening.getsockname()[1]
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"https://127.0.0.1:{port}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("strive.models.loading.HUB_TIMEOUT_SECONDS", 0.3)
        yield


@pytest.mark.usefixtures("unreachable_hub")
def test_an_unreachable_hub_is_asked_once_and_names_the_embedded_model() -> None:
    started = time.monotonic()
    with pytest.raises(ModelError, match="lab:qwen2_5_vl") as caught:
        load_policy("Qwen/Qwen2.5-VL-0B-nowhere")
    assert "\n" not in str(caught.value) and time.monotonic() - started < 5


def test_a_long_reason_is_cut_between_words() -> None:
    reason = short_reason(OSError("We could not\nconnect " + "to huggingface " * 40))
    assert len(reason) <= 240 and "\n" not in reason
    assert reason.removesuffix(" ...").split()[-1] in ("to", "huggingface")


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


# --- folders that are no model, or not a whole one


@pytest.fixture
def model(folders: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(folders["qwen2_5_vl"], tmp_path / "model")


def test_a_folder_without_a_chat_template(model: Path) -> None:
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"has no chat template: chat_template.jinja is missing"):
        load_policy(model)
    # Older folders keep it with the tokenizer.
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    assert open_model(model).processor.chat_template == template
    (model / "chat_template.jinja").write_text("{% for message in messages %}")
    with pytest.raises(ModelError, match="cannot be rendered"):
        open_model(model)
    (model / "chat_template.jinja").write_text("{{ messages[0]['role'] }}")
    with pytest.raises(ModelError, match="leaves out the video"):
        open_model(model)


def test_what_a_training_left_beside_its_models_is_told_apart(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    checkpoint = run / "checkpoints" / "step-000002"
    checkpoint.mkdir(parents=True)
    (run / "config.json").write_text('{"config": {}, "data": {}, "versions": {}}')
    with pytest.raises(ModelError, match=r"a' is the folder of a run.*none yet: --resume"):
        load_policy(run)
    shutil.copytree(model, run / "final")
    for path, what in ((run, "the folder of a run"), (checkpoint, "a checkpoint of a run")):
        with pytest.raises(ModelError) as caught:
            load_policy(path)
        assert f"is {what}, which is no model; its model is {run / 'final'}" in str(caught.value)
    assert open_model(run / "final").family.name == "qwen2_5_vl"
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    (adapters / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds adapters without their model"):
        load_policy(adapters)


@pytest.mark.parametrize(
    ("named", "wanted"),
    [
        ("<|endoftext|>", ["<|endoftext|>", "<|im_end|>"]),  # a base model's generation config
        ("<|im_end|>", ["<|im_end|>"]),
        (None, ["<|im_end|>"]),
    ],
)
def test_completions_end_at_what_either_file_names(
    model: Path, named: str | None, wanted: list[str]
) -> None:
    tokenizer = open_model(model).processor.tokenizer
    assert tokenizer.eos_token == "<|im_end|>"
    path = model / "generation_config.json"
    number = None if named is None else tokenizer.convert_tokens_to_ids(named)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": number}))
    policy = load_policy(model)
    assert tokenizer.convert_ids_to_tokens(list(policy.eos_ids)) == wanted
