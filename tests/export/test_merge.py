"""Merged models: to the bit as PEFT merges them, or, where PEFT does not, in what they compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from peftlab.errors import CheckFailed, ConfigError, VerificationError
from peftlab.export import merge as merging
from peftlab.export.merge import merge

from .adapters import EMBEDDING, FAMILIES, LINEAR, Made

pytestmark = [
    pytest.mark.poison_empty(False),  # what is read from a file is filled at once
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora and patterns": {
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2, "query": 3, "c_attn": 5},
        "alpha_pattern": {"0": 5},
    },
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "tied"), [(f, t) for f in FAMILIES for t in (True, False) if t or f != "bert"]
)
def test_equal_to_pefts_merge(
    family: str, tied: bool, dtype: torch.dtype, way: str, tmp_path: Path
) -> None:
    made = Made(tmp_path, family, tied=tied, dtype=dtype, **WAYS[way])
    report = merge(made.adapter, made.out, base=str(made.base))
    result, expected = made.load(made.out).state_dict(), made.merged_by_peft()
    assert result.keys() == expected.keys()
    assert [name for name, t in expected.items() if not torch.equal(result[name], t)] == []
    assert not report.untied
    assert report.verified["logits"]["error"] <= report.verified["logits"]["tolerance"]


CHANGED: dict[str, Any] = {
    "lm_head": lambda f: {"target_modules": [LINEAR[f], "lm_head"], "fan_in_fan_out": False},
    "embedding": lambda f: {"target_modules": [LINEAR[f], EMBEDDING[f]]},
    "saved embedding": lambda f: {"modules_to_save": [EMBEDDING[f]], "target_modules": [LINEAR[f]]},
    "saved head": lambda f: {"modules_to_save": ["lm_head"], "target_modules": [LINEAR[f]]},
    "rows": lambda f: {
        "trainable_token_indices": {EMBEDDING[f]: [3, 5]},
        "target_modules": [LINEAR[f]],
    },
    "resized": lambda f: {
        "prepare": lambda model: model.resize_token_embeddings(53),
        "target_modules": [LINEAR[f]],
    },
}


@pytest.mark.parametrize("what", CHANGED)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_tables_compute_as_the_adapter(family: str, tied: bool, what: str, tmp_path: Path) -> None:
    """Where PEFT's merge of tied tables is wrong as well."""
    made = Made(tmp_path, family, tied=tied, **CHANGED[what](family))
    report = merge(made.adapter, made.out, base=str(made.base))
    merged = made.load(made.out)
    torch.testing.assert_close(made.logits(merged), made.logits(made.model), rtol=1e-4, atol=1e-5)
    stays = what in {"rows", "resized"}
    assert report.untied == (tied and not stays)
    assert merged.config.tie_word_embeddings == (tied and stays)


def test_a_bare_base_gets_its_head(tmp_path: Path) -> None:
    made = Made(tmp_path, "bert", bare=True, target_modules=["query"])
    report = merge(made.adapter, made.out, base=str(made.base))
    merged = made.load(made.out)
    assert merged.config.num_labels == 3
    assert set(report.added) == {"classifier.weight", "classifier.bias"}
    torch.testing.assert_close(made.logits(merged), made.logits(made.model))


def test_lora_bias_goes_into_the_base(tmp_path: Path) -> None:
    made = Made(tmp_path, "bert", target_modules=["query"], lora_bias=True)
    merge(made.adapter, made.out, base=str(made.base))
    torch.testing.assert_close(made.logits(made.load(made.out)), made.logits(made.model))


