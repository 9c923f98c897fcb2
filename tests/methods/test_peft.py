"""Every type of PEFT's adapters against a plain PEFT loop, on two tiny models."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
)

from peftlab.config.methods.peft_keys import REFUSED, known_types
from peftlab.errors import CheckFailed
from peftlab.export.changes import _NO_MERGE
from peftlab.export.merge import merge
from peftlab.methods.apply import apply_method, load_trained, method_of, save_trained
from tests.checkpoints import tiny_config, write_tokenizer
from tests.methods.common import CAUSAL, CLASSIFICATION, method

FAMILIES = {"bert": CLASSIFICATION, "llama": CAUSAL}
AUTO = {"bert": AutoModelForSequenceClassification, "llama": AutoModelForCausalLM}
TOKENS = [3, 4, 5, 6, 7, 8]

LINEAR = {
    "bert": ["query", "key", "value", "attention.output.dense", "intermediate.dense",
             "output.dense"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}  # fmt: skip
NORMS = {"bert": ["LayerNorm"], "llama": ["input_layernorm", "post_attention_layernorm", "norm"]}
FED = {
    "bert": [f"bert.encoder.layer.{i}.output.dense" for i in range(2)],
    "llama": ["down_proj"],
}
RESCALED = {
    "bert": ["key", "value", *FED["bert"]],
    "llama": ["k_proj", "v_proj", "down_proj"],
}
# What a plain script must say beside `target_modules` for models so small: (in both families)
# in- and out-features are 32 and 64, of Llama's keys and values 16.
VIRTUAL: dict[str, Any] = {"num_virtual_tokens": 20}
PLAIN: dict[str, Any] = {
    "ADALORA": {"total_step": 20},
    "ADAPTION_PROMPT": {"adapter_len": 10, "adapter_layers": 2},
    "C3A": {"block_size": {"bert": 32, "llama": 16}},
    "FOURIERFT": {"n_frequency": {"bert": 1000, "llama": 512}},
    "FROD": {"progressbar": False},
    "MISS": {"r": {"bert": 32, "llama": 16}},
    "PSOFT": {"r": {"bert": 32, "llama": 16}},
    "ROAD": {"group_size": {"bert": 32, "llama": 16}},
    "SHIRA": {"r": {"bert": 16, "llama": 10}},
    "TRAINABLE_TOKENS": {"token_indices": TOKENS, "target_modules": ["embed_tokens"]},
    "VBLORA": {"vector_length": {"bert": 32, "llama": 16}},
    "WAVEFT": {"n_frequency": {"bert": 1024, "llama": 512}},
    "IA3": {"target_modules": RESCALED, "feedforward_modules": FED},
    "LN_TUNING": {"target_modules": NORMS},
    **dict.fromkeys(("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CARTRIDGE"), VIRTUAL),
}
NO_TARGETS = {
    "PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "CARTRIDGE",
    "ADAPTION_PROMPT",
    "SHADOW",
}

# A plain script cannot build these either, or not with a head that trains.
NOT_HERE = {
    ("ADAPTION_PROMPT", "bert"): "Llama's, Mistral's and GPT-2's attention only",
    ("SHADOW", "bert"): "decoders only",
    ("TRAINABLE_TOKENS", "bert"): "PEFT trains no head beside it",
}
# Where the loss of a plain script, which is ours, does not halve in 20 steps at any rate.
SLOW = {
    ("P_TUNING", "llama"): 0.65, ("TRAINABLE_TOKENS", "llama"): 0.65, ("TINYLORA", "llama"): 0.65,
}  # fmt: skip
# The state after the last block is read by nothing: what computes it has no gradient.
STILL = {"SHADOW": ("layers.1.shadow_update_transform", "layers.1.shadow_update_gate")}

CASES = [
    (kind, family) for kind in known_types() for family in FAMILIES
    if (kind, family) not in NOT_HERE
]  # fmt: skip


@cache
def base(family: str) -> nn.Module:
    torch.manual_seed(0)
    if family == "llama":
        config = LlamaConfig(
            vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=64, max_position_embeddings=64,
            initializer_range=0.2, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=64, max_position_embeddings=64, initializer_range=0.2,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=2,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():  # as in a trained encoder; what GLoRA multiplies must not be zero
        for name, parameter in model.named_parameters():
            if name.endswith(("dense.bias", "query.bias", "key.bias", "value.bias")):
                parameter.normal_(0, 0.1)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The two bases as checkpoints."""
    made = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp(family)
        base(family).save_pretrained(folder)
        write_tokenizer(folder, family)
        file = folder / "tokenizer.json"
        tokenizer = json.loads(file.read_text())
        words = tokenizer["model"]["vocab"]
        tokenizer["model"]["vocab"] = {word: i for word, i in words.items() if i < 64}
        file.write_text(json.dumps(tokenizer))
        made[family] = folder
    return made


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for adapters and their logits, which the last test loads in a fresh process."""
    return tmp_path_factory.mktemp("runs")


def batch(family: str) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(7)
    if family == "bert":
        labels = torch.arange(16) % 2
        ids = torch.randint(3, 6, (16, 8), generator=draw) + 3 * (1 - labels[:, None])
    else:
        ids = torch.randint(3, 7, (8, 12), generator=draw)
        # The first token is predicted by no token of its row.
        labels = ids.clone()
        labels[:, 0] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def inputs(family: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch(family).items() if name != "labels"}


def task_loss(logits: torch.Tensor, family: str) -> torch.Tensor:
    labels = batch(family)["labels"]
    if family == "bert":
        return F.cross_entropy(logits, labels)
    logits = logits[:, -labels.shape[1] :]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def frozen_head(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        if "classifier" in name:
            parameter.requires_grad_(False)
    return model


def optimizer(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)


def plain_losses(kind: str, family: str, rate: float, steps: int = 5) -> list[float]:
    """The task's losses in a loop as PEFT's documentation writes it."""
    settings = {
        key: value[family] if isinstance(value, dict) else value
        for key, value in PLAIN.get(kind, {}).items()
    }
    if kind not in NO_TARGETS:
        settings = {"target_modules": sorted(LINEAR[family])} | settings
    task = "SEQ_CLS" if family == "bert" else "CAUSAL_LM"
    model = copy.deepcopy(base(family))
    torch.manual_seed(1)
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)](task_type=task, **settings)
    model = frozen_head(get_peft_model(model, config)).train()
    stepper, losses = optimizer(model, rate), []
    torch.manual_seed(3)
    for step in range(steps):
        out = model(**batch(family))
        losses.append(float(task_loss(out.logits, family)))
        out.loss.backward()
        stepper.step()
        if kind == "ADALORA":
            model.base_model.update_and_allocate(step)
        stepper.zero_grad()
    return losses


def options(kind: str) -> Any:
    given = {"token_indices": TOKENS} if kind == "TRAINABLE_TOKENS" else {}
    return method("peft", peft_type=kind, **given)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "family"), CASES)
def test_a_type_trains_as_by_plain_peft(
    kind: str, family: str, runs: Path, folders: dict[str, Path]
) -> None:
    chosen, task = options(kind), FAMILIES[family]
    model = copy.deepcopy(base(family))
    model.config._name_or_path = str(folders[family])
    torch.manual_seed(1)
    applied = apply_method(model, chosen, task=task)
    hooks = method_of(chosen).step_hooks(applied)
    if hooks is not None:
        hooks.begin(20)
    rate = method_of(chosen).default_learning_rate(32)
    trained = frozen_head(applied.model).train()
    before = {n: p.detach().clone() for n, p in trained.named_parameters() if p.requires_grad}
    still = set(before)
    stepper, losses = optimizer(trained, rate), []
    torch.manual_seed(3)
    for step in range(20):
        loss = task_loss(trained(**inputs(family)).logits, family)
        losses.append(float(loss))
        term = None if hooks is None else hooks.loss_term(batch(family))
        (loss if term is None else loss + term).backward()
        stepper.step()
        if hooks is not None:
            hooks.after_step(step)
        stepper.zero_grad()
        if step in (3, 19):  # AdaLoRA takes the whole rank of a layer back
            now = dict(trained.named_parameters())
            still = {n for n in still if torch.equal(now[n], before[n])}
    assert [n for n in still if not any(part in n for part in STILL.get(kind, ()))] == []
    with torch.no_grad():
        logits = trained.eval()(**inputs(family)).logits
        last = float(task_loss(logits, family))
    assert last <= SLOW.get((kind, family), 0.5) * losses[0]
    assert losses[:5] == pytest.approx(plain_losses(kind, family, rate), abs=1e-5)

    run = runs / f"{kind}-{family}"
    adapter = save_trained(applied, run)
    torch.save(logits, run / "logits.pt")
    torch.manual_seed(77)
    loaded = load_trained(copy.deepcopy(base(family)), chosen, run, task=task)
    with torch.no_grad():
        again = loaded.model.eval()(**inputs(family)).logits
    # AdaLoRA's pruned rows are left out of the sums.
    assert torch.allclose(again, logits, rtol=0, atol=1e-5 if kind == "ADALORA" else 1e-6)
    if family == "llama" and (kind, "bert") not in NOT_HERE and kind not in _NO_MERGE:
        return  # one export a type
    out = run / "merged"
    if kind in _NO_MERGE:
        with pytest.raises(CheckFailed, match=f"{kind}, which cannot be merged"):
            merge(adapter, out, base=str(folders[family]))
        return
    # The logits are compared below.
    merge(adapter, out, base=str(folders[family]), verify=False)
    plain = AUTO[family].from_pretrained(out).eval()
    with torch.no_grad():
        assert torch.allclose(plain(**inputs(family)).logits, logits, rtol=0, atol=2e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_bias_that_the_base_has_not_is_not_exported(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    model = copy.deepcopy(base("llama"))
    model.config._name_or_path = str(folders["llama"])
    adapter = save_trained(apply_method(model, options("BEFT"), task=CAUSAL), tmp_path)
    with pytest.raises(CheckFailed, match="BEFT, which PEFT cannot merge into this base"):
        merge(adapter, tmp_path / "out", base=str(folders["llama"]))


RELOAD = """
import copy, json, sys, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
runs, folders, inputs = Path(sys.argv[1]), json.loads(sys.argv[2]), torch.load(sys.argv[3])
auto = {"bert": AutoModelForSequenceClassification, "llama": AutoModelForCausalLM}
bases = {f: auto[f].from_pretrained(folder) for f, folder in folders.items()}
off = {}
for i, run in enumerate(sorted(runs.iterdir())):
    if not (run / "logits.pt").exists():
        continue
    family = run.name.rpartition("-")[2]
    torch.manual_seed(9000 + i)
    base = copy.deepcopy(bases[family])
    model = PeftModel.from_pretrained(base, run / "adapter").eval()
    wanted = torch.load(run / "logits.pt")
    with torch.no_grad():
        logits = model(**inputs[family]).logits
    if logits.dim() == 3:
        logits = logits[:, -wanted.shape[1]:]
    off[run.name] = float((logits - wanted).abs().max())
