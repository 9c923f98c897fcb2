from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import peftlab
from peftlab.config import (
    RunConfig,
    config_from_mapping,
    load_config,
    parse_bytes,
    parse_method,
    row_training,
)
from peftlab.config.loading import keys
from peftlab.config.methods.head import HeadOptions
from peftlab.config.methods.last_n import LastNOptions
from peftlab.config.methods.lora import LoraOptions, QLoraOptions
from peftlab.config.schema import TrainConfig
from peftlab.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[3]
Load = Callable[..., RunConfig]
MAPPING = {
    "model": {"name": "m"},
    "task": "text-classification",
    "data": {"source": "d"},
    "method": {"name": "lora", "r": 8},
}


def test_a_file_and_overrides(load: Load) -> None:
    config = load(
        "train: {learning_rate: 5e-4, seed: 1}\n", "train.seed=7", "method=qlora", "method.r=4"
    )
    assert config.train.learning_rate == 5e-4
    assert config.train.seed == 7
    assert isinstance(config.method, QLoraOptions)
    assert config.method.r == 4


def test_overrides_without_a_file() -> None:
    loaded = load_config(
        None, ["model.name=m", "task=causal-lm", "data.source=d", "method=last_n", "method.n=3"]
    )
    assert loaded.config.method == LastNOptions(name="last_n", n=3)
    assert loaded.set_keys == {"model.name", "task.name", "data.source", "method.name", "method.n"}
    assert loaded.source is None


def test_a_bare_method_replaces_all_of_the_section(load: Load) -> None:
    base = "model: {name: m}\ntask: causal-lm\ndata: {source: d}\nmethod: {name: head}\n"
    assert load("", "method=lora", base=base).method == LoraOptions(name="lora")
    base = base.replace("{name: head}", "lora")
    assert load("", "method.r=4", base=base).method == LoraOptions(name="lora", r=4)


def test_the_later_override_wins(load: Load) -> None:
    assert load("", "train.seed=1", "train.seed=2").train.seed == 2
    assert load("", "train={seed: 1, max_steps: 3}", "train.seed=2").train.max_steps == 3


def test_hugging_face_spellings(load: Load) -> None:
    base = (
        "model: {name: m}\ntask: causal-lm\ndata: {source: d}\n"
        "method: {name: lora, lora_alpha: 64}\n"
    )
    config = load("train: {warmup_ratio: 0.1}\n", base=base)
    assert config.method == LoraOptions(name="lora", alpha=64.0)
    assert config.train.warmup_steps == 0.1
    # An override speaks of the same key, whatever the file calls it.
    config = load(
        "train: {warmup_ratio: 0.1}\n", "train.warmup_steps=20", "method.alpha=1", base=base
    )
    assert config.train.warmup_steps == 20
    assert config.method.alpha == 1


def test_what_a_shell_cannot_quote_is_read_as_the_key_wants_it(load: Load) -> None:
    config = load(
        "", "model.name=123", "model.revision=1e10", 'train.seed="3"', "output.report_to=wandb",
        "method.target_modules=query, value", "data.columns.label=2",
    )  # fmt: skip
    assert config.model.name == "123"
    assert config.model.revision == "1e10"
    assert config.train.seed == 3
    assert config.output.report_to == ["wandb"]
    assert isinstance(config.method, LoraOptions)
    assert config.method.target_modules == ["query", "value"]
    assert config.data.columns == {"label": "2"}


def test_sections_with_every_key_commented_out_are_empty(load: Load) -> None:
    config = load("train:\neval:\noutput:\nbench:\n")
    assert config == load("")


def test_lists_are_reached_by_number(load: Load) -> None:
    text = "bench:\n  methods: [head, {method: lora, train: {seed: 1}}]\n"
    config = load(text, "bench.methods.0=full", "bench.methods.1.train.seed=5")
    assert config.bench.methods[0] == "full"
    row = config.bench.methods[1]
    assert not isinstance(row, str)
    assert row.train == {"seed": 5}
    with pytest.raises(ConfigError, match=r"bench\.methods is a list of 2"):
        load(text, "bench.methods.2=full")


def test_a_verb_without_need_of_a_method_gets_one() -> None:
    said = ["model.name=m", "task=causal-lm", "data.source=d"]
    need = frozenset({"model", "task", "data"})
    assert load_config(None, said, need=need).config.method == LoraOptions(name="lora")
    assert load_config(None, [*said, "method=full"], need=need).config.method.name == "full"
    with pytest.raises(ConfigError, match="method is missing"):
        load_config(None, said)


