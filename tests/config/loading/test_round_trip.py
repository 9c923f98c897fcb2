"""Whatever is configured, the configuration written into a run can be run again."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from peftlab.config import RunConfig, config_from_mapping, dump_yaml, load_config, resolved_mapping
from peftlab.config.loading.source import parse_mapping
from peftlab.config.tasks.options import TASKS

# Text that YAML 1.1 or 1.2 would take for something else, beside any other.
TRAPS = st.sampled_from(
    ["5e-4", "1e10", "no", "yes", "on", "null", "~", "1:30", "2020-01-01", "010", "0x1F", ".nan",
     "<<", "=", "a: b", "- a", "[x", "{x", "#", "a #b", "'", '"', "&a", "*a", "!a", "%a", "@a", "`",
     "true", "1_000", "caf\u00e9", "a\tb", " a ", "a\nb", "\u2028", "\U0001f600", "|", ">", "?",
     "---"]
)  # fmt: skip
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1) | TRAPS
COUNT = st.integers(1, 2**31 - 1)
AMOUNT = st.floats(0, 1e6, allow_subnormal=False)
SHARE = st.floats(0, 0.999)


def some(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any of these keys, or none."""
    return st.fixed_dictionaries({}, optional=keys)


ADAPTER = {
    "r": st.integers(1, 256),
    "alpha": st.floats(0.01, 1e4),
    "dropout": SHARE,
    "target_modules": st.sampled_from(["auto", "all-linear"]) | st.lists(TEXT, min_size=1),
    "modules_to_save": st.just("auto") | st.lists(TEXT, min_size=1),
    "use_rslora": st.booleans(),
    "init_from": st.none() | TEXT,
}


def named(name: str, **keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return some(**keys).map(lambda found: {"name": name, **found})


def methods(task: str) -> st.SearchStrategy[dict[str, Any]]:
    pooling = {"pooling": st.sampled_from(["auto", "cls", "mean", "last", "model"])}
    return st.one_of(
        named("head", cache_limit=st.sampled_from(["2GiB", "500 MB", "0"]),
              **(pooling if "method.pooling" in TASKS[task].reads else {})),
        named("last_n", n=COUNT),
        named("lora", use_dora=st.booleans(), **ADAPTER),
        named("qlora", bits=st.just(4), **ADAPTER),
        named(
            "qlora",
            bits=st.just(8),
            arithmetic=st.sampled_from(["auto", "w8a8", "w8a16"]),
            error_tolerance=st.floats(0, 100),
            **ADAPTER,
        ),
        named("full"),
    )  # fmt: skip


TRAIN = some(
    num_train_epochs=st.floats(0.01, 1e6),
    global_batch_size=COUNT,
    learning_rate=st.just("auto") | st.floats(1e-12, 10),
    lr_scheduler_type=TEXT,
    warmup_steps=SHARE | st.integers(1, 1000),
    weight_decay=AMOUNT,
    adam_epsilon=st.floats(1e-12, 1),
    save_every=st.sampled_from(["epoch", "never"]) | COUNT,
    allocator=st.sampled_from(["auto", "off"]),
    seed=st.integers(0, 2**32 - 1),
)
PENALTIES = some(l1=AMOUNT, l2=AMOUNT, l2_sp=AMOUNT).flatmap(
    lambda found: (
        some(scope=st.sampled_from(["head", "trainable"])) if any(found.values()) else some()
    ).map(lambda scope: found | scope)
)
OUTPUT = some(dir=TEXT, overwrite=st.booleans(), report_to=st.lists(TEXT), plots=st.booleans())
BENCH = some(
    methods=st.lists(
        st.sampled_from(["head", "last_n:3", "lora:4", "qlora8", "full"])
        | st.fixed_dictionaries(
            {"method": methods("text-classification")},
            optional={"label": TEXT, "train": some(seed=st.integers(0, 9), optim=TEXT)},
        ),
        min_size=1,
    ),
    seeds=st.integers(1, 9),
    untuned=st.booleans(),
)


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    task = draw(st.sampled_from(tuple(TASKS)))
    options = TASKS[task]
    metrics = sorted(options.metrics)
    found: dict[str, Any] = {
        "model": draw(some(revision=st.none() | TEXT, trust_remote_code=st.booleans())),
        "task": task,
        "data": draw(
            some(
                subset=TEXT,
                columns=st.dictionaries(st.sampled_from(options.roles), TEXT),
                splits=some(
                    validation=st.none() | TEXT | st.floats(0.01, 0.99), test=st.none() | TEXT
                ),
                max_length=st.just("auto") | st.integers(2, 9999),
                max_train_samples=st.none() | COUNT,
            )
        ),
        "method": draw(methods(task)),
        "regularization": draw(PENALTIES),
        "train": draw(TRAIN),
        "eval": draw(
            some(
                every=st.sampled_from(["epoch", "never"]) | COUNT,
                metrics=st.just("auto") | st.lists(st.sampled_from(metrics), min_size=1),
                best=st.sampled_from(metrics),
            )
        ),
        "output": draw(OUTPUT),
    }
    found["model"]["name"] = draw(TEXT)
    found["data"]["source"] = draw(TEXT)
    if task == "text-classification":
        found["bench"] = draw(BENCH)
    if "data.packing" in options.reads:
        found["data"]["packing"] = draw(st.booleans())
    if "eval.generation" in options.reads:
        sampling = draw(st.booleans())
        found["eval"]["generation"] = {"do_sample": sampling} | (
            {"temperature": draw(st.floats(0.1, 2))} if sampling else {}
        )
    return found


@given(configurations())
def test_the_resolved_configuration_is_the_same_configuration(mapping: dict[str, Any]) -> None:
    config = config_from_mapping(mapping)
    resolved = resolved_mapping(config)
    text = dump_yaml(resolved)
    again = config_from_mapping(parse_mapping(text, "dump").values)
    assert again == config
    # Written out a second time nothing changes, and nothing is lost on the way through JSON.
    assert dump_yaml(resolved_mapping(again)) == text
    assert config_from_mapping(json.loads(json.dumps(resolved))) == config
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


@settings(max_examples=3 * settings.default.max_examples)
@given(TEXT)
def test_any_text_survives_yaml(text: str) -> None:
    values = {"a": text, "b": [text], "c": {"d": text}}
    assert parse_mapping(dump_yaml(values), "dump").values == values


def test_other_readers_of_yaml_read_the_same_text() -> None:
    import yaml

    values = {"a": ["no", "5e-4", "1:30", "2020-01-01", "~", "010"], "b": 5e-4, "c": None}
    assert yaml.safe_load(dump_yaml(values)) == values


def test_keys_that_nothing_reads_are_not_written() -> None:
    said = ["model.name=m", "data.source=d", "method=head"]
    classifier = resolved_mapping(load_config(None, [*said, "task=text-classification"]).config)
    assert "packing" not in classifier["data"]
    assert "generation" not in classifier["eval"]
    assert "gradient_checkpointing" not in classifier["train"]
    assert classifier["method"] == {"name": "head", "pooling": "auto", "cache_limit": "2GiB"}
    assert "bench" not in classifier
    language_model = resolved_mapping(load_config(None, [*said, "task=causal-lm"]).config)
    assert "pooling" not in language_model["method"]
    assert language_model["eval"]["generation"]["max_new_tokens"] == 64