def test_shards_dtypes_and_what_is_copied(tmp_path: Path) -> None:
    made = Made(tmp_path, "llama", dtype=torch.bfloat16, shards="20KB", target_modules=["q_proj"])
    base = {k: t for f in made.base.glob("*.safetensors") for k, t in load_file(f).items()}
    report = merge(made.adapter, made.out, base=str(made.base), max_shard_size=16_000)
    index = json.loads((made.out / "model.safetensors.index.json").read_text())
    assert len(report.files) > 2
    assert set(index["weight_map"].values()) == set(report.files)
    assert index["metadata"]["total_size"] == report.total_bytes
    written = {k: t for name in report.files for k, t in load_file(made.out / name).items()}
    changed = {k for k, t in base.items() if not torch.equal(t, written[k])}
    assert changed == {k for k in base if "q_proj" in k}
    assert report.hashes.keys() == base.keys() - changed
    for name in report.files[:-1]:
        assert (made.out / name).stat().st_size < 2 * 16_000

    wide = tmp_path / "wide"
    merge(made.adapter, wide, base=str(made.base), dtype=torch.float32)
    assert {t.dtype for t in load_file(wide / "model.safetensors").values()} == {torch.float32}
    config = json.loads((wide / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert config["architectures"] == ["LlamaForCausalLM"]


def test_the_report_and_card_name_no_folder(tmp_path: Path) -> None:
    made = Made(tmp_path, "llama")
    merge(made.adapter, made.out, base=str(made.base))
    for file in ("merge_report.json", "README.md", "config.json"):
        assert str(tmp_path) not in (made.out / file).read_text()


def test_wrong_logits_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path, "llama")
    right = merging.Tensors._merge

    def wrong(self: Any, module: str) -> None:
        right(self, module)
        for tensor in self._made.values():
            tensor.add_(0.05)

    monkeypatch.setattr(merging.Tensors, "_merge", wrong)
    with pytest.raises(VerificationError, match="logits differ from the adapter's"):
        merge(made.adapter, made.out, base=str(made.base))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base"]


def test_bytes_that_read_back_otherwise_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(tmp_path, "llama", target_modules=["q_proj"])
    monkeypatch.setattr("peftlab.export.verify.hashed", lambda stored: "another")
    with pytest.raises(VerificationError, match="was copied and reads back differently"):
        merge(made.adapter, made.out, base=str(made.base))
    assert not made.out.exists()


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    made = Made(tmp_path, "llama")
    file = made.adapter / "adapter_model.safetensors"
    state = load_file(file)
    key = next(k for k in state if "o_proj.lora_A" in k)
    state[key][0, 0] = float("nan")
    save_file(state, file)
    with pytest.raises(CheckFailed, match=r"o_proj\.weight is not finite"):
        merge(made.adapter, made.out, base=str(made.base))
    assert not made.out.exists()


def test_other_bases_and_adapters_are_refused_by_name(tmp_path: Path) -> None:
    made = Made(tmp_path / "one", "llama")
    other = Made(tmp_path / "two", "gpt2")
    absent = r"adapts model\.layers\.0.*which is not in GPT2LMHeadModel"
    with pytest.raises(CheckFailed, match=absent):
        merge(made.adapter, made.out, base=str(other.base))

    file = made.adapter / "adapter_model.safetensors"
    state = load_file(file)
    gone = next(k for k in state if "lora_B" in k)
    save_file({k: t for k, t in state.items() if k != gone}, file)
    with pytest.raises(CheckFailed, match="PEFT's layer and the file differ in"):
        merge(made.adapter, made.out, base=str(made.base))
    save_file(state | {"something": torch.zeros(1)}, file)
    with pytest.raises(CheckFailed, match="something, which is not a name of PEFT"):
        merge(made.adapter, made.out, base=str(made.base))
    assert not made.out.exists()


def test_an_adapter_whose_patterns_peft_sorted_is_refused(tmp_path: Path) -> None:
    """Its ranks are no longer those of its tensors."""
    patterns = {r"layers\.1\..*q_proj": 2, r"[a-z_]*proj": 3}
    made = Made(tmp_path, "llama", target_modules=["q_proj"], rank_pattern=patterns)
    with pytest.raises(CheckFailed, match=r"adapter_config.json says \(3, .*PEFT sorts them"):
        merge(made.adapter, made.out, base=str(made.base))
    assert not made.out.exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("layer_replication", [[0, 2], [1, 2]], "layers are repeated"),
        ("alora_invocation_tokens", [1, 2], "aLoRA"),
        ("target_parameters", ["weight"], "adapts parameters"),
        ("peft_type", "LILY", "is LILY, which cannot be merged|cannot be used"),
    ],
)
def test_what_cannot_be_merged_is_refused(
    key: str, value: Any, message: str, tmp_path: Path
) -> None:
    made = Made(tmp_path, "llama", target_modules=["q_proj"])
    file = made.adapter / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {key: value}))
    with pytest.raises(CheckFailed, match=message):
        merge(made.adapter, made.out, base=str(made.base))


