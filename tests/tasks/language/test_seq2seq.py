"""Encoder-decoders: encoded rows, the loss, generated texts."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from peftlab.data.loading import load_splits
from peftlab.errors import CheckFailed, ConfigError, DataError
from peftlab.tasks.language.loss.chunked_loss import CausalLoss, plain_loss_sum
from peftlab.tasks.language.seq2seq import Seq2Seq
from peftlab.tasks.language.text_metrics import TextMetrics
from tests.tasks.language.seq2seq_models import bart_config, t5_config, write_tokenizer

datasets = pytest.importorskip("datasets")

PAIRS = [
    ("She has a strong personality.", "Hon har en stark personlighet."),
    ("Who wants cake?", "Vem vill ha en bit tårta?"),
    ("Yes.", "Ja."),
    ("Why did you buy this bicycle? I do not know, and I will not say.", "Varför?"),
]
PAD, EOS, UNKNOWN = 0, 1, 2
OPTIONS = Seq2Seq.options(name="seq2seq")
TASK = Seq2Seq("", 64, TextMetrics(("bleu",)), start=PAD)
GREEDY: dict[str, Any] = {
    "max_new_tokens": 12, "do_sample": False, "num_beams": 1, "temperature": 1.0, "top_p": 1.0,
    "length_penalty": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    texts = [text for pair in PAIRS for text in pair]
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"), texts, size=320)


def rows_of(pairs: list[tuple[str, str]], **columns: Any) -> Any:
    prompts, completions = zip(*pairs, strict=True)
    return datasets.Dataset.from_dict({"prompt": prompts, "completion": completions, **columns})


def model_of(kind: str, vocabulary: int, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = {"t5": t5_config, "bart": bart_config}[kind](vocabulary, **changes)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def batch_of(tokenizer: Any, task: Seq2Seq = TASK, pairs: Any = PAIRS) -> dict[str, Any]:
    encoded = task.encode(rows_of(pairs), tokenizer, max_length=64)
    return task.collator(tokenizer)(list(encoded.rows))


class TestEncoding:
    def test_both_sides_end_with_the_mark(self, tokenizer: Any) -> None:
        encoded = TASK.encode(rows_of(PAIRS), tokenizer, max_length=64)
        for row, (source, target) in zip(encoded.rows, PAIRS, strict=True):
            assert row["input_ids"][-1] == row["labels"][-1] == EOS
            assert tokenizer.decode(row["input_ids"][:-1]) == source
            assert tokenizer.decode(row["labels"][:-1]) == target
            assert row["references"] == [target]
        lengths = [len(row["labels"]) for row in encoded.rows]
        assert encoded.targets is not None
        assert encoded.targets.tokens == encoded.targets.trained_tokens == sum(lengths)
        assert encoded.statistics.trained_tokens == sum(lengths)
        assert encoded.targets.longest == max(lengths)
        assert encoded.statistics.tokens == sum(len(row["input_ids"]) for row in encoded.rows)

    def test_the_prefix_is_put_before_every_source(self, tokenizer: Any) -> None:
        task = replace(TASK, prefix="translate: ")
        (row,) = task.encode(rows_of(PAIRS[:1]), tokenizer, max_length=64).rows
        assert tokenizer.decode(row["input_ids"][:-1]) == f"translate: {PAIRS[0][0]}"

    def test_truncated_rows_are_counted(self, tokenizer: Any) -> None:
        task = replace(TASK, max_target_length=6)
        encoded = task.encode(rows_of(PAIRS), tokenizer, max_length=10)
        whole = TASK.encode(rows_of(PAIRS), tokenizer, max_length=64)
        for row, full in zip(encoded.rows, whole.rows, strict=True):
            source, target = full["input_ids"], full["labels"]
            # A source keeps its mark; a target that was cut does not teach to stop there.
            assert row["input_ids"] == (source if len(source) <= 10 else [*source[:9], EOS])
            assert row["labels"] == target[:6]
            assert row["references"] == full["references"]
        assert encoded.statistics.truncated == sum(len(r["input_ids"]) > 10 for r in whole.rows) > 0
        assert encoded.targets is not None
        assert encoded.targets.truncated == sum(len(r["labels"]) > 6 for r in whole.rows) > 0
        assert encoded.target_limit == 6
        assert encoded.statistics.longest == whole.statistics.longest

    def test_an_end_token_in_the_text_is_not_doubled(self, tokenizer: Any) -> None:
        (row,) = TASK.encode(rows_of([("a", "b</s>")]), tokenizer, max_length=64).rows
        assert row["labels"].count(EOS) == 2  # As text and as the tokenizer's mark.
        bare = transformers.PreTrainedTokenizerFast(
            tokenizer_object=type(tokenizer.backend_tokenizer).from_str(
                tokenizer.backend_tokenizer.to_str()
            ),
            pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        )  # fmt: skip
        bare.backend_tokenizer.post_processor = None
        (row,) = TASK.encode(rows_of([("a", "b"), ("a", "b</s>")][:1]), bare, max_length=64).rows
        assert row["labels"][-1] == EOS
        assert EOS not in row["input_ids"]
        (row,) = TASK.encode(rows_of([("a", "b</s>")]), bare, max_length=64).rows
        assert row["labels"].count(EOS) == 1

    def test_references(self, tokenizer: Any) -> None:
        rows = rows_of(PAIRS[:2], references=[["x", "y"], ["z"]])
        encoded = TASK.encode(rows, tokenizer, max_length=64)
        assert encoded.rows["references"][:] == [["x", "y"], ["z"]]

    def test_unknown_tokens_are_warned_of(
        self, tokenizer: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING, "peftlab"):
            TASK.encode(rows_of([("a", "b<unk>")]), tokenizer, max_length=64)
        assert "1 of 3 target tokens are <unk>" in caplog.text

    def test_texts_that_end_too_early_are_warned_of(
        self, tokenizer: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        for most, message in ((64, False), (5, True)):
            caplog.clear()
            task = TASK.with_settings(loss="auto", generation=GREEDY | {"max_new_tokens": most})
            with caplog.at_level(logging.WARNING, "peftlab"):
                task.encode(rows_of(PAIRS), tokenizer, max_length=64)
            assert ("max_new_tokens=5; raise it" in caplog.text) == message

    def test_refusals(self, tokenizer: Any) -> None:
        with pytest.raises(ConfigError, match="max_length is 1, but special tokens take 1"):
            TASK.encode(rows_of(PAIRS), tokenizer, max_length=1)
        with pytest.raises(ConfigError, match=r"data\.packing"):
            TASK.encode(rows_of(PAIRS), tokenizer, max_length=9, packing=True)
        endless = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>"
        )
        with pytest.raises(CheckFailed, match="has no end token"):
            TASK.attach(endless, None)


class TestBatches:
    @pytest.mark.parametrize("kind", ["t5", "bart"])
    def test_the_decoder_reads_what_the_model_itself_would_make(
        self, kind: str, tokenizer: Any
    ) -> None:
        model = model_of(kind, len(tokenizer))
        task = TASK.attach(tokenizer, model)
        batch = batch_of(tokenizer, task)
        own = model.prepare_decoder_input_ids_from_labels(batch["labels"])
        assert torch.equal(batch["decoder_input_ids"], own)
        assert batch["labels"].shape != batch["input_ids"].shape
        assert int((batch["labels"] != -100).sum()) == task.count_items(batch)
        read = int(batch["attention_mask"].sum())
        assert int(batch["tokens"].sum()) == read + task.count_items(batch)
        assert set(task.model_inputs(batch)) == {
            "input_ids", "attention_mask", "decoder_input_ids"
        }  # fmt: skip

    def test_a_model_without_a_start_token(self, tokenizer: Any) -> None:
        model = model_of("t5", len(tokenizer), decoder_start_token_id=None)
        with pytest.raises(CheckFailed, match="has no start token of its decoder"):
            TASK.attach(tokenizer, model)
        model.config.bos_token_id = 7
        assert TASK.attach(tokenizer, model).start == 7

    def test_without_a_model_there_are_no_batches(self, tokenizer: Any) -> None:
        with pytest.raises(RuntimeError, match="attach the task to a model first"):
            TASK.as_from_splits().collator(tokenizer)

    def test_positions_of_the_decoder(self, tokenizer: Any) -> None:
        model = model_of("bart", len(tokenizer))
        with pytest.raises(ConfigError, match="max_target_length is 65, but the model's decoder"):
            replace(TASK, max_target_length=65).attach(tokenizer, model)
        many = GREEDY | {"max_new_tokens": 65}
        with pytest.raises(ConfigError, match="max_new_tokens is 65"):
            TASK.with_settings(loss="auto", generation=many).attach(tokenizer, model)
        with pytest.raises(ConfigError, match="max_new_tokens is 65"):
            TASK.predict(
                model, tokenizer, [{"prompt": "a"}], max_length=9, batch_size=1, generation=many
            )
        # T5's are relative.
        replace(TASK, max_target_length=6500).attach(tokenizer, model_of("t5", len(tokenizer)))


def reference_loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """In fp64, from the stacks' hidden states, row by row and without any padding."""
    exact = type(model)(model.config).double().eval()
    exact.load_state_dict({name: tensor.double() for name, tensor in model.state_dict().items()})
    total = torch.zeros((), dtype=torch.float64)
    for row, labels in enumerate(batch["labels"]):
        labels = labels[labels != -100]
        source = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        given = torch.cat([torch.tensor([TASK.start]), labels[:-1]])
        read = exact.get_encoder()(input_ids=source[None]).last_hidden_state
        hidden = exact.get_decoder()(
            input_ids=given[None], encoder_hidden_states=read
        ).last_hidden_state[0]
        if exact.config.scale_decoder_outputs:
            hidden = hidden * exact.config.d_model**-0.5
        logits = hidden @ exact.get_output_embeddings().weight.T
        picked = logits.log_softmax(-1)[torch.arange(len(labels)), labels]
        total -= picked.sum()
    return total


