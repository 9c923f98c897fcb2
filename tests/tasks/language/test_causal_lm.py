from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from peftlab.data.loading import load_splits
from peftlab.errors import ConfigError, DataError
from peftlab.tasks.language.causal_encoding import Marks
from peftlab.tasks.language.causal_lm import CausalLM
from peftlab.tasks.language.causal_rows import Pairs, PlainText

datasets = pytest.importorskip("datasets")

OPTIONS = CausalLM.options(name="causal-lm")
READS: dict[str, Any] = {"formats": OPTIONS.formats, "roles": OPTIONS.roles}
PAIRED, PLAIN = CausalLM(Pairs()), CausalLM(PlainText())
BOS, EOS = 1, 2


def characters(*, bos: bool = True) -> Any:
    """A tokeniser of single characters, which puts <s> in front where `bos`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>", " ", "\n", *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>", bos_token="<s>",
        eos_token="</s>",
    )  # fmt: skip


def ids(text: str) -> list[int]:
    return [{" ": 3, "\n": 4}.get(mark, ord(mark) - ord("a") + 5) for mark in text]


def pairs(*rows: tuple[str, str]) -> datasets.Dataset:
    prompts, completions = zip(*rows, strict=True)
    return datasets.Dataset.from_dict({"prompt": prompts, "completion": completions})


def texts(*rows: str) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": rows})


def test_loss_is_on_the_completion_and_its_end() -> None:
    encoded = PAIRED.encode(pairs(("ab", "cd")), characters(), max_length=20)
    row = encoded.rows[0]
    assert row["input_ids"] == [BOS, *ids("abcd"), EOS]
    assert row["labels"] == [-100] * 3 + [*ids("cd"), EOS]
    assert encoded.statistics.trained_tokens == 3
    assert encoded.statistics.tokens == 6


@pytest.mark.parametrize("bos", [True, False])
def test_marks_are_not_doubled(bos: bool) -> None:
    tokenizer = characters(bos=bos)
    opening = [BOS] if bos else []
    assert Marks.of(tokenizer) == Marks(tuple(opening), (EOS,))
    row = PAIRED.encode(pairs(("<s>a", "b</s>")), tokenizer, max_length=20).rows[0]
    assert row["input_ids"] == [BOS, *ids("ab"), EOS]
    row = PLAIN.encode(texts("abc"), tokenizer, max_length=20).rows[0]
    assert row["input_ids"] == [*opening, *ids("abc"), EOS]
    assert row["labels"] == [-100, *row["input_ids"][1:]]


@pytest.mark.parametrize(
    ("prompt", "completion", "room", "kept"),
    [
        ("abcdefgh", "xyz", 8, ["fgh", "xyz", True]),  # the prompt's end stays
        ("abcdefgh", "stuvwxyz", 9, ["efgh", "stuv", False]),  # half of the room each
        ("ab", "stuvwxyz", 8, ["ab", "stuvw", False]),  # a short prompt stays whole
        ("abcdefgh", "x", 4, ["h", "x", True]),
        ("abcdefgh", "xyz", 2, ["", "x", False]),
    ],
)
def test_some_completion_always_remains(
    prompt: str, completion: str, room: int, kept: list[Any]
) -> None:
    encoded = PAIRED.encode(pairs((prompt, completion), ("a", "b")), characters(), max_length=room)
    row = encoded.rows[0]
    end = [EOS] if kept[2] else []
    assert row["input_ids"] == [BOS, *ids(kept[0]), *ids(kept[1]), *end]
    assert len(row["input_ids"]) == room
    assert [label for label in row["labels"] if label != -100] == [*ids(kept[1]), *end]
    assert encoded.statistics.truncated >= 1
    assert encoded.statistics.longest == len(prompt) + len(completion) + 2


def test_cut_text_does_not_teach_to_stop() -> None:
    encoded = PLAIN.encode(texts("abcdef", "ab"), characters(), max_length=4)
    assert encoded.rows["input_ids"] == [[BOS, *ids("abc")], [BOS, *ids("ab"), EOS]]
    assert encoded.statistics.truncated == 1


def test_packing_joins_rows_with_their_ends() -> None:
    encoded = PLAIN.encode(texts("abcde", "fg", "hij"), characters(), max_length=6, packing=True)
    stream = [BOS, *ids("abcde"), EOS, BOS, *ids("fg"), EOS, BOS, *ids("hij"), EOS]
    blocks = encoded.rows["input_ids"]
    assert [token for block in blocks for token in block] == stream
    assert [len(block) for block in blocks] == [6, 6, 4]
    assert encoded.statistics.trained_tokens == len(stream) - 3
    assert encoded.statistics.truncated == 0


def test_nothing_to_train_on() -> None:
    rows = texts("a", "b")
    tokenizer = characters(bos=False)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="every label is masked"):
        PLAIN.encode(rows, tokenizer, max_length=8)


def test_line_break_only_where_the_data_has_no_white_space(tmp_path: Path) -> None:
    for name, row in (("bare", "a,b"), ("spaced", 'a," b"'), ("ended", '"a:\n",b')):
        path = tmp_path / f"{name}.csv"
        path.write_text("prompt,completion\n" + f"{row}\n" * 4)
        task = CausalLM.from_splits(load_splits(str(path), **READS), OPTIONS)
        assert task == CausalLM(Pairs("\n" if name == "bare" else ""))
        assert CausalLM.from_state(json.loads(json.dumps(task.state()))) == task
    row = CausalLM(Pairs("\n")).encode(pairs(("a", "b")), characters(), max_length=9).rows[0]
    assert row["input_ids"] == [BOS, *ids("a\nb"), EOS]
    assert row["labels"][:3] == [-100] * 3


def model_of(**fields: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=31, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, pad_token_id=0,
        **{"bos_token_id": BOS, "eos_token_id": EOS, "initializer_range": 0.3, **fields},
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def test_scores_and_metrics() -> None:
    model, tokenizer = model_of().eval(), characters()
    encoded = PAIRED.encode(pairs(("ab", "cdefg"), ("abcd", "e")), tokenizer, max_length=20).rows
    batch = PAIRED.collator(tokenizer)(list(encoded))
    assert PAIRED.count_items(batch) == 8
    scores = PAIRED.score(model, batch)
    assert scores["tokens"].tolist() == [6, 2]
    assert {name: array.shape for name, array in scores.items()} == {
        "loss": (2,), "tokens": (2,), "correct": (2,),
    }  # fmt: skip
    own = float(model(**batch).loss.detach())
    metrics = PAIRED.metrics(scores)
    assert metrics["loss"] == pytest.approx(own, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(np.exp(own), rel=1e-5)
    assert float(PAIRED.loss_sum(model, batch).detach()) == pytest.approx(own * 8, rel=1e-5)
    assert set(metrics) == set(PAIRED.greater_is_better)
    low, high = PAIRED.interval(scores, "perplexity")
    assert low <= metrics["perplexity"] <= high
    with pytest.raises(DataError, match="every label is masked"):
        PAIRED.metrics({name: array[:0] for name, array in scores.items()})


def test_padding_changes_nothing() -> None:
    model, tokenizer = model_of().eval(), characters()
    encoded = PLAIN.encode(texts("abcdefgh", "ab", "xyz"), tokenizer, max_length=20).rows
    collate = PLAIN.collator(tokenizer)
    together = PLAIN.score(model, collate(list(encoded)))
    apart = [PLAIN.score(model, collate([row])) for row in encoded]
    np.testing.assert_allclose(together["loss"], [row["loss"][0] for row in apart], rtol=1e-5)


def test_generation_in_batches_is_generation_one_by_one() -> None:
    model, tokenizer = model_of().train(), characters()
    rows = [{"prompt": text} for text in ("abc", "abcdefghijk", "z")]
    options = {"max_length": 20, "generation": {"max_new_tokens": 12}}
    together = PAIRED.predict(model, tokenizer, rows, batch_size=3, **options)
    apart = PAIRED.predict(model, tokenizer, rows, batch_size=1, **options)
    assert together == apart
    assert model.training
    assert all(set(answer) == {"text", "finished"} for answer in together)
    assert any(answer["text"] for answer in together)


def test_generation_settings_and_stops(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = model_of(), characters()
    model.generation_config.update(do_sample=True, temperature=0.3, top_k=5, max_length=20)
    rows = [{"prompt": "abc"}]
    predict = lambda **generation: PAIRED.predict(  # noqa: E731
        model, tokenizer, rows, max_length=20, batch_size=1, generation=generation
    )[0]
    greedy = predict(max_new_tokens=30)
    assert greedy == predict(max_new_tokens=30)
    assert len(greedy["text"]) <= 30
    assert model.generation_config.do_sample, "the checkpoint's own settings come back"
    assert "generation flags" not in caplog.text + capfd.readouterr().err
    first = ids(greedy["text"])[2]
    model.generation_config.eos_token_id = [first, EOS]
    stopped = predict(max_new_tokens=30)
    assert stopped["finished"]
    assert stopped["text"] == greedy["text"][: greedy["text"].index(greedy["text"][2])]
    torch.manual_seed(0)
    assert predict(max_new_tokens=5, do_sample=True, temperature=2.0, top_p=0.9)["text"] is not None
    assert isinstance(predict(max_new_tokens=5, num_beams=3)["text"], str)
    with pytest.raises(ConfigError, match="leaves no room"):
        predict(max_new_tokens=64)
    with pytest.raises(DataError, match="'prompt'"):
        PAIRED.predict(model, tokenizer, [{"text": "a"}], max_length=9, batch_size=1)


def test_long_prompts_keep_their_end_and_their_start_mark() -> None:
    from peftlab.tasks.language.causal_encoding import prompt_ids

    assert prompt_ids(characters(), ["abcdefgh", "ab"], "\n", 5) == [
        [BOS, *ids("fgh\n")], [BOS, *ids("ab\n")],
    ]  # fmt: skip


def test_loss_mode() -> None:
    task = CausalLM(Pairs("\n")).with_settings(loss="chunked", generation=None)
    assert (task.loss, task.rows) == ("chunked", Pairs("\n"))
    assert task._computed.mode == "chunked"
    assert "loss" not in task.state()


@pytest.mark.parametrize(
    ("model_name", "data", "below"),
    [("model_stories260k", "tinystories_1k", 8.0), ("model_tinystories656k", "tinystories_1k", 40)],
)
def test_real_models_know_their_stories(
    model_name: str, data: str, below: float, shared_data: Path
) -> None:
    splits = load_splits(str(shared_data / data), **READS, max_eval_samples=12)
    task = CausalLM.from_splits(splits, OPTIONS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(shared_data / model_name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        shared_data / model_name, dtype=torch.float32
    ).eval()
    rows = task.encode(splits.get("test"), tokenizer, max_length=128).rows
    scores = task.score(model, task.collator(tokenizer)(list(rows)))
    assert 1 < task.metrics(scores)["perplexity"] < below
    answer = task.predict(
        model, tokenizer, [{"text": "Once upon a time, there was a little girl"}],
        max_length=64, batch_size=1, generation={"max_new_tokens": 20},
    )[0]  # fmt: skip
    assert answer["text"].split()[0] in ("named", "who", ".")


def test_real_prompts_and_completions(shared_data: Path) -> None:
    splits = load_splits(str(shared_data / "e2e_nlg"), **READS, max_train_samples=50)
    task = CausalLM.from_splits(splits, OPTIONS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(shared_data / "model_stories260k")
    encoded = task.encode(splits.train, tokenizer, max_length=400)
    assert encoded.statistics.truncated == 0
    for row, source in zip(encoded.rows, splits.train, strict=True):
        trained = [label for label in row["labels"] if label != -100]
        assert trained[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(trained[:-1]).strip() == source["completion"].strip()
        assert row["input_ids"].count(tokenizer.bos_token_id) == 1