def test_a_folder_that_is_taken_is_refused(tmp_path: Path) -> None:
    made = Made(tmp_path, "llama", target_modules=["q_proj"])
    made.out.mkdir()
    (made.out / "mine").write_text("x")
    with pytest.raises(ConfigError, match="is not empty"):
        merge(made.adapter, made.out, base=str(made.base))
    assert (made.out / "mine").read_text() == "x"


LEAVES = {
    "bert": ("query", "value", "attention.output.dense", "intermediate.dense"),
    "gpt2": ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"),
    "t5": ("q", "v", "wi", "wo"),
    "llama": ("q_proj", "v_proj", "o_proj", "down_proj", "up_proj"),
}
"""What an adapter may be on, by the ends of its names."""

ONE_BLOCK = {"bert": "layer.1.", "gpt2": "h.1.", "t5": "block.1.", "llama": "layers.1."}
HEADS = {"bert": "classifier", "gpt2": "lm_head", "t5": "lm_head", "llama": "lm_head"}


@st.composite
def adapters(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A family, and the settings of a base and of an adapter that PEFT can merge into it."""
    family = draw(st.sampled_from(FAMILIES))
    leaves = st.sampled_from(LEAVES[family])
    ends = st.builds(lambda leaf: leaf.rpartition(".")[2], leaves)
    # Of all blocks, of one, or a pattern that no name matches.
    keys = st.one_of(
        ends,
        st.builds(lambda end: rf"{ONE_BLOCK[family]}.*{end}".replace(".", r"\.", 1), ends),
        st.text("abcxyz_0", min_size=4),
    )
    saves = family != "t5" and draw(st.booleans())  # whose tiny base has no head of its own
    # PEFT's merge of a saved head that is tied, and of a bias onto none, is wrong or refused.
    tied = family == "bert" or (draw(st.booleans()) and not saves)
    biased = family in ("bert", "gpt2") and draw(st.booleans())
    return family, {
        "tied": tied,
        "dtype": draw(st.sampled_from([torch.float32, torch.bfloat16])),
        "target_modules": sorted(draw(st.sets(leaves, min_size=1))),
        "r": draw(st.integers(1, 9)),
        "lora_alpha": draw(st.integers(1, 40)),
        # PEFT sorts patterns when it saves: in another order they would mean something else.
        "rank_pattern": dict(
            sorted(draw(st.dictionaries(keys, st.integers(1, 7), max_size=3)).items())
        ),
        "alpha_pattern": dict(
            sorted(draw(st.dictionaries(keys, st.integers(1, 40), max_size=3)).items())
        ),
        "use_rslora": draw(st.booleans()),
        "lora_bias": biased,
        "modules_to_save": [HEADS[family]] if saves else None,
    }


# An example is a base and an adapter, written, merged and merged again by PEFT: a second or two.
@settings(max_examples=settings.default.max_examples // 3, suppress_health_check=list(HealthCheck))
@given(drawn=adapters())
def test_random_adapters_are_merged_as_peft_does(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[str, dict[str, Any]]
) -> None:
    """To the bit, the rest copied byte for byte, and every tensor of the adapter used."""
    family, how = drawn
    made = Made(tmp_path_factory.mktemp("random"), family, **how)
    report = merge(made.adapter, made.out, base=str(made.base), verify=False)
    result, expected = made.load(made.out).state_dict(), made.merged_by_peft()
    assert result.keys() == expected.keys()
    assert [name for name, t in expected.items() if not torch.equal(result[name], t)] == []
    base = load_file(made.base / "model.safetensors")
    written = load_file(made.out / "model.safetensors")
    assert written.keys() == base.keys()
    changed = {name for name, t in base.items() if not torch.equal(written[name], t)}
    assert report.hashes.keys() == base.keys() - {
        name for name in base if touched(name, family, how)
    }
    assert changed <= base.keys() - report.hashes.keys()


def touched(name: str, family: str, how: dict[str, Any]) -> bool:
    """Whether an adapter changes a tensor of the base."""
    if how["modules_to_save"] or family == "bert":  # PEFT trains a classifier in any case
        head = HEADS[family]
        if name.startswith(f"{head}."):
            return True
    module, _, part = name.rpartition(".")
    ends = tuple(f".{leaf}" for leaf in how["target_modules"])
    return module.endswith(ends) and (part == "weight" or how["lora_bias"])
