"""Templates that are missing, that refuse a conversation, or that do not fit training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from peftlab.errors import CheckFailed, ConfigError, DataError
from peftlab.tasks.language.causal_lm import CausalLM
from peftlab.tasks.language.causal_rows import Chats
from peftlab.tasks.language.chat.prompts import turn_end_ids
from peftlab.tasks.language.chat.template import default_template, read_template
from tests.tasks.language.chat.tokenizers import CHATML, tokenizer_of

datasets = pytest.importorskip("datasets")

TALK = [
    {"role": "user", "content": "What is two?"},
    {"role": "assistant", "content": "<think>Hm.</think>Two."},
    {"role": "user", "content": "And more?"},
    {"role": "assistant", "content": "<think>Well.</think>Four."},
]
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def encode(tokenizer: Any, talk: Any, rows: Chats | None = None) -> Any:
    task = CausalLM(rows or Chats()).attach(tokenizer, None)
    data = datasets.Dataset.from_list([{"messages": talk, "prompt_messages": 0}] * 5)
    return task.encode(data, tokenizer, max_length=400)


def test_default_template() -> None:
    plain = tokenizer_of("plain")
    assert default_template(plain).startswith("{{ bos_token }}")
    assert "### " in default_template(plain)
    assert "bos_token" not in default_template(tokenizer_of("plain", bos=False))
    chatml = tokenizer_of("chatml")
    assert "<|im_start|>" in default_template(chatml)
    plain.eos_token = None
    with pytest.raises(CheckFailed, match="no chat template, and no end token"):
        default_template(plain)


def test_of_several_templates_the_default_is_used() -> None:
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = {"default": CHATML, "tool_use": "{{ messages }}"}
    task = CausalLM(Chats()).attach(tokenizer, None)
    assert task.state()["template"] == CHATML
    assert isinstance(tokenizer.chat_template, dict)
    tokenizer.chat_template = {"rag": "{{ messages }}"}
    with pytest.raises(CheckFailed, match=r"none of its chat templates is called default \(rag\)"):
        CausalLM(Chats()).attach(tokenizer, None)


def test_the_date_of_training_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = "{% set day = strftime_now('%Y') %}Year {{ day }}\n" + CHATML
    task = CausalLM(Chats()).attach(tokenizer, None)
    question = task.input_row("What is two?")
    then = task.rows.prompts([question], tokenizer, 99)
    assert "Year 2" in tokenizer.decode(then[0])
    monkeypatch.setattr(
        "transformers.utils.chat_template_utils.datetime", None
    )  # whoever asks for the date now fails
    again = CausalLM.from_state(task.state()).attach(tokenizer_of("chatml"), None)
    assert again == task
    assert again.rows.prompts([question], tokenizer, 99) == then


def trained(tokenizer: Any, row: Any) -> str:
    return str(tokenizer.decode([label for label in row["labels"] if label != -100]))


def test_a_template_that_drops_reasoning(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = FORGETFUL
    encoded = encode(tokenizer, TALK)
    assert [trained(tokenizer, row) for row in encoded.rows][:3] == [
        "<think>Hm.</think>Two.<|im_end|>", "<think>Well.</think>Four.<|im_end|>",
        "<think>Hm.</think>Two.<|im_end|>",
    ]  # fmt: skip
    assert (encoded.statistics.rows, encoded.statistics.conversations) == (10, 5)
    assert caplog.text.count("5 conversations give 10 rows, one for each trained turn") == 1
    encoded = encode(tokenizer, TALK, Chats("completion"))
    assert (encoded.statistics.rows, encoded.statistics.conversations) == (5, 0)
    text = tokenizer.decode(encoded.rows[0]["input_ids"])
    assert "Hm." not in text
    assert text.endswith("assistant\n<think>Well.</think>Four.<|im_end|>")


def test_a_prompt_that_differs_by_thought_tags(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = CHATML.replace(
        "assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"
    )
    encoded = encode(tokenizer, [TALK[0], {"role": "assistant", "content": "Two."}])
    assert trained(tokenizer, encoded.rows[0]) == "Two.<|im_end|>"
    assert caplog.text.count("differs from these conversations by white space or thought") == 1
    assert turn_end_ids(tokenizer) == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)


def test_a_prompt_that_the_conversation_does_not_start_with() -> None:
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = CHATML.replace(
        "assistant\n{% endif %}", "assistant\nWell: {% endif %}"
    )
    with pytest.raises(DataError, match="does not start with the prompt of turn 2"):
        encode(tokenizer, [TALK[0], {"role": "assistant", "content": "Two."}])
    assert turn_end_ids(tokenizer) == ()


def test_a_template_without_a_generation_prompt_trains_no_header() -> None:
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = CHATML[: CHATML.index("{% if add_generation_prompt")]
    encoded = encode(tokenizer, TALK)
    assert trained(tokenizer, encoded.rows[0]) == (
        "<think>Hm.</think>Two.<|im_end|><think>Well.</think>Four.<|im_end|>"
    )


def test_marks_of_generation_narrow_what_is_trained() -> None:
    tokenizer = tokenizer_of("plain")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% endfor %}"
    )
    encoded = encode(
        tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    )
    assert trained(tokenizer, encoded.rows[0]) == "b</s>"


@pytest.mark.parametrize(
    ("template", "turns", "message"),
    [
        ("{% for m in messages if m.role != 'tool' %}{{ m.content }}{% endfor %}",
         [("user", "a"), ("tool", "42"), ("assistant", "b")],
         "omits the content of turn 2, of role 'tool'"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}",
         [("user", "what"), ("assistant", "b")], "omits the content of turn 1.*changes its text"),
        ("{% for m in messages %}{{ m.content + m.name.first }}{% endfor %}",
         [("user", "a"), ("assistant", "b")], "refuses turns of user, assistant: 'dict object'"),
    ],
)  # fmt: skip
def test_what_a_template_does_not_take(
    template: str, turns: list[tuple[str, str]], message: str
) -> None:
    tokenizer = tokenizer_of("plain")
    tokenizer.chat_template = template
    talk = [{"role": role, "content": content} for role, content in turns]
    with pytest.raises(DataError, match=message):
        encode(tokenizer, talk)


def test_gemma_takes_no_system_turn_and_needs_turns_to_alternate() -> None:
    tokenizer = tokenizer_of("gemma")
    task = CausalLM(Chats(system="Be brief.")).attach(tokenizer, None)
    with pytest.raises(DataError, match=r"row 1 to predict: .*System role not supported"):
        task.rows.prompts([task.input_row("a")], tokenizer, 99)
    with pytest.raises(DataError, match="roles must alternate"):
        encode(tokenizer, [TALK[0], *TALK])
    for talk in ([TALK[1]], [{"role": "system", "content": "a"}]):
        with pytest.raises(DataError, match="row 1 to predict: the conversation has no turn"):
            task.rows.prompts([{"messages": talk}], tokenizer, 99)
    with pytest.raises(DataError, match="row 1 to predict has no 'messages'"):
        task.rows.check([{"text": "a"}])


def test_tools_are_taken_where_the_template_has_them() -> None:
    tokenizer = tokenizer_of("chatml")
    talk = [TALK[0], {"role": "tool", "content": "2"}, TALK[1]]
    row = encode(tokenizer, talk).rows[0]
    assert "<|im_start|>tool\n2<|im_end|>" in tokenizer.decode(row["input_ids"])


def test_templates_from_files(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
                    "{% if loop.last %}{% break %}{% endif %}{% endfor %}")  # fmt: skip
    assert read_template(str(file)) == file.read_text()
    for content, reason in (
        ("{% for m in messages %}", "chat.jinja:1 is not a Jinja template"),
        ("hello", "it reads no messages"),
        (b"\xff\xfe", "cannot be read: it is not UTF-8 text"),
    ):
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ConfigError, match=reason):
            read_template(str(file))
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_template(str(tmp_path / "nowhere.jinja"))
