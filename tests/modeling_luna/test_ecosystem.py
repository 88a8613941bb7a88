# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""int8 with torchao, adapters with peft, sentence-transformers, and models spread over devices and disk."""

from collections.abc import Callable
from pathlib import Path

import accelerate
import pytest
import torch
import torch.ao.nn.quantized.dynamic as nnqd
from peft import LoraConfig, PeftModel, get_peft_model
from sentence_transformers import SentenceTransformer
from torch import nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
from torchao.quantization.quantize_.workflows import Int8Tensor
from transformers import AutoModel, AutoTokenizer, TorchAoConfig

from modeling_luna import LunaForMaskedLM, LunaForMultipleChoice, LunaForSequenceClassification, LunaModel
from modeling_luna.modeling_luna import AUTO_CLASSES


HEADS = list(AUTO_CLASSES.values())
CLASSIFIER = {"classifier_pooling": "packed_attention"}
INT8 = {"dynamic": Int8DynamicActivationInt8WeightConfig, "weight_only": Int8WeightOnlyConfig}
INT8_ERROR = 0.1
TARGETS = ["q_proj", "kv_proj", "out_proj", "fc1", "fc2"]


def batch_of() -> dict[str, torch.Tensor]:
    input_ids = torch.randint(3, 53, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(input_ids)
    mask[0, 6:] = mask[1, :5] = 0
    return {"input_ids": input_ids, "attention_mask": mask}


@torch.no_grad()
def first_output(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Hidden states or logits, without those at padding."""
    output = model(**batch).to_tuple()[0]
    mask = batch["attention_mask"].bool()
    return output[mask] if output.shape[:2] == mask.shape else output


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    return ((result - expected).norm() / expected.norm()).item()


@pytest.fixture
def wide_model(tiny_config: Callable) -> Callable[..., LunaModel]:
    """A model whose matrices outweigh the rest, with weights of the size that training gives them."""

    def build(model_class: type, **fields) -> LunaModel:
        torch.manual_seed(0)
        config = tiny_config(hidden_size=64, intermediate_size=256, initializer_range=0.1, **fields)
        return model_class(config).eval()

    return build


def stored_bytes(model: nn.Module, path: Path) -> int:
    torch.save(model.state_dict(), path)
    return path.stat().st_size


@pytest.mark.parametrize("kind", INT8)
@pytest.mark.parametrize(
    ("model_class", "fields"),
    [
        (LunaModel, {}),
        (LunaForMaskedLM, {}),
        (LunaForMaskedLM, {"tie_word_embeddings": False, "tie_key_value": False}),
        (LunaForSequenceClassification, CLASSIFIER),
    ],
)
def test_int8(wide_model: Callable, tmp_path: Path, model_class: type, fields: dict, kind: str):
    model, batch = wide_model(model_class, **fields), batch_of()
    expected, size = first_output(model, batch), stored_bytes(model, tmp_path / "float")
    word_embeddings = model.get_input_embeddings().weight.detach().clone()
    quantize_(model, INT8[kind]())
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert len(linears) >= 14
    assert all(isinstance(module.weight, Int8Tensor) for module in linears)
    assert 0 < relative_error(first_output(model, batch), expected) < INT8_ERROR
    assert stored_bytes(model, tmp_path / "int8") < size / 2
    # The tied decoder gets int8 weights of its own; the table of the tokens stays as it was.
    assert torch.equal(model.get_input_embeddings().weight, word_embeddings)


@pytest.mark.parametrize("kind", INT8)
def test_int8_through_transformers(wide_model: Callable, tmp_path: Path, kind: str):
    model, batch = wide_model(LunaForMaskedLM), batch_of()
    model.save_pretrained(tmp_path / "float")
    loaded = LunaForMaskedLM.from_pretrained(
        tmp_path / "float", quantization_config=TorchAoConfig(INT8[kind]()), dtype=torch.float32, device_map="cpu"
    )
    assert isinstance(loaded.luna.layers[0].mlp.fc1.weight, Int8Tensor)
    assert loaded.lm_head.decoder.weight is loaded.luna.embeddings.word_embeddings.weight
    result = first_output(loaded, batch)
    assert 0 < relative_error(result, first_output(model, batch)) < INT8_ERROR

    loaded.save_pretrained(tmp_path / "int8")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("float", "int8")]
    assert sizes[1] < sizes[0] / 2
    again = LunaForMaskedLM.from_pretrained(tmp_path / "int8")
    assert torch.equal(first_output(again, batch), result)


def plain_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Those that tools find by asking for exactly this class, as bitsandbytes and quantize_dynamic do."""
    kinds = (nn.Linear, nn.Dropout, nn.Conv1d, nn.LayerNorm, nn.Embedding)
    return {name: module for name, module in model.named_modules() if type(module) in kinds}


@pytest.mark.parametrize("model_class", HEADS)
def test_every_map_is_a_plain_module(tiny_model: Callable, model_class: type):
    model = tiny_model(model_class, conv_kernel_size=3)
    kinds = (nn.Linear, nn.modules.dropout._DropoutNd, nn.modules.conv._ConvNd, nn.LayerNorm, nn.Embedding)
    assert plain_modules(model) == {
        name: module for name, module in model.named_modules() if isinstance(module, kinds)
    }


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.parametrize("model_class", HEADS)
def test_dynamic_quantisation(wide_model: Callable, tmp_path: Path, model_class: type):
    model, batch = wide_model(model_class), batch_of()
    if model_class is LunaForMultipleChoice:
        batch = {name: value.unsqueeze(0) for name, value in batch.items()}
    expected, size = first_output(model, batch), stored_bytes(model, tmp_path / "float")
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert all(isinstance(quantised.get_submodule(name), nnqd.Linear) for name in linears)
    assert 0 < relative_error(first_output(quantised, batch), expected) < INT8_ERROR
    assert stored_bytes(quantised, tmp_path / "int8") < size / 2


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("model_class", "fields"),
    [
        (LunaForMaskedLM, {"conv_kernel_size": 3}),
        (LunaForMaskedLM, {"projection_length": 2, "tie_key_value": False}),
        (LunaForSequenceClassification, CLASSIFIER),
        (LunaForSequenceClassification, {"classifier_pooling": "packed_max"}),
    ],
)
def test_what_takes_the_place_of_a_module_is_called(
    tiny_model: Callable, model_class: type, fields: dict, implementation: str
):
    model, batch = tiny_model(model_class, implementation, **fields), batch_of()
    expected, called = first_output(model, batch), set()
    names = {module: name for name, module in plain_modules(model).items()}
    for module in names:

        class Replacement(type(module)):
            def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
                called.add(names[self])
                return super().forward(*inputs)

        module.__class__ = Replacement
    torch.testing.assert_close(first_output(model, batch), expected, atol=1e-5, rtol=1e-5)
    assert called == set(names.values())


@pytest.mark.parametrize(
    ("model_class", "fields", "lora"),
    [
        (LunaModel, {}, {"target_modules": TARGETS}),
        (LunaForMaskedLM, {}, {"target_modules": TARGETS}),
        (LunaForMaskedLM, {"tie_key_value": False}, {"target_modules": ["q_proj", "k_proj", "v_proj"]}),
        (LunaForMaskedLM, {"normalize_before": True}, {"target_modules": "all-linear"}),
        (LunaModel, {}, {"target_modules": ["q_proj", "word_embeddings"]}),
        (
            LunaForSequenceClassification,
            CLASSIFIER,
            {"target_modules": TARGETS, "modules_to_save": ["classifier"], "task_type": "SEQ_CLS"},
        ),
        (
            LunaForSequenceClassification,
            {"classifier_pooling": "cls"},
            {"target_modules": ["luna.layers.0.mlp.fc1"], "modules_to_save": ["classifier"]},
        ),
    ],
)
def test_lora(tiny_model: Callable, tmp_path: Path, model_class: type, fields: dict, lora: dict):
    tiny_model(model_class, "sdpa", **fields).save_pretrained(tmp_path / "model")
    model = model_class.from_pretrained(tmp_path / "model")
    base = {name: value.clone() for name, value in model.state_dict().items()}
    batch = batch_of()
    before = first_output(model, batch)

    torch.manual_seed(0)
    tuned = get_peft_model(model, LoraConfig(r=4, **lora)).train()
    trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    labels = {LunaForMaskedLM: batch["input_ids"], LunaForSequenceClassification: torch.tensor([0, 1, 1])}
    for _ in range(2):  # the second half of an adapter starts at zero: the first half moves in the second step
        if model_class in labels:
            tuned(**batch, labels=labels[model_class]).loss.backward()
        else:
            tuned(**batch).last_hidden_state.pow(3).mean().backward()
        assert all(parameter.grad is not None for parameter in trained)
        optimizer.step()
        optimizer.zero_grad()
    after = first_output(tuned.eval(), batch)
    assert not torch.allclose(after, before, atol=1e-3)
    with tuned.disable_adapter():
        assert torch.equal(first_output(tuned, batch), before)

    tuned.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(model_class.from_pretrained(tmp_path / "model"), tmp_path / "adapter").eval()
    assert torch.equal(first_output(loaded, batch), after)
    torch.testing.assert_close(first_output(loaded.merge_and_unload(), batch), after, atol=1e-4, rtol=1e-4)
    base_again = tuned.unload().state_dict()
    assert base_again.keys() == base.keys()
    changed = {name for name in base if not torch.equal(base[name], base_again[name])}
    assert all(name.startswith("classifier.") for name in changed)
    assert bool(changed) == ("modules_to_save" in lora)


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer")
def test_lora_of_a_convolution(tiny_model: Callable):
    model, batch = tiny_model(conv_kernel_size=3), batch_of()
    before = first_output(model, batch)
    tuned = get_peft_model(model, LoraConfig(r=24, target_modules=["convolution"]))  # one rank for each channel
    torch.testing.assert_close(first_output(tuned, batch), before, atol=1e-5, rtol=1e-5)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data += 1.0
    assert (first_output(tuned, batch) - before).abs().max() > 0.1


def test_sentence_transformers(saved_folder: Path, tmp_path: Path):
    sentences = ["The moon goes round the earth, and the earth goes round the sun.", "moon", "A short row."]
    encoder = SentenceTransformer(str(saved_folder), device="cpu")
    embeddings = encoder.encode(sentences, convert_to_tensor=True)
    tokenizer, model = AutoTokenizer.from_pretrained(saved_folder), AutoModel.from_pretrained(saved_folder)
    for sentence, embedding in zip(sentences, embeddings, strict=True):
        with torch.no_grad():
            tokens = model(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(embedding, tokens.mean(dim=0), atol=1e-5, rtol=1e-5)
        alone = encoder.encode(sentence, convert_to_tensor=True)
        torch.testing.assert_close(embedding, alone, atol=1e-5, rtol=1e-5)

    assert encoder.max_seq_length == model.config.max_position_embeddings
    assert encoder.encode("moon " * 100).shape == (model.config.hidden_size,)
    encoder.save(str(tmp_path))
    again = SentenceTransformer(str(tmp_path), device="cpu")
    assert torch.equal(again.encode(sentences, convert_to_tensor=True), embeddings)


def map_of(places: str) -> dict[str, str]:
    """A device map of a masked-LM model: where embeddings, first layer, second layer and head lie."""
    modules = ("luna.embeddings", "luna.layers.0", "luna.layers.1", "lm_head")
    return dict(zip(modules, places.split(), strict=True))


@pytest.mark.parametrize(
    ("device_map", "max_memory", "share_away"),
    [
        ("cpu", None, 0.0),
        ("auto", None, 0.0),
        ("auto", {"cpu": "14KB"}, 1.0),
        (map_of("cpu disk cpu cpu"), None, 20 / 52),
        (map_of("cpu cpu disk cpu"), None, 20 / 52),
    ],
)
def test_device_map(tiny_model: Callable, tmp_path: Path, device_map: str | dict, max_memory: dict, share_away: float):
    """What lies on disk is on the meta device between two calls."""
    model, batch = tiny_model(LunaForMaskedLM, "sdpa"), batch_of()
    model.save_pretrained(tmp_path / "model")
    loaded = LunaForMaskedLM.from_pretrained(
        tmp_path / "model", device_map=device_map, max_memory=max_memory, offload_folder=tmp_path / "disk"
    )
    away = [parameter.is_meta for parameter in loaded.parameters()]
    assert sum(away) / len(away) == share_away
    assert torch.equal(first_output(loaded, batch), first_output(model, batch))


@pytest.mark.parametrize("offload", ["cpu", "disk", "dispatch"])
@pytest.mark.parametrize(
    ("model_class", "fields"), [(LunaModel, {}), (LunaForSequenceClassification, CLASSIFIER | {"conv_kernel_size": 3})]
)
def test_offload(tiny_model: Callable, tmp_path: Path, model_class: type, fields: dict, offload: str):
    """The hooks of accelerate find every tensor, also those of the documents in a row."""
    documents = {"input_ids": batch_of()["input_ids"][:1], "cu_seq_lens_q": torch.tensor([0, 4, 9]), "max_length_q": 5}
    model, batch = tiny_model(model_class, "sdpa", **fields), batch_of()
    expected = first_output(model, batch)
    with torch.no_grad():
        expected_documents = model(**documents).to_tuple()[0]
    if offload == "cpu":
        model = accelerate.cpu_offload(model, execution_device="cpu")
    elif offload == "disk":
        model = accelerate.disk_offload(model, tmp_path, execution_device="cpu")
    else:
        inside = "luna." if model_class is LunaForSequenceClassification else ""
        device_map = {f"{inside}embeddings": "cpu", f"{inside}layers.0": "disk", f"{inside}layers.1": "cpu"}
        device_map |= {"classifier": "cpu"} if inside else {}
        model = accelerate.dispatch_model(model, device_map, main_device="cpu", offload_dir=tmp_path)
    assert any(parameter.is_meta for parameter in model.parameters())
    # With a hook the convolution is that of `Conv1d`, which rounds in another way.
    torch.testing.assert_close(first_output(model, batch), expected, atol=1e-6, rtol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(model(**documents).to_tuple()[0], expected_documents, atol=1e-6, rtol=1e-6)
