"""Real data, real pretrained models, the whole job, against what PEFT alone gives."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def run_config(**sections: Any) -> Any:
    from peftlab.config import config_from_mapping

    return config_from_mapping(sections)


@pytest.mark.parametrize(
    ("method", "rows", "bar", "width"),
    [
        # 160 test rows: about 7 points either way; 1,821: about 1.6.
        ({"name": "head"}, {"max_train_samples": 400, "max_eval_samples": 160}, 0.72, 0.18),
        pytest.param(
            {"name": "lora", "r": 8, "alpha": 16}, {"max_train_samples": 2000}, 0.82, 0.05,
            marks=pytest.mark.campaign,
        ),
    ],
    ids=["head", "lora"],
)  # fmt: skip
def test_sst2_reaches_its_bar(
    method: dict[str, Any], rows: dict[str, int], bar: float, width: float, minilm: Path,
    shared_data: Path, tmp_path: Path,
) -> None:  # fmt: skip
    from peftlab import pipeline

    run = pipeline.train(
        run_config(
            model={"name": str(minilm)},
            task="text-classification",
            data={"source": str(shared_data / "sst2"), "max_length": 128, **rows},
            method=method,
            train={"num_train_epochs": 3},
            output={"dir": str(tmp_path / "run"), "plots": False},
        )
    )
    test = run.metrics["test"]
    assert test["accuracy"] >= bar
    low, high = test["interval"]["f1_macro"]
    assert low < test["f1_macro"] < high
    assert high - low < width

    # The folder alone gives the same numbers and sensible answers.
    again = pipeline.open_run(tmp_path / "run")
    assert again.evaluate("test")["loss"] == pytest.approx(test["loss"], rel=1e-5)
    answers = again.predict(["a joy from start to finish", "dull , lifeless and far too long"])
    assert [a["label"] for a in answers] == ["1", "0"]
    assert all(a["probability"] > 0.6 for a in answers)


@pytest.fixture(scope="module")
def e2e(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_config(
        model={"name": str(shared_data / "model_tinystories656k")},
        task="causal-lm",
        data={
            "source": str(shared_data / "e2e_nlg"),
            "columns": {"prompt": "input", "completion": "output"},
            "max_train_samples": 160,
            "max_eval_samples": 120,
        },
        method={"name": "lora", "r": 8, "alpha": 16, "dropout": 0.0},
        train={
            "num_train_epochs": 4,
            "learning_rate": 4e-3,
            "global_batch_size": 8,
            "save_every": "never",
        },
        eval={"every": "never"},
        output={"dir": str(tmp_path_factory.mktemp("e2e") / "run"), "plots": False},
    )


def test_completions_of_e2e_equal_a_plain_peft_script(e2e: Any) -> None:
    from peftlab import pipeline
    from peftlab.pipeline.untuned import evaluate_untuned

    before = evaluate_untuned(e2e)
    assert before["what"] == "base model"
    run = pipeline.train(e2e)
    after = run.metrics["test"]["loss"]
    assert after <= 0.8 * before["test"]["loss"]
    assert run.metrics["test"]["perplexity"] == pytest.approx(math.exp(after))

    plain = plain_peft_loss(e2e)
    assert after == pytest.approx(plain, rel=0.01)

    prompt = "name[The Phoenix], food[Italian], area[riverside]"
    first, second = (run.predict([prompt], max_new_tokens=24) for _ in range(2))
    assert first == second  # greedy decoding has one answer
    assert first[0]["text"].strip()


def plain_peft_loss(config: Any) -> float:
    """Test loss of Transformers' Trainer and PEFT with the same rows, rank, rate and seed."""
    import peft
    import transformers

    from peftlab.evaluation import evaluate
    from peftlab.pipeline import preparation

    checked = preparation.check(config)
    transformers.set_seed(config.train.seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(config.model.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(config.model.name)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = peft.get_peft_model(
        model,
        peft.LoraConfig(
            task_type="CAUSAL_LM", r=8, lora_alpha=16, lora_dropout=0.0, target_modules=targets
        ),
    )
    rows = {
        split: checked.task.encode(checked.splits.get(split), tokenizer, max_length=512).rows
        for split in ("train", "test")
    }
    collator = checked.task.collator(tokenizer)
    transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(Path(config.output.dir).with_name("plain")),
            num_train_epochs=config.train.num_train_epochs,
            per_device_train_batch_size=config.train.global_batch_size,
            learning_rate=config.train.learning_rate,
            warmup_steps=config.train.warmup_steps,
            weight_decay=config.train.weight_decay,
            seed=config.train.seed,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
        ),
        train_dataset=rows["train"],
        data_collator=collator,
    ).train()
    measured = evaluate(model, checked.task, rows["test"], collator, batch_size=32)
    return measured.metrics["loss"]


@pytest.mark.parametrize("model", ["model_stories260k", "model_tinystories656k"])
def test_plain_text_keeps_what_the_model_knows(
    model: str, shared_data: Path, tmp_path: Path
) -> None:
    """TinyStories was in both models' pretraining: tuning on it must not make them worse."""
    from peftlab import pipeline
    from peftlab.pipeline.untuned import evaluate_untuned

    config = run_config(
        model={"name": str(shared_data / model)},
        task="causal-lm",
        data={
            "source": str(shared_data / "tinystories_1k"),
            "packing": True,
            "max_length": 256,
            "max_train_samples": 120,
            "max_eval_samples": 32,
        },
        method={"name": "lora", "r": 8, "alpha": 16},
        train={"num_train_epochs": 1},
        output={"dir": str(tmp_path / "run")},
    )
    before = evaluate_untuned(config)["test"]["loss"]
    run = pipeline.train(config)
    assert run.metrics["test"]["loss"] < before
    low, high = run.metrics["test"]["interval"]["perplexity"]
    assert low < run.metrics["test"]["perplexity"] < high
    assert run.predict(["Once upon a time"])[0]["text"].strip()
    assert (tmp_path / "run" / "plots" / "loss.png").stat().st_size > 5000
