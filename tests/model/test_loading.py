"""Models of four families, loaded with the right head, empty or whole, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftlab.errors import CheckFailed, ConfigError
from peftlab.model.head_spec import HeadSpec
from peftlab.model.loading import load_model, load_tokenizer, read_checkpoint_config
from peftlab.model.structure import fresh_modules
from tests.checkpoints import FAMILIES, write_checkpoint

LABELS = {
    "id2label": {0: "bad", 1: "good", 2: "dull"},
    "label2id": {"bad": 0, "good": 1, "dull": 2},
}
CLASSES = HeadSpec("AutoModelForSequenceClassification", {"num_labels": 3, **LABELS})
CAUSAL = HeadSpec("AutoModelForCausalLM")
CASES = [(f, "classification", p) for f in FAMILIES for p in (None, "auto")]
CASES += [("gpt2", "causal", None), ("llama", "causal", None)]

Tiny = Callable[..., Path]


def spec(task: str) -> HeadSpec:
    return CLASSES if task == "classification" else CAUSAL


@pytest.mark.parametrize(
    ("family", "task", "pooling", "load_in_8bit"),
    [(*c, False) for c in CASES] + [(*c, True) for c in CASES if c[2] is None],
)
def test_empty_model_is_the_loaded_one_without_weights(
    tiny_checkpoint: Tiny, family: str, task: str, pooling: Any, load_in_8bit: bool
) -> None:
    folder = str(tiny_checkpoint(family, task))
    wanted = {"dtype": "float32", "pooling": pooling, "load_in_8bit": load_in_8bit}
    loaded = load_model(folder, spec(task), **wanted)
    empty = load_model(folder, spec(task), weights=False, **wanted)

    def shapes(model: torch.nn.Module) -> dict[str, Any]:
        return {n: tuple(p.shape) for n, p in model.named_parameters()}

    assert shapes(loaded.model) == shapes(empty.model)
    assert all(p.is_meta for p in empty.model.parameters())
    assert not any(p.is_meta for p in loaded.model.parameters())
    assert fresh_modules(loaded.model) == fresh_modules(empty.model)
    assert not loaded.model.training
    assert (loaded.hidden_size, loaded.max_length_limit) == (32, 64)
    assert (loaded.at_rest, loaded.compute) == (torch.float32, torch.float32)
    if not load_in_8bit:
        assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("family", "task", "pooling"), CASES)
def test_a_padded_batch_gives_the_logits_of_its_rows(
    tiny_checkpoint: Tiny, family: str, task: str, pooling: Any
) -> None:
    """Padding, the padding token's id above all, must not reach a row's answer."""
    loaded = load_model(
        str(tiny_checkpoint(family, task)), spec(task), dtype="float32", pooling=pooling
    )
    texts = ["a good film", "bad", "the story was very dull and I hated it"]
    tokenizer, model = loaded.tokenizer, loaded.model

    def logits(batch: list[str]) -> torch.Tensor:
        inputs = tokenizer(batch, padding=True, return_tensors="pt")
        with torch.no_grad():
            outputs = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits
        return outputs if task == "classification" else outputs[inputs.attention_mask.bool()]

    together = logits(texts)
    alone = torch.cat([logits([text]) for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert together.shape[-1] == (3 if task == "classification" else 200)


def test_the_fresh_head_depends_on_the_seed_alone(tiny_checkpoint: Tiny) -> None:
    folder = str(tiny_checkpoint("bert"))
    for pooling in (None, "mean"):
        heads = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            model = load_model(folder, CLASSES, dtype="float32", pooling=pooling).model
            heads.append(dict(model.named_parameters())[
                "classifier.weight" if pooling is None else "head.weight"
            ].clone())  # fmt: skip
        assert torch.equal(heads[0], heads[1])
        assert not torch.equal(heads[0], heads[2])
        assert 0.01 < heads[0].std() < 0.03


def test_label_names_reach_the_configuration(tiny_checkpoint: Tiny) -> None:
    for pooling in (None, "auto"):
        loaded = load_model(str(tiny_checkpoint("bert")), CLASSES, pooling=pooling)
        config: Any = loaded.model.config
        assert config.id2label == LABELS["id2label"]
        assert config.num_labels == 3


def test_a_head_for_other_labels_is_replaced_and_noted(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = write_checkpoint(tmp_path / "base", "bert")
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=5).save_pretrained(folder)
    loaded = load_model(str(folder), CLASSES)
    assert loaded.model.classifier.weight.shape == (3, 32)
    assert any("another number of labels" in note for note in loaded.notes)

    same = HeadSpec("AutoModelForSequenceClassification", {"num_labels": 5})
    kept = load_model(str(folder), same)
    written = load_file(folder / "model.safetensors")["classifier.weight"]
    assert torch.equal(kept.model.classifier.weight, written)
    assert fresh_modules(kept.model) == ()


def test_a_missing_pooler_is_new_like_the_head(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "base", "bert")
    change_weights(folder, lambda tensors: {k: v for k, v in tensors.items() if "pooler" not in k})
    for weights in (True, False):
        assert fresh_modules(load_model(str(folder), CLASSES, weights=weights).model) == (
            "bert.pooler.dense",
            "classifier",
        )


def change_weights(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def rewrite_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def half_the_encoder(folder: Path) -> None:
    change_weights(folder, lambda t: {k: v for k, v in t.items() if "layer.1." not in k})


def too_many_blocks(folder: Path) -> None:
    rewrite_config(folder, num_hidden_layers=1)


def other_width(folder: Path) -> None:
    change_weights(
        folder, lambda t: {k: v[:8].clone() if "query.weight" in k else v for k, v in t.items()}
    )


def pickled_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def truncated(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def remote_code(folder: Path) -> None:
    rewrite_config(folder, model_type="mine", auto_map={"AutoConfig": "mine.Config"})


def quantised(folder: Path) -> None:
    rewrite_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def adapter_only(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def shard_outside(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../other.safetensors"}})
    )


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (half_the_encoder, ("lacks 16 tensors", "bert.encoder.layer.1.")),
        (too_many_blocks, ("encoder.layer.1.", "number of layers")),
        (other_width, ("query.weight", "(8, 32)", "(32, 32)")),
        (pickled_only, ("pickled", "pytorch_model.bin", "safetensors")),
        (truncated, ("safetensors", "download it again")),
        (remote_code, ("model.trust_remote_code=true",)),
        (quantised, ("gptq", "qlora")),
        (no_tokenizer, ("tokenizer",)),
        (adapter_only, ("is an adapter", "method.init_from")),
        (shard_outside, ("outside",)),
    ],
)
def test_a_spoiled_checkpoint_is_refused(
    tmp_path: Path, spoil: Callable[[Path], None], words: tuple[str, ...]
) -> None:
    folder = write_checkpoint(tmp_path / "base", "bert")
    spoil(folder)
    with pytest.raises(CheckFailed) as refused:
        load_model(str(folder), CLASSES)
    for word in words:
        assert word in str(refused.value)


def test_names_that_lead_nowhere() -> None:
    with pytest.raises(CheckFailed, match=r"\./no/such/model, which does not exist"):
        read_checkpoint_config("./no/such/model")
    with pytest.raises(CheckFailed, match=r"nobody/nothing.*check the name and the network"):
        read_checkpoint_config("nobody/nothing")


def test_a_hub_model_is_pinned_to_its_commit(
    tiny_checkpoint: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the hub's cache, as a machine without network finds it."""
    import huggingface_hub.constants
    import transformers.utils.hub

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--somebody--tiny"
    shutil.copytree(tiny_checkpoint("bert"), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for module in (huggingface_hub.constants, transformers.utils.hub.constants):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path))
    loaded = load_model("somebody/tiny", CLASSES, pooling="auto")
    assert (loaded.name, loaded.revision) == ("somebody/tiny", commit)
    with pytest.raises(CheckFailed, match="at revision v2"):
        load_model("somebody/tiny", CLASSES, revision="v2")


