"""Languages of mBART, mBART-50, NLLB and M2M100: in the tokens, in generation and in exports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import peftlab
from peftlab.errors import ConfigError
from peftlab.tasks.language.languages import Languages, set_languages
from peftlab.tasks.language.seq2seq import Seq2Seq
from peftlab.tasks.language.text_metrics import TextMetrics

datasets = pytest.importorskip("datasets")

PAIRS = [("the cat sat", "le chat est"), ("a dog ran", "un chien est")]
WORDS = {word for pair in PAIRS for text in pair for word in text.split()}
END = 2
TASK = Seq2Seq("", 16, TextMetrics(()))


def tokenizer_of(kind: str) -> Any:
    """Tokenizers of the real classes over a vocabulary of a few words."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokens = [*special, *(f"▁{word}" for word in sorted(WORDS)), "▁"]
    if kind in ("nllb", "nllb legacy"):
        letters = sorted({letter for word in WORDS for letter in word})
        vocabulary = {token: index for index, token in enumerate([*tokens, *letters])}
        return transformers.NllbTokenizer(
            vocab=vocabulary, merges=[], legacy_behaviour=kind == "nllb legacy",
            extra_special_tokens=["deu_Latn", "eng_Latn", "fra_Latn"],
        )  # fmt: skip
    made = transformers.MBartTokenizer if kind == "mbart" else transformers.MBart50Tokenizer
    tokenizer = made(vocab=[(token, 0.0 if token in special else -1.0) for token in tokens])
    tokenizer.lang_code_to_id = {
        code: tokenizer.convert_tokens_to_ids(code) for code in tokenizer.lang_code_to_id
    }
    return tokenizer


CODES = {
    "mbart": ("en_XX", "fr_XX"), "mbart50": ("en_XX", "fr_XX"), "nllb": ("eng_Latn", "fra_Latn"),
    "nllb legacy": ("eng_Latn", "fra_Latn"),
}  # fmt: skip


def model_of(kind: str, tokenizer: Any) -> Any:
    sizes = {
        "vocab_size": len(tokenizer), "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32, "max_position_embeddings": 64, "pad_token_id": 1,
        "bos_token_id": 0, "eos_token_id": END, "decoder_start_token_id": END,
    }  # fmt: skip
    made = transformers.MBartConfig if kind.startswith("mbart") else transformers.M2M100Config
    torch.manual_seed(0)
    return transformers.AutoModelForSeq2SeqLM.from_config(made(**sizes)).eval()


def rows() -> Any:
    sources, targets = zip(*PAIRS, strict=True)
    return datasets.Dataset.from_dict({"prompt": sources, "completion": targets})


@pytest.mark.parametrize("kind", CODES)
def test_training_sees_what_generation_writes(kind: str) -> None:
    tokenizer, (source, target) = tokenizer_of(kind), CODES[kind]
    model = model_of(kind, tokenizer)
    task = replace(TASK, src_lang=source, tgt_lang=target).attach(tokenizer, model)
    mark = tokenizer.convert_tokens_to_ids(target)
    encoded = task.encode(rows(), tokenizer, max_length=16).rows
    batch = task.collator(tokenizer)([encoded[0]])
    labels, inputs = batch["labels"][0].tolist(), batch["decoder_input_ids"][0].tolist()
    text = tokenizer(PAIRS[0][1], add_special_tokens=False)["input_ids"]
    if kind == "mbart":
        assert (labels, inputs) == ([*text, END], [mark, *text])
        assert task.forced is None
    else:
        assert (labels, inputs) == ([mark, *text, END], [END, mark, *text])
    # The source bears its own language, on the side where the tokenizer puts it.
    assert tokenizer.convert_tokens_to_ids(source) in batch["input_ids"][0]
    assert mark not in batch["input_ids"][0]

    with torch.no_grad():
        ids = model.generate(
            batch["input_ids"], max_new_tokens=4, **task.generation_defaults
        )[0].tolist()  # fmt: skip
    begun = [*inputs[:1], *labels][: 1 + (kind != "mbart")]
    assert ids[: len(begun)] == begun
    settings = {"max_new_tokens": 4, "num_beams": 1}
    (answer, _) = task.predict(
        model, tokenizer, [{"prompt": text} for text, _ in PAIRS],
        max_length=16, batch_size=2, generation=settings,
    )  # fmt: skip
    assert target not in answer["text"]
    again = Seq2Seq.from_state(json.loads(json.dumps(task.state())))
    assert again == task