class TestLoss:
    @pytest.mark.parametrize("scaled", [True, False])
    @pytest.mark.parametrize("mode", ["plain", "chunked"])
    def test_against_float64(self, mode: Any, scaled: bool, tokenizer: Any) -> None:
        """T5 1.0 multiplies what its head is given by d_model**-0.5, T5 1.1 does not."""
        fields = {} if scaled else {"tie_word_embeddings": False}
        model, batch = model_of("t5", len(tokenizer), **fields), batch_of(tokenizer)
        assert model.config.scale_decoder_outputs == scaled
        task = TASK.with_settings(loss=mode, generation=None)
        result = task.loss_sum(model, batch)
        expected = reference_loss(model, batch).detach()
        torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=0)
        scores = replace(task, measured=TextMetrics(())).score(model, batch)
        assert scores["loss"].sum() == pytest.approx(float(expected), rel=1e-6)

    @pytest.mark.parametrize("kind", ["t5", "unscaled", "bart", "lora", "lora on the head"])
    def test_chunked_is_plain_in_every_gradient(self, kind: str, tokenizer: Any) -> None:
        changes = {"tie_word_embeddings": False} if kind == "unscaled" else {}
        model = model_of("bart" if kind == "bart" else "t5", len(tokenizer), **changes)
        if kind.startswith("lora"):
            if kind == "lora on the head":
                model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
                model.config.tie_word_embeddings = False
            targets = ["q", "v", "wi"] + (["lm_head"] if kind == "lora on the head" else [])
            model = peft.get_peft_model(model, peft.LoraConfig(
                r=3, target_modules=targets, init_lora_weights=False, task_type="SEQ_2_SEQ_LM",
            ))  # fmt: skip
        batch = batch_of(tokenizer, TASK.attach(tokenizer, model))
        inputs = {**TASK.model_inputs(batch), "labels": batch["labels"]}
        result = []
        for loss in (CausalLoss("chunked").loss_sum(model, inputs), plain_loss_sum(model, inputs)):
            model.zero_grad()
            loss.backward()
            gradients = {n: p.grad.clone() for n, p in model.named_parameters()
                         if p.grad is not None}  # fmt: skip
            result.append((loss.detach(), gradients))
        (chunked, got), (plain, expected) = result
        torch.testing.assert_close(chunked, plain, rtol=1e-6, atol=0)
        assert got.keys() == expected.keys()
        for name, gradient in expected.items():
            scale = gradient.abs().max().clamp_min(1e-3)
            assert float((got[name] - gradient).abs().max() / scale) < 5e-5, name
        own = model(**inputs).loss * TASK.count_items(batch)
        torch.testing.assert_close(plain, own.detach(), rtol=1e-5, atol=0)

    def test_a_bias_after_the_head(self, tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
        model = model_of("bart", len(tokenizer))
        model.final_logits_bias.normal_()
        batch = batch_of(tokenizer, TASK.attach(tokenizer, model))
        with caplog.at_level(logging.WARNING, "peftlab"):
            loss = TASK.loss_sum(model, batch)
        assert "changes its logits after the head" in caplog.text
        inputs = {**TASK.model_inputs(batch), "labels": batch["labels"]}
        torch.testing.assert_close(loss, plain_loss_sum(model, inputs))
        with pytest.raises(CheckFailed, match=r"Set train\.loss to auto or plain"):
            TASK.with_settings(loss="chunked", generation=None).loss_sum(model, batch)

    def test_padding_and_other_rows_change_nothing(self, tokenizer: Any) -> None:
        model = model_of("t5", len(tokenizer))
        whole = TASK.loss_sum(model, batch_of(tokenizer))
        alone = sum(TASK.loss_sum(model, batch_of(tokenizer, pairs=[pair])) for pair in PAIRS)
        torch.testing.assert_close(whole, alone, rtol=1e-5, atol=0)


class TestGeneration:
    @pytest.mark.parametrize("beams", [1, 3])
    @pytest.mark.parametrize("kind", ["t5", "bart"])
    def test_a_batch_is_answered_as_its_rows_alone(
        self, kind: str, beams: int, tokenizer: Any
    ) -> None:
        model = model_of(kind, len(tokenizer))
        task = TASK.attach(tokenizer, model)
        rows = [{"prompt": source} for source, _ in PAIRS]
        settings = GREEDY | {"num_beams": beams, "length_penalty": 0.8 if beams > 1 else 1.0}

        def ask(size: int) -> list[dict[str, Any]]:
            return task.predict(
                model, tokenizer, rows, max_length=64, batch_size=size, generation=settings
            )

        together = ask(4)
        assert ask(1) == ask(3) == together == ask(4)
        if beams == 1:
            assert len({answer["text"] for answer in together}) > 1

    def test_as_the_model_itself_generates(self, tokenizer: Any) -> None:
        model = model_of("t5", len(tokenizer))
        # What a checkpoint brings along is no reason to draw.
        model.generation_config.update(do_sample=True, temperature=3.0, early_stopping=True)
        (answer,) = TASK.predict(
            model, tokenizer, [{"prompt": PAIRS[0][0]}], max_length=64, batch_size=1,
            generation=GREEDY,
        )  # fmt: skip
        assert model.generation_config.do_sample
        ids = tokenizer(PAIRS[0][0], return_tensors="pt").input_ids
        given = [PAD]
        while len(given) < 13 and given[-1] != EOS:
            logits = model(input_ids=ids, decoder_input_ids=torch.tensor([given])).logits
            given.append(int(logits[0, -1].argmax()))
        assert answer["text"] == tokenizer.decode(given[1:], skip_special_tokens=True)
        assert answer["finished"] == (given[-1] == EOS)

    def test_long_sources_are_cut_with_a_warning(
        self, tokenizer: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        model = model_of("t5", len(tokenizer))
        with caplog.at_level(logging.WARNING, "peftlab"):
            TASK.predict(
                model, tokenizer, [{"prompt": PAIRS[3][0]}, {"prompt": "a"}], max_length=8,
                batch_size=2, generation=GREEDY,
            )  # fmt: skip
        assert "1 of 2 sources are longer than data.max_length=8" in caplog.text
        with pytest.raises(DataError, match="row 1 to predict has no 'prompt'"):
            TASK.predict(model, tokenizer, [{"prompt": " "}], max_length=8, batch_size=1)

    def test_scores_are_of_generated_texts(self, tokenizer: Any) -> None:
        import sacrebleu

        model = model_of("t5", len(tokenizer))
        task = replace(TASK, measured=TextMetrics(("bleu", "chrf")))
        task = task.with_settings(loss="auto", generation=GREEDY)
        answers = task.predict(
            model, tokenizer, [{"prompt": s} for s, _ in PAIRS], max_length=64, batch_size=4,
            generation=GREEDY,
        )  # fmt: skip
        # One reference is what the model writes, so that something is right.
        targets = [answer["text"] or "nothing" for answer in answers[:1]] + ["b", "c", "d"]
        rows = rows_of(PAIRS, references=[[t] for t in targets])
        encoded = task.encode(rows, tokenizer, max_length=64)
        result = task.metrics(task.score(model, task.collator(tokenizer)(list(encoded.rows))))
        texts = [answer["text"] for answer in answers]
        assert result["bleu"] == sacrebleu.corpus_bleu(texts, [targets]).score
        assert result["chrf"] == sacrebleu.corpus_chrf(texts, [targets]).score
        assert set(result) == set(task.greater_is_better)

    def test_nothing_is_generated_where_no_text_is_measured(
        self, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = model_of("t5", len(tokenizer))
        monkeypatch.setattr(type(model), "generate", None)
        task = replace(TASK, measured=TextMetrics(()))
        scores = task.score(model, batch_of(tokenizer, task))
        assert set(task.metrics(scores)) == {"token_accuracy", "loss"}
        assert task.best_metric == "loss"
        low, high = task.interval(scores, "loss")
        assert low <= task.metrics(scores)["loss"] <= high
        with pytest.raises(ConfigError, match=r"metric 'bleu' is unknown.*token_accuracy, loss"):
            task.interval(scores, "bleu")


def test_options_and_state(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"source": "a", "target": "b"}\n' * 3)
    splits = load_splits(
        str(tmp_path), formats=OPTIONS.formats, roles=OPTIONS.roles, validation=0.0
    )
    options = Seq2Seq.options(
        name="seq2seq", prefix="x: ", max_target_length=7, text_metrics=["rouge", "bleu"],
        bleu_tokenizer="intl", rouge_stemmer=True,
    )  # fmt: skip
    task = Seq2Seq.from_splits(splits, options)
    assert task.best_metric == "rougeL"
    assert list(task.greater_is_better) == [
        "rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "token_accuracy", "loss"
    ]  # fmt: skip
    attached = replace(task, start=3)
    assert Seq2Seq.from_state(attached.state()) == attached
    assert attached.as_from_splits() == task
    with pytest.raises(ValueError, match="names one twice: bleu, bleu"):
        Seq2Seq.options(name="seq2seq", text_metrics=["bleu", "bleu"])


def test_bleu_is_cut_by_the_scripts_of_trains_targets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"source": "a", "target": "今天天气很好", "references": ["今天天气很好", "天气不错"]}
    (tmp_path / "train.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    splits = load_splits(
        str(tmp_path), formats=OPTIONS.formats, roles=OPTIONS.roles, validation=0.0
    )
    with caplog.at_level(logging.INFO, "peftlab"):
        task = Seq2Seq.from_splits(splits, OPTIONS)
    signature = task.measured_by["bleu"]
    assert signature.startswith("nrefs:2|case:mixed|eff:no|tok:zh|smooth:exp|version:")
    assert signature in caplog.text
    # It is kept with the run, and what later rows look like does not matter.
    assert Seq2Seq.from_state(task.state()).measured.bleu_tokenizer == "zh"
    older = {name: value for name, value in task.state().items() if name != "bleu_tokenizer"}
    assert Seq2Seq.from_state(older).measured.bleu_tokenizer == "13a"
    chosen = Seq2Seq.options(name="seq2seq", bleu_tokenizer="char")
    assert Seq2Seq.from_splits(splits, chosen).measured.bleu_tokenizer == "char"
    silent = Seq2Seq.options(name="seq2seq", text_metrics=["chrf"])
    assert Seq2Seq.from_splits(splits, silent).measured_by == {}


def test_metrics_of_sampled_texts_are_refused() -> None:
    drawn = GREEDY | {"do_sample": True}
    with pytest.raises(ConfigError, match="do_sample is true"):
        TASK.with_settings(loss="auto", generation=drawn)
    silent = replace(TASK, measured=TextMetrics(()))
    assert silent.with_settings(loss="auto", generation=drawn).generation == drawn


def test_preview_of_a_pair(tokenizer: Any) -> None:
    row = TASK.encode(rows_of(PAIRS[:1]), tokenizer, max_length=64).rows[0]
    shown = TASK.preview(row, tokenizer)
    assert shown["text"] == f"{PAIRS[0][0]}</s>"
    assert shown["target"] == f"⟦{PAIRS[0][1]}</s>⟧"
    assert (shown["tokens"], shown["target_tokens"]) == (len(row["input_ids"]), len(row["labels"]))
    assert "references" not in shown
    many = TASK.encode(rows_of(PAIRS[:1], references=[["x", "y"]]), tokenizer, max_length=64)
    assert TASK.preview(many.rows[0], tokenizer)["references"] == 2


@pytest.mark.parametrize(
    ("family", "task", "head", "message"),
    [
        ("bert", "classification", "AutoModelForSeq2SeqLM", "an encoder only.*task=causal-lm"),
        ("gpt2", "causal", "AutoModelForSeq2SeqLM", "a decoder only.*task=causal-lm"),
        ("t5", "classification", "AutoModelForCausalLM", "encoder-decoder.*task=seq2seq"),
    ],
)
def test_models_of_another_kind(
    family: str, task: str, head: str, message: str, tiny_checkpoint: Any
) -> None:
    from peftlab.model.head_spec import HeadSpec
    from peftlab.model.loading import load_model

    for weights in (True, False):
        with pytest.raises(CheckFailed, match=message):
            load_model(str(tiny_checkpoint(family, task)), HeadSpec(head), weights=weights)
