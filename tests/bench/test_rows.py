from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from peftlab.bench.rows import describe_settings, plan_rows, run_name
from peftlab.config.methods.full import FullOptions
from peftlab.config.methods.lora import LoraOptions, QLoraOptions
from peftlab.config.schema import RunConfig
from peftlab.errors import ConfigError

MakeConfig = Callable[..., RunConfig]


def test_rows_take_what_the_configured_method_says(config_of: MakeConfig, tmp_path: Path) -> None:
    rows = plan_rows(config_of({"methods": ["lora", "lora:16", "qlora8", "full"]}), tmp_path)
    lora, wider, eight, full = (row.method for row in rows)
    assert isinstance(lora, LoraOptions)
    assert isinstance(wider, LoraOptions)
    assert isinstance(eight, QLoraOptions)
    assert full == FullOptions(name="full")
    assert [(m.r, m.alpha, m.dropout) for m in (lora, wider, eight)] == [
        (4, 8, 0),
        (16, 32, 0),
        (4, 8, 0),
    ]


def test_a_form_that_names_no_method_is_refused(config_of: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="loar"):
        plan_rows(config_of({"methods": ["loar"]}), tmp_path)


def test_rows_differ_in_method_seed_and_folder_alone(config_of: MakeConfig, tmp_path: Path) -> None:
    config = config_of({"methods": ["lora", "full"], "seeds": 2}, train={"seed": 7})
    lora, full = plan_rows(config, tmp_path)
    assert [c.train.seed for c in lora.configs] == [7, 8]
    assert [Path(c.output.dir).relative_to(tmp_path).as_posix() for c in full.configs] == [
        "runs/full-1",
        "runs/full-2",
    ]
    for row in (lora, full):
        for c in row.configs:
            assert c.method == row.method
            assert c.data == config.data
            assert c.output.overwrite
            assert RunConfig.model_validate(c.model_dump(mode="json")) == c


def test_a_row_has_training_settings_of_its_own(config_of: MakeConfig, tmp_path: Path) -> None:
    row = {
        "label": "slow",
        "method": {"name": "full"},
        "train": {"learning_rate": 1e-4, "warmup_ratio": 0.2},
    }
    config = config_of({"methods": [row]}, train={"num_train_epochs": 5, "warmup_steps": 0.1})
    (planned,) = plan_rows(config, tmp_path)
    train = planned.configs[0].train
    assert planned.label == "slow"
    assert (train.learning_rate, train.warmup_steps, train.num_train_epochs) == (1e-4, 0.2, 5)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"learning_rat": 1}, "train.learning_rat "),
        ({"global_batch_size": 0}, "global_batch_size is 0"),
    ],
)
def test_a_rows_bad_settings_name_the_row(
    config_of: MakeConfig, tmp_path: Path, own: dict[str, object], said: str
) -> None:
    config = config_of({"methods": [{"label": "mine", "method": {"name": "full"}, "train": own}]})
    with pytest.raises(ConfigError, match=said) as caught:
        plan_rows(config, tmp_path)
    assert "'mine'" in str(caught.value)


def test_two_rows_of_one_name_are_refused(config_of: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two rows named 'lora'"):
        plan_rows(config_of({"methods": ["lora", "full", "lora"]}), tmp_path)


def test_one_rate_for_all_methods_is_said_aloud(
    config_of: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="peftlab"):
        plan_rows(config_of({"methods": ["lora", "full"]}, train={"learning_rate": 2e-5}), tmp_path)
    assert "2e-05 for every row" in caplog.text


def test_folder_names_are_safe() -> None:
    assert run_name("../../etc", 0, 1) == "etc"
    assert run_name("my row/ä", 1, 3) == "my-row-2"
    assert run_name("//", 0, 1) == "row"


def test_settings_say_what_differs(config_of: MakeConfig, tmp_path: Path) -> None:
    config = config_of({"methods": ["last_n:1", "qlora8"]}, train={"max_steps": 50})
    last, eight = plan_rows(config, tmp_path)
    assert (
        describe_settings(last.configs[0], 5e-4)
        == "last 1 block, learning rate 0.0005, 50 steps, batch size 16"
    )
    said = describe_settings(eight.configs[0], None)
    assert said == "r=4, alpha=8, dropout 0, int8 base, rate auto, 50 steps of 16"