def test_m2m100s_codes_are_not_its_tokens() -> None:
    class M2M(transformers.PreTrainedTokenizerFast):
        """As M2M100Tokenizer, which needs sentencepiece: `fr` is written as `__fr__`."""

        src_lang, tgt_lang = "en", None

        @property
        def lang_code_to_id(self) -> dict[str, int]:
            return {code: self.convert_tokens_to_ids(f"__{code}__") for code in ("en", "fr", "de")}

        def __call__(self, text: Any = None, text_target: Any = None, **others: Any) -> Any:
            code = self.src_lang if text_target is None else str(self.tgt_lang)
            return {"input_ids": [self.lang_code_to_id[code], END]}

    made = M2M(
        tokenizer_object=tokenizer_of("nllb").backend_tokenizer, eos_token="</s>",
        extra_special_tokens=["__en__", "__fr__", "__de__"],
    )  # fmt: skip
    french = made.convert_tokens_to_ids("__fr__")
    assert set_languages(made, "en", "fr") == Languages("en", "fr", forced=french)
    with pytest.raises(ConfigError, match=r"task\.tgt_lang is 'fra'.*did you mean fr"):
        set_languages(made, "en", "fra")


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (None, None, r"set task\.src_lang and task\.tgt_lang, each one of deu_Latn, eng_Latn, fra"),
        ("eng_Latn", None, r"set task\.tgt_lang, each one of"),
        (None, "fra_Latn", r"set task\.src_lang, each one of"),
        ("eng_Lat", "fra_Latn", r"task\.src_lang is 'eng_Lat'.*did you mean eng_Latn"),
        ("eng_Latn", "fr", r"task\.tgt_lang is 'fr'.*did you mean fra_Latn\?"),
        ("eng_Latn", "zzz", r"task\.tgt_lang is 'zzz'.* does not know; it has deu_Latn"),
    ],
)
def test_questions_and_unknown_codes(source: str | None, target: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        set_languages(tokenizer_of("nllb"), source, target)


def test_a_checkpoint_of_one_pair_needs_no_key(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("nllb")
    set_languages(tokenizer, "deu_Latn", "fra_Latn")
    tokenizer.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    chosen = set_languages(again, None, None)
    assert chosen is not None
    assert (chosen.source, chosen.target) == ("deu_Latn", "fra_Latn")


def test_tokenizers_without_languages() -> None:
    plain = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_of("nllb").backend_tokenizer, eos_token="</s>"
    )
    assert set_languages(plain, None, None) is None
    for languages in (("en", None), (None, "fr")):
        with pytest.raises(ConfigError, match=r"has no languages; leave it out.*task\.prefix="):
            set_languages(plain, *languages)


def test_a_run_predicts_and_exports_in_its_language(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("nllb")
    tokenizer.save_pretrained(tmp_path / "base")
    model_of("nllb", tokenizer).save_pretrained(tmp_path / "base")
    lines = [json.dumps({"source": source, "target": target}) for source, target in PAIRS * 2]
    (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    config: dict[str, Any] = {
        "model": {"name": str(tmp_path / "base")},
        "task": {
            "name": "seq2seq", "src_lang": "eng_Latn", "tgt_lang": "fra_Latn",
            "text_metrics": ["chrf"], "max_target_length": 16,
        },
        "data": {"source": str(tmp_path / "train.jsonl")},
        "method": {"name": "lora", "r": 2},
        "train": {"max_steps": 1, "save_every": "never"},
        "eval": {"every": "never", "generation": {"max_new_tokens": 4}},
        "output": {"dir": str(tmp_path / "run"), "plots": False},
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"set task\.src_lang"):
        peftlab.plan(config | {"task": {"name": "seq2seq"}})
    run = peftlab.train(config)
    french = tokenizer.convert_tokens_to_ids("fra_Latn")
    opened = peftlab.load_run(run.folder)
    assert opened.evaluate("validation").keys() > {"chrf"}
    answers = opened.predict([source for source, _ in PAIRS])
    opened.export(tmp_path / "merged")
    merged = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged")
    own = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert merged.generation_config.forced_bos_token_id == french
    assert (own.src_lang, own.tgt_lang) == ("eng_Latn", "fra_Latn")
    for (source, _), answer in zip(PAIRS, answers, strict=True):
        ids = merged.generate(**own(source, return_tensors="pt"), max_new_tokens=4)[0]
        assert ids[1] == french
        assert own.decode(ids, skip_special_tokens=True) == answer["text"]
