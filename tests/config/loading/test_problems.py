from __future__ import annotations

from collections.abc import Callable

import pytest

from peftlab.config import config_from_mapping
from peftlab.errors import ConfigError

Refusal = Callable[..., str]

# What is written from line 5 on, and what the message must say.
IN_FILE = {
    "section": ("trian: {}\n", ["run.yaml:5: trian is unknown; did you mean train?", "bench)"]),
    "key": (
        "train:\n  learning_rat: 3\n",
        ["run.yaml:6: train.learning_rat", "train.learning_rate?"],
    ),
    "nested key": (
        "eval:\n  generatoin: {}\n",
        ["run.yaml:6: eval.generatoin", "eval.generation?"],
    ),
    "name from elsewhere": ("train: {lr: 3}\n", ["train.lr", "did you mean train.learning_rate?"]),
    "key in the wrong section": (
        "learning_rate: 3\n",
        ["learning_rate", "mean train.learning_rate?"],
    ),
    "key like nothing": (
        "output: {zzz: 3}\n",
        ["output.zzz is unknown", "dir, overwrite, report_to"],
    ),
    "text for a number": ("train: {learning_rate: fast}\n", ["'fast'", "auto or a number above 0"]),
    "quoted number": ("train: {seed: '3'}\n", ["train.seed is '3'", "write 3, without quotes"]),
    "number for text": ("output: {dir: 3}\n", ["output.dir is 3", "text", "write '3', in quotes"]),
    "yes for true": ("output: {plots: yes}\n", ["output.plots is 'yes'", "true or false"]),
    "true for a number": ("train: {seed: true}\n", ["train.seed is true", "a whole number"]),
    "true for a fraction": ("train: {weight_decay: true}\n", ["train.weight_decay is true"]),
    "fraction for a count": (
        "train: {max_steps: 2.5}\n",
        ["train.max_steps is 2.5", "whole number"],
    ),
    "nan": ("train: {weight_decay: .nan}\n", ["train.weight_decay is nan", "at least 0"]),
    "infinity": ("train: {learning_rate: .inf}\n", ["train.learning_rate is inf"]),
    "huge count": ("train: {max_steps: 99999999999}\n", ["train.max_steps", "to 2147483647"]),
    "huge seed": ("train: {seed: 4294967296}\n", ["train.seed", "to 4294967295"]),
    "one name for a list": ("output: {report_to: wandb}\n", ["a list of text; write [wandb]"]),
    "misspelt choice": ("train: {save_every: epohc}\n", ["run.yaml:5", "did you mean epoch?"]),
    "null": ("train: {optim: }\n", ["train.optim is null", "allowed: text"]),
    "text for a section": (
        "output: there\n",
        ["output is 'there'", "did you mean output.dir: there?"],
    ),
    "list of methods": (
        "bench: {methods: [{method: [lora]}]}\n",
        ["bench.methods.0.method is the list ['lora']; allowed: head, last_n, lora, qlora, full"],
    ),
    "uneven micro-batch": (
        "train: {micro_batch_size: 5}\n",
        ["divide global_batch_size 16; 4 does"],
    ),
    "larger micro-batch": (
        "train: {micro_batch_size: 32}\n",
        ["micro_batch_size is 32", "16 does"],
    ),
    "stopping without evaluation": (
        "eval: {every: never, early_stopping_patience: 2}\n",
        ["eval.early_stopping_patience is 2", "every is never"],
    ),
    "ratio of 1": ("train: {warmup_ratio: 1}\n", ["train.warmup_ratio is 1", "warmup_steps"]),
    "two spellings of warm-up": (
        "train:\n  warmup_ratio: 0.1\n  warmup_steps: 5\n",
        ["run.yaml:6: train.warmup_ratio is another spelling of warmup_steps"],
    ),
    "part of a step": (
        "train: {warmup_steps: 1.5}\n",
        ["train.warmup_steps is 1.5", "whole steps"],
    ),
    "warm-up beyond the end": (
        "train: {warmup_steps: 50, max_steps: 10}\n",
        ["warmup_steps is 50, more than max_steps 10"],
    ),
    "negative penalty": (
        "regularization: {l2: -0.1}\n",
        ["run.yaml:5: regularization.l2 is -0.1", "at least 0"],
    ),
    "infinite penalty": ("regularization: {l1: .inf}\n", ["regularization.l1 is inf"]),
    "penalty in words": ("regularization: {l2_sp: strong}\n", ["l2_sp is 'strong'", "a number"]),
    "misspelt scope": (
        "regularization: {l1: 0.1, scope: adaptor}\n",
        ["regularization.scope is 'adaptor'", "did you mean adapter?"],
    ),
    "scope of nothing": (
        "regularization: {scope: head}\n",
        ["regularization.scope is head, but l1, l2 and l2_sp are 0"],
    ),
    "weight decay among the penalties": (
        "regularization: {weight_decay: 0.1}\n",
        ["regularization.weight_decay is unknown; did you mean train.weight_decay?"],
    ),
    "another task's key": ("data2: {}\n", ["data2 is unknown; did you mean data?"]),
    "another task's metric": (
        "eval: {best: perplexity}\n",
        ["eval.best is 'perplexity'", "f1_macro"],
    ),
    "misspelt metric": ("eval: {best: f1_makro}\n", ["did you mean f1_macro?"]),
    "one bad metric of two": (
        "eval:\n  metrics:\n  - loss\n  - acuracy\n",
        ["run.yaml:8: eval.metrics.1 is 'acuracy'; did you mean accuracy?"],
    ),
    "generation for a classifier": (
        "eval:\n  generation:\n    num_beams: 2\n",
        ["run.yaml:6: eval.generation is read by task causal-lm", "only, and task is text-class"],
    ),
    "bench method": (
        "bench: {methods: [head, lorra]}\n",
        ["bench.methods.1 is 'lorra'", "mean lora?"],
    ),
    "bench rank": ("bench: {methods: ['lora:999']}\n", ["bench.methods.0 is 'lora:999'", "256"]),
    "bench number": ("bench: {methods: ['head:2']}\n", ["bench.methods.0 is 'head:2'", "last_n:N"]),
    "bench row's key": (
        "bench:\n  methods:\n  - label: x\n    method: head\n    train:\n      lerning_rate: 3\n",
        ["run.yaml:10: bench.methods.0.train.lerning_rate", "bench.methods.0.train.learning_rate?"],
    ),
    "bench row's value": (
        "bench: {methods: [{method: head, train: {micro_batch_size: 3}}]}\n",
        ["bench.methods.0.train.micro_batch_size is 3", "does not divide"],
    ),
    "bench row's unknown method": (
        "bench: {methods: [{method: lorra}]}\n",
        ["bench.methods.0.method.name is 'lorra'", "did you mean lora?"],
    ),
    "bench row's method": (
        "bench: {methods: [{method: {name: head, n: 3}}]}\n",
        ["bench.methods.0.method.n is read by method last_n, not by head"],
    ),
}


