from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from peftlab.config import (
    config_from_mapping,
    dump_yaml,
    json_schema,
    load_config,
    resolved_mapping,
    template,
)
from peftlab.config.loading import keys as schema_keys
from peftlab.config.loading.source import parse_mapping
from peftlab.config.methods.options import METHODS
from peftlab.config.tasks.options import TASKS
from peftlab.errors import ConfigError

CASES = [(task, method) for task in TASKS for method in tuple(METHODS)]


@pytest.mark.parametrize(("task", "method"), CASES)
def test_a_template_runs_as_it_stands(task: str, method: str) -> None:
    text = template("5e-4", task, "./my data.csv", method)
    config = config_from_mapping(parse_mapping(text, "t").values)
    assert config.model.name == "5e-4"
    assert config.data.source == "./my data.csv"
    assert (config.task.name, config.method.name) == (task, method)


@pytest.mark.parametrize(("task", "method"), CASES)
def test_every_commented_key_may_be_uncommented_alone(task: str, method: str) -> None:
    lines = template("m", task, "d", method).splitlines()
    defaults = config_from_mapping(parse_mapping("\n".join(lines), "t").values)
    uncommented = 0
    for i, line in enumerate(lines):
        changed = re.sub(r"^( +)# (\w+:)", r"\1\2", line)
        if changed == line:
            continue
        uncommented += 1
        text = "\n".join([*lines[:i], changed, *lines[i + 1 :]])
        config = config_from_mapping(parse_mapping(text, "t").values)
        if "columns:" not in line:
            assert config == defaults, changed
    assert uncommented >= 30


@pytest.mark.parametrize(("task", "method"), CASES)
def test_a_template_names_every_key_that_is_read(task: str, method: str) -> None:
    text = template("m", task, "d", method)
    config = config_from_mapping(parse_mapping(text, "t").values)

    def leaves(mapping: dict[str, Any]) -> set[str]:
        found = set()
        for key, value in mapping.items():
            found |= leaves(value) if isinstance(value, dict) and value else {key}
        return found

    written = set(re.findall(r"^\s*(?:# )?(\w+):", text, re.MULTILINE))
    assert leaves(resolved_mapping(config)) <= written
    assert "packing" not in written or "data.packing" in TASKS[task].reads


def test_a_template_for_nothing_known() -> None:
    with pytest.raises(ConfigError, match="did you mean causal-lm"):
        template("m", "causal-ml", "d", "lora")
    with pytest.raises(ConfigError, match=r"method.name is 'lorra'"):
        template("m", "causal-lm", "d", "lorra")


def test_every_key_is_described() -> None:
    undescribed = [
        key for key, field in schema_keys.every_key(None).items() if not field.description
    ]
    # A method's name, which has no default to comment on.
    assert undescribed == ["method.name"]


def test_the_json_schema_has_every_key_and_spelling() -> None:
    schema = json_schema()
    definitions = schema["$defs"]
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"model", "task", "data", "method"}
    assert {"alpha", "lora_alpha", "dropout", "lora_dropout"} <= set(
        definitions["LoraOptions"]["properties"]
    )
    assert {"warmup_steps", "warmup_ratio"} <= set(definitions["TrainConfig"]["properties"])
    # Method peft takes every key of PEFT's dataclass, which no schema here lists.
    open_ended = {"PeftOptions"}
    for name, definition in definitions.items():
        assert definition["additionalProperties"] is (name in open_ended)
    for key, names in (("method", tuple(METHODS)), ("task", TASKS)):
        bare, whole = schema["properties"][key]["anyOf"]
        assert bare["enum"] == list(names)
        assert set(whole["discriminator"]["mapping"]) == set(names)
    properties: set[str] = set()
    for definition in (schema, *definitions.values()):
        properties |= set(definition["properties"])
    assert {key.rpartition(".")[2] for key in schema_keys.every_key(None)} <= properties


def test_a_long_path_with_spaces_stays_in_one_piece(tmp_path: Path) -> None:
    path = "/home/me/" + "my reviews of films " * 6 + "from 2024.csv"
    assert len(path) > 120
    text = template(path, "text-classification", path, "lora")
    assert text.count(path) == 2
    file = tmp_path / "run.yaml"
    file.write_text(text)
    config = load_config(file, ()).config
    assert (config.model.name, config.data.source) == (path, path)
    file.write_text(dump_yaml(resolved_mapping(config)))
    assert path in file.read_text()
    assert load_config(file, ()).config == config