def test_keywords_from_python(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: {name: m}\ntask: causal-lm\ndata: {source: d}\nmethod: head\n")
    config = peftlab.load_config(
        file, method="qlora", train={"seed": 3, "max_steps": 2}, output={"dir": tmp_path / "out"}
    )
    assert config.method.name == "qlora"
    assert (config.train.seed, config.train.max_steps) == (3, 2)
    assert config.output.dir == str(tmp_path / "out")
    again = peftlab.load_config(config, method={"name": "lora", "r": 2})
    assert again.method == LoraOptions(name="lora", r=2)
    assert again.train.seed == 3
    assert peftlab.load_config(MAPPING) == config_from_mapping(MAPPING)
    with pytest.raises(ConfigError, match=r"argument train\.sed=3: train\.sed is unknown"):
        peftlab.load_config(file, train={"sed": 3})
    with pytest.raises(AttributeError):
        _ = peftlab.nothing


def test_a_mapping_is_left_as_it_was() -> None:
    mapping = {**MAPPING, "method": "lora"}
    config_from_mapping(mapping, ["train.seed=3", "data.columns.text=t"])
    assert mapping == {**MAPPING, "method": "lora"}


def test_short_forms_of_methods() -> None:
    assert parse_method("head") == HeadOptions(name="head")
    assert parse_method("last_n:3") == LastNOptions(name="last_n", n=3)
    assert parse_method("lora:8") == LoraOptions(name="lora", r=8, alpha=16.0)
    assert parse_method("qlora8").name == "qlora"
    four = parse_method("qlora4", QLoraOptions(name="qlora", r=4, arithmetic="w8a8"))
    assert four == QLoraOptions(name="qlora", r=4, bits=4)
    assert parse_method("qlora8", four) == QLoraOptions(name="qlora", r=4)
    base = LoraOptions(name="lora", r=4, alpha=4.0, use_dora=True)
    assert parse_method("lora:8", base) == LoraOptions(name="lora", r=8, alpha=8.0, use_dora=True)
    # What lora has and qlora has not stays behind.
    assert parse_method("qlora8", base) == QLoraOptions(name="qlora", r=4, alpha=4.0)
    patterns = LoraOptions(
        name="lora", r=4, alpha=8.0, rank_pattern={"q": 2}, alpha_pattern={"v": 6.0}
    )
    wider = parse_method("lora:8", patterns)
    assert isinstance(wider, LoraOptions)
    assert (wider.rank_pattern, wider.alpha_pattern) == ({"q": 4}, {"v": 12.0})
    with pytest.raises(ConfigError, match=r"rank 2 for 'q', and 1/4 of it is no rank.*a mapping"):
        parse_method("lora:1", patterns)
    for text in ("lorra", "head:2", "lora:", "lora:x", "last_n:0", "lora:999", ""):
        with pytest.raises(ConfigError):
            parse_method(text)


def test_a_rows_training_keeps_the_rest() -> None:
    base = TrainConfig(global_batch_size=64, warmup_steps=10, seed=5)
    own = row_training(base, {"micro_batch_size": 32, "warmup_ratio": 0.5})
    assert (own.global_batch_size, own.micro_batch_size, own.warmup_steps, own.seed) == (
        64, 32, 0.5, 5,
    )  # fmt: skip


def test_sizes_in_bytes() -> None:
    assert parse_bytes("2GiB") == 2 << 30
    assert parse_bytes("1.5 MB") == 1_500_000
    assert parse_bytes("0") == 0
    for text in ("2x", "", "-1", "1e3MB"):
        with pytest.raises(ValueError, match="is no size"):
            parse_bytes(text)


def test_reading_a_configuration_imports_nothing_heavy() -> None:
    code = (
        "import sys, peftlab; peftlab.load_config({'model': {'name': 'm'}, 'task': 'causal-lm',"
        "'data': {'source': 'd'}, 'method': 'lora'});"
        "print(sorted({'torch', 'transformers', 'datasets', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_what_tasks_say_of_themselves_holds_together() -> None:
    pytest.importorskip("torch")
    from peftlab.config.loading.reading import who_reads
    from peftlab.config.methods.options import METHODS
    from peftlab.config.schema import RunConfig, Section
    from peftlab.config.tasks.options import TASKS
    from peftlab.data.formats import FORMATS
    from peftlab.tasks.registry import task_class

    def marked(section: type[Section], by: str) -> set[str]:
        marks = [who_reads(section, name) for name in section.model_fields]
        marked_keys = {mark.key for mark in marks if mark is not None and mark.by == by}
        for field in section.model_fields.values():
            for inner in keys.sections_of(field.annotation):
                marked_keys |= marked(inner, by)
        return marked_keys

    read: set[str] = set()
    for name in TASKS:
        options = TASKS[name]
        assert options.tag() == name
        assert task_class(name).options is options
        assert options.best_metric in options.metrics
        assert "loss" in options.metrics
        assert set(options.example_roles) <= set(options.roles)
        known = {role for form in options.formats for role in FORMATS[form].roles}
        assert set(options.roles) <= known
        for form in options.formats:
            needed = {role for role, required in FORMATS[form].roles.items() if required}
            assert needed <= set(options.roles), form
        read |= options.reads
    assert read == marked(RunConfig, "task")
    by_methods = [options.reads for options in METHODS.values()]
    assert set().union(*by_methods) == marked(RunConfig, "method")
