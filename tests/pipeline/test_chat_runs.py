"""Runs on conversations, prompts and text: trained, evaluated, predicting, exported, refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import peftlab
from peftlab.errors import PeftlabError
from peftlab.pipeline.untuned import evaluate_untuned
from tests.checkpoints import write_checkpoint
from tests.tasks.language.chat.tokenizers import tokenizer_of

pytestmark = pytest.mark.slow

TALKS = [
    [("user", f"name number {n}"), ("assistant", f"a {word} dog"), ("user", "and"),
     ("assistant", f"the {word} cat {n}")]
    for n, word in enumerate(["good", "bad", "happy", "sad", "great", "dull", "nice", "cheap"])
]  # fmt: skip


def messages_of(talk: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in talk]


ROWS = {
    "messages": [{"messages": messages_of(talk)} for talk in TALKS],
    "sharegpt": [
        {"conversations": [
            {"from": {"user": "human", "assistant": "gpt"}[role], "value": content}
            for role, content in talk
        ]}
        for talk in TALKS
    ],
    "alpaca": [
        {"instruction": talk[0][1], "input": talk[2][1], "output": talk[3][1]} for talk in TALKS
    ],
    "prompt-completion": [{"prompt": talk[0][1], "completion": talk[3][1]} for talk in TALKS],
    "text": [{"text": " ".join(content for _, content in talk)} for talk in TALKS],
}  # fmt: skip


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def config_of(model: Path, source: Path, out: Path, **changes: Any) -> dict[str, Any]:
    config: dict[str, Any] = {
        "model": {"name": str(model)},
        "task": {"name": "causal-lm"},
        "data": {"source": str(source), "splits": {"validation": None}},
        "method": {"name": "full"},
        "train": {
            "max_steps": 20, "global_batch_size": 8, "learning_rate": 1e-2, "warmup_steps": 0,
            "lr_scheduler_type": "constant", "save_every": "never",
        },
        "eval": {"every": "never", "generation": {"max_new_tokens": 12}},
        "output": {"dir": str(out), "plots": False},
    }  # fmt: skip
    for path, value in changes.items():
        section, key = path.split("__")
        config[section][key] = value
    return config


@pytest.fixture(scope="session")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Random models of 256 positions, with a tokenizer for every character."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            positions = {"gpt2": "n_positions", "llama": "max_position_embeddings"}[family]
            folder = tmp_path_factory.mktemp(f"speaking-{family}")
            write_checkpoint(folder, family, "causal", **{positions: 256, "vocab_size": 400})
            tokenizer_of("plain").save_pretrained(folder)
            made[family] = folder
        return made[family]

    return make


@pytest.mark.parametrize(
    ("form", "family", "packing"),
    [
        (form, ("gpt2", "llama")[(number + packing) % 2], packing)
        for number, form in enumerate(ROWS) for packing in (False, True)
    ],
)  # fmt: skip
def test_eight_rows_are_learnt_and_come_back(
    form: str,
    family: str,
    packing: bool,
    speaking: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = write(tmp_path / "rows", ROWS[form])
    model = speaking(family)
    config = config_of(model, source, tmp_path / "run", data__packing=packing)
    if packing:
        config["data"]["max_length"] = 200
        config["task"]["packing"] = "isolated"
    untuned = evaluate_untuned(peftlab.load_config(config))["test"]["loss"]
    with caplog.at_level("INFO", "peftlab"):
        run = peftlab.train(config)
    assert ("8 rows packed into" in caplog.text) == packing
    assert "packed into 8 sequences" not in caplog.text
    loss = run.metrics["test"]["loss"]
    assert loss < untuned / 2
    again = peftlab.load_run(run.folder)
    assert again.evaluate("test")["loss"] == pytest.approx(loss, rel=1e-5)
    row = {k: v for k, v in ROWS[form][0].items() if k not in ("output", "completion")}
    assert run.predict([row, "name number 3"]) == again.predict([row, "name number 3"])


REAL = {
    # data set, model, method, packing, further options of the task
    "alpaca": ("alpaca_1k", "model_tinystories656k", {"name": "lora"}, True, {}),
    "alpaca over 8 bits": ("alpaca_1k", "model_tinystories656k", {"name": "qlora"}, False, {}),
    "gsm8k": ("gsm8k", "model_tinystories656k", {"name": "full"}, True, {"loss_on": "all"}),
    "instruct_seed": (
        "instruct_seed", "model_stories260k", {"name": "last_n", "n": 2}, False,
        {"loss_on": "completion", "system": "Answer."},
    ),
    "tinystories": (
        "tinystories_1k", "model_stories260k", {"name": "lora"}, True, {"packing": "isolated"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REAL)
def test_real_sets(case: str, shared_data: Path, tmp_path: Path) -> None:
    data, model, method, packing, options = REAL[case]
    if method["name"] == "qlora":
        pytest.importorskip("bitsandbytes")
    config = config_of(shared_data / model, shared_data / data, tmp_path / "run")
    config["task"] |= options
    config["method"] = method
    config["data"] |= {
        "packing": packing, "max_length": 256, "max_train_samples": 64, "max_eval_samples": 8,
        "truncation": "silent",
    }  # fmt: skip
    config["train"] |= {"max_steps": 4, "learning_rate": 1e-3}
    run = peftlab.train(config)
    test = run.metrics["test"]
    assert math.isfinite(test["perplexity"])
    assert 0 < test["token_accuracy"] < 1
    (answer,) = run.predict(["Tell me a story about a dog."])
    assert isinstance(answer["text"], str)
    out = tmp_path / "merged"
    run.export(out)
    merged = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    message_row = run.task.input_row("Tell me a story about a dog.")
    if "messages" not in message_row:
        return
    # Other tools need no more than what was exported to ask as peftlab does, and to stop.
    turns = message_row["messages"]
    if options.get("system"):
        turns = [{"role": "system", "content": options["system"]}, *turns]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert ids == run.task.rows.prompts([message_row], run.loaded.tokenizer, 400)[0]
    assert tokenizer.eos_token_id in merged.generation_config.eos_token_id
    if method["name"] == "qlora":
        return
    made = merged.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
    text = tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True)
    assert text.strip() == answer["text"].strip()


def test_head_alone_is_refused_on_a_tied_model(shared_data: Path, tmp_path: Path) -> None:
    model, data = shared_data / "model_stories260k", shared_data / "alpaca_1k"
    config = config_of(model, data, tmp_path / "run")
    config["method"] = {"name": "head"}
    with pytest.raises(PeftlabError, match="tied"):
        peftlab.train(config)


def test_head_alone_on_packed_conversations(speaking: Any, tmp_path: Path) -> None:
    """Features of packed rows are those of the rows alone: both ways give the same loss."""
    source = write(tmp_path / "rows", ROWS["messages"])
    model = speaking("llama")
    losses = []
    for packing in (False, True):
        config = config_of(model, source, tmp_path / f"run-{packing}", data__packing=packing)
        config["data"]["max_length"] = 200
        config["method"] = {"name": "head"}
        # One step over all rows at once: packed or not, it is the same step.
        config["train"] |= {"max_steps": 3, "weight_decay": 0.0}
        losses.append(peftlab.train(config).metrics["test"]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_variables_and_tools_hold_in_training_prediction_and_export(
    speaking: Any, tmp_path: Path
) -> None:
    """What the template adds to a question is the same in all three."""
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% if tools %}{{ tools[0].function.name }}\n{% endif %}{% for m in messages %}"
        "{{ m.role }} {{ mood }}: {{ m.content }}{{ eos_token if m.role == 'assistant' }}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant {{ mood }}: {% endif %}"
    )
    tools = [{"name": "look", "parameters": {}}]
    talks = [{"messages": messages_of(talk), "tools": tools} for talk in TALKS]
    source = write(tmp_path / "rows", talks)
    config = config_of(speaking("llama"), source, tmp_path / "run", train__max_steps=2)
    config["task"] |= {"chat_template": str(template), "chat_template_kwargs": {"mood": "calm"}}
    run = peftlab.train(config)
    again = peftlab.load_run(run.folder)
    row = {"messages": messages_of(TALKS[0][:1]), "tools": tools}
    assert run.predict([row]) == again.predict([row])
    run.export(tmp_path / "merged")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    text = tokenizer.apply_chat_template(
        row["messages"], tools=[{"type": "function", "function": tools[0]}], tokenize=False,
        add_generation_prompt=True,
    )  # fmt: skip
    assert text == "look\nuser calm: name number 0\nassistant calm: "
    wrapped = {**row, "tools": [{"type": "function", "function": tools[0]}]}
    (ids,) = again.task.rows.prompts([wrapped], again.loaded.tokenizer, 200)
    assert tokenizer.decode(ids) == text