@pytest.mark.parametrize("name", IN_FILE)
def test_a_mistake_in_a_file(name: str, refusal: Refusal) -> None:
    text, expected = IN_FILE[name]
    said = refusal(text)
    assert said.startswith("run.yaml:")
    assert len(said.splitlines()) == 1, said
    for words in expected:
        assert words in said


BY_OVERRIDE = {
    "method.pooling=mean": ["method.pooling is read by method head, not by lora", "target_modules"],
    "method.bits=4": ["method.bits is read by method qlora, not by lora"],
    "method.name=lorra": ["method.name is 'lorra'", "did you mean lora?"],
    "method=lorra": ["method.name is 'lorra'; allowed: head, last_n, lora, qlora, full"],
    "method.r=0": ["method.r is 0; allowed: a whole number from 1 to 256"],
    "method.r=8.5": ["method.r is 8.5"],
    "method.dropout=1": ["method.dropout is 1", "at least 0 and below 1"],
    "method.target_modules=[]": ["method.target_modules is the list []"],
    "task=text-clasification": [
        "task.name is 'text-clasification'; allowed: text-classification, ",
        "did you mean text-classification?",
    ],
    "task.problem=regresion": [
        "override task.problem=regresion: task.problem is 'regresion'",
        "did you mean regression?",
    ],
    "task.class_weight=balanced": ["task.class_weight is unknown; did you mean task.class_weights"],
    "task={name: causal-lm, problem: auto}": [
        "task.problem is read by task text-classification, not by causal-lm"
    ],
    "data.format=squad": ["data.format is 'squad'; text-classification takes prodigy-text, "],
    "data.format=text-lable": ["data.format is 'text-lable'", "did you mean text-label?"],
    "data.packing=true": ["data.packing is read by task causal-lm"],
    "data.packing=false": ["data.packing is read by task causal-lm"],
    "data.columns.txt=a": ["data.columns.txt is no role; did you mean data.columns.text?"],
    "data.splits.validation=1.5": ["data.splits.validation is 1.5", "above 0 and below 1"],
    "data.splits={train: a, dev: b}": ["data.splits.dev is unknown", "train, validation, test"],
    "train.seed.x=3": ["train.seed is a mapping"],
    "train=3": ["train is 3; allowed: a mapping with num_train_epochs"],
    "model=some/model": ["did you mean model.name: some/model?"],
    "learning-rate=3": ["'learning-rate' is no key"],
    "train.": ["has no `=`"],
    "train.seed=[1": ["is not YAML"],
    "bench.methods.3=lora": ["bench.methods is no list in the file"],
    "train.optim={a: 1, a: 2}": ["a is set twice"],
}