print("@" + json.dumps(off))
"""


def test_plain_peft_loads_the_adapters_in_a_fresh_process(
    runs: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    torch.save({family: inputs(family) for family in FAMILIES}, tmp_path / "inputs.pt")
    named = json.dumps({family: str(folder) for family, folder in folders.items()})
    arguments = [str(runs), named, str(tmp_path / "inputs.pt")]
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, *arguments], capture_output=True, text=True,
        env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = json.loads(done.stdout.partition("@")[2])
    saved = {run.parent.name for run in runs.glob("*/logits.pt")}
    assert loaded.keys() == saved
    assert {name: off for name, off in loaded.items() if off > 1e-5} == {}


def test_every_type_of_the_installed_peft_is_here_or_refused() -> None:
    types = {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert types == set(known_types()) | REFUSED.keys()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["ADALORA", "ADAMSS", "SHIRA", "SHADOW", "PREFIX_TUNING", "VERA"])
def test_a_plan_needs_no_weights(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        real = apply_method(copy.deepcopy(base("llama")), options(kind), task=CAUSAL)
        empty = apply_method(copy.deepcopy(base("llama")).to("meta"), options(kind), task=CAUSAL)
    assert all(p.is_meta for p in empty.model.parameters())
    assert (empty.trainable, empty.coverage) == (real.trainable, real.coverage)
    assert any(row.how in ("adapter", "partly") for row in real.coverage.rows)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("llama", {"peft_type": "VERA", "target_modules": "q_proj"}, r"write \[q_proj\]"),
        ("llama", {"peft_type": "VERA", "target_modules": ["q_prj"]}, "did you mean q_proj"),
        ("llama", {"peft_type": "C3A", "block_size": 7}, "PEFT cannot put C3A on Llama"),
        ("llama", {"peft_type": "LN_TUNING", "target_modules": ["q_proj"]}, "none of the norms"),
        ("llama", {"peft_type": "ADALORA", "init_r": 4}, "init_r must be the larger"),
        ("llama", {"peft_type": "TRAINABLE_TOKENS"}, "token_indices is missing"),
        ("bert", {"peft_type": "TRAINABLE_TOKENS", "token_indices": [3]}, "trains no whole module"),
        ("bert", {"peft_type": "SHADOW"}, "PEFT cannot put SHADOW on Bert"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(family: str, settings: dict[str, Any], message: str) -> None:
    from peftlab.errors import ConfigError

    with pytest.raises((CheckFailed, ConfigError), match=message):
        apply_method(copy.deepcopy(base(family)), method("peft", **settings), task=FAMILIES[family])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_answers_have_the_places_of_the_rows_own_tokens(kind: str) -> None:
    model = BertForQuestionAnswering(base("bert").config)
    applied = apply_method(model, options(kind), task="question-answering")
    with torch.no_grad():
        output = applied.model.eval()(**inputs("bert"))
    assert output.start_logits.shape == output.end_logits.shape == (16, 8)
    assert any("passes no token types on" in note for note in applied.notes)


@pytest.mark.parametrize(
    ("kind", "model", "task", "message"),
    [
        ("PREFIX_TUNING", "SequenceClassification", CLASSIFICATION, "a key-value cache, which T5"),
        ("CARTRIDGE", "TokenClassification", "token-classification", "a key-value cache, which T5"),
        ("PROMPT_TUNING", "QuestionAnswering", "question-answering", "inputs from token ids"),
        ("P_TUNING", "SequenceClassification", CLASSIFICATION, "last token by its id"),
    ],
)
def test_virtual_tokens_that_t5_does_not_read(
    kind: str, model: str, task: str, message: str
) -> None:
    t5 = getattr(transformers, f"T5For{model}")(tiny_config("t5"))
    with pytest.raises(CheckFailed, match=message):
        apply_method(t5, options(kind), task=task)


def test_shadow_has_no_loss_of_its_own_for_answers() -> None:
    model = LlamaForQuestionAnswering(base("llama").config)
    with pytest.raises(CheckFailed, match="LlamaForQuestionAnswering predicts neither"):
        apply_method(model, options("SHADOW"), task="question-answering")


def test_targets_by_regex_and_by_ends() -> None:
    for given in (r".*\.[qv]_proj", ["q_proj", "v_proj"], "q_proj, v_proj"):
        chosen = method("peft", peft_type="VERA", target_modules=given)
        applied = apply_method(copy.deepcopy(base("llama")), chosen, task=CAUSAL)
        settings: Any = applied.model.peft_config["default"]  # type: ignore[index,union-attr]
        assert settings.target_modules == ["self_attn.q_proj", "self_attn.v_proj"]