def test_a_folder_has_no_revision(tiny_checkpoint: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"model\.revision"):
        load_model(str(tiny_checkpoint("bert")), CLASSES, revision="main")


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_only_decoders_are_causal(tiny_checkpoint: Tiny, family: str) -> None:
    with pytest.raises(CheckFailed, match="not a causal language model"):
        load_model(str(tiny_checkpoint(family)), CAUSAL)


def test_a_language_model_without_its_head_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "base", "llama", "causal")
    change_weights(folder, lambda t: {k: v for k, v in t.items() if "lm_head" not in k})
    with pytest.raises(CheckFailed, match=r"no language-model head \(lm_head\.weight"):
        load_model(str(folder), CAUSAL)


def test_padding_borrows_a_token_and_adds_none(tiny_checkpoint: Tiny) -> None:
    for family, token in (("gpt2", "<|endoftext|>"), ("llama", "<unk>"), ("bert", "[PAD]")):
        task = "classification" if family == "bert" else "causal"
        loaded = load_model(str(tiny_checkpoint(family, task)), spec(task))
        config: Any = loaded.model.config
        assert loaded.tokenizer.pad_token == token
        assert config.pad_token_id == loaded.tokenizer.pad_token_id
        if task == "causal":
            generation: Any = loaded.model.generation_config
            assert generation.pad_token_id == loaded.tokenizer.pad_token_id
            assert generation.eos_token_id == loaded.tokenizer.eos_token_id


def add_tokens(folder: Path, tokens: list[str], **settings: Any) -> None:
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_tokens(tokens)
    tokenizer.add_special_tokens(settings)
    tokenizer.save_pretrained(folder)


def test_a_tokenizer_beyond_the_embeddings(tmp_path: Path) -> None:
    padded = write_checkpoint(tmp_path / "padded", "llama", "causal", vocab_size=80)
    size = len(load_tokenizer(str(padded)))
    assert size < 80
    small = write_checkpoint(tmp_path / "small", "llama", "causal", vocab_size=size)
    add_tokens(small, [], pad_token="<pad>")
    loaded = load_model(str(small), CAUSAL)
    assert loaded.tokenizer.pad_token == "<unk>"
    assert any("instead of <pad>" in note for note in loaded.notes)
    add_tokens(small, ["brandnew"])
    with pytest.raises(CheckFailed, match="brandnew would have no embedding"):
        load_model(str(small), CAUSAL)


def test_a_copied_checkpoint_loads_the_same(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """Only the folder's files matter: not its location, a space in the path included."""
    folder = tiny_checkpoint("llama", "causal")
    copy = shutil.copytree(folder, tmp_path / "a copy")
    first, second = (load_model(str(p), CAUSAL, dtype="float32") for p in (folder, copy))
    assert second.name == str(copy.resolve())
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