@pytest.mark.parametrize("override", BY_OVERRIDE)
def test_a_mistake_in_an_override(override: str, refusal: Refusal) -> None:
    said = refusal("", override)
    assert said.startswith(f"override {override}: ")
    for words in BY_OVERRIDE[override]:
        assert words in said


def test_a_key_that_only_another_method_reads(refusal: Refusal) -> None:
    said = refusal("", "method=head", "train.gradient_checkpointing=true")
    assert "read by method last_n, lora, qlora, full, peft only, and method.name is head" in said
    assert "cache_limit is '3x'; allowed: a size such as 500MB or 2GiB" in refusal(
        "", "method=head", "method.cache_limit=3x"
    )


def test_a_scope_that_the_method_has_not(refusal: Refusal) -> None:
    said = refusal("regularization: {l1: 0.1, scope: adapter}\n", "method=full")
    assert said.startswith(
        "run.yaml:5: regularization.scope is adapter, but method full trains none"
    )


def test_stopping_without_validation_rows(refusal: Refusal) -> None:
    said = refusal("eval: {early_stopping_patience: 2}\n", "data.splits.validation=null")
    assert said.startswith("run.yaml:5: eval.early_stopping_patience is 2, but data.splits.val")


def test_sampling_settings_without_sampling(refusal: Refusal) -> None:
    base = "model: {name: m}\ntask: causal-lm\ndata: {source: d}\nmethod: lora\n"
    said = refusal("eval: {generation: {temperature: 0.5}}\n", base=base)
    assert "eval.generation.temperature is 0.5, which is read only with do_sample: true" in said
    assert "run.yaml:5" in said


def test_every_problem_has_its_line_and_place(refusal: Refusal) -> None:
    said = refusal("train:\n  seed: x\n  lr: 3\noutput: {plots: 1}\n", "method.r=0").splitlines()
    assert len(said) == 4
    assert {line.split(": ")[0] for line in said} == {
        "run.yaml:6", "run.yaml:7", "run.yaml:8", "override method.r=0",
    }  # fmt: skip


def test_an_avalanche_is_cut_short(refusal: Refusal) -> None:
    said = refusal("train:\n" + "".join(f"  zz{i}: 1\n" for i in range(30)))
    assert len(said.splitlines()) == 9
    assert said.endswith("... and 22 more.")


def test_what_is_missing_is_described(refusal: Refusal) -> None:
    said = refusal("", base="task: causal-lm\ndata:\n")
    assert "run.yaml: model is missing (The pretrained model)" in said
    assert "run.yaml:2: data.source is missing (Hub id, a file" in said
    assert "method is missing" in said
    assert "run.yaml:4: method.name is missing; allowed: head" in refusal(
        "", base="model: {name: m}\ntask: causal-lm\ndata: {source: d}\nmethod: {r: 3}\n"
    )
    assert len(refusal("", base="").splitlines()) == 4


@pytest.mark.parametrize("second", ["method.lora_alpha=8", "method.alpha=8"])
def test_both_spellings_among_the_overrides(second: str, refusal: Refusal) -> None:
    first = {"method.lora_alpha=8": "method.alpha=4", "method.alpha=8": "method.lora_alpha=4"}
    assert "another spelling of alpha, which is set too" in refusal("", first[second], second)


def test_a_mapping_from_python_is_checked_alike() -> None:
    with pytest.raises(ConfigError, match=r"configuration: train\.sed is unknown; did you mean"):
        config_from_mapping(
            {
                "model": {"name": "m"},
                "task": "causal-lm",
                "data": {"source": "d"},
                "method": "lora",
                "train": {"sed": 1},
            }
        )
    with pytest.raises(ConfigError, match="a number of 20000 bits"):
        config_from_mapping(
            {
                "model": {"name": "m"},
                "task": "causal-lm",
                "data": {"source": "d"},
                "method": "lora",
                "train": {"seed": 1 << 19999},
            }
        )
    with pytest.raises(ConfigError, match="1 is no key: keys are text"):
        config_from_mapping(
            {
                "model": {"name": "m"},
                "task": "causal-lm",
                "data": {"source": "d", "columns": {1: "x"}},
                "method": "lora",
            }
        )
