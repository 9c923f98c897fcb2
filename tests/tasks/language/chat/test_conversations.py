"""Fields of conversations: what is rendered, what is trained, and at what cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from peftlab.errors import ConfigError, DataError
from peftlab.tasks.language.causal_lm import CausalLM
from peftlab.tasks.language.causal_rows import Chats
from peftlab.tasks.language.chat.conversation import Chat
from peftlab.tasks.language.chat.layouts import Layouts
from peftlab.tasks.language.chat.rendering import Renderer
from peftlab.tasks.language.chat.template import read_template, with_variables
from tests.tasks.language.chat.forms import TOOLS, rows, turn
from tests.tasks.language.chat.templates import end_of, tokenizer_for
from tests.tasks.language.chat.tokenizers import CHATML, LLAMA3, MISTRAL, tokenizer_of

datasets = pytest.importorskip("datasets")

THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if thinks is defined and not thinks %}<think></think>{% endif %}{% endif %}"
)


def encode(template: str, *given: dict[str, Any], task: Chats | None = None) -> tuple[Any, Any]:
    tokenizer = tokenizer_for(template)
    attached = CausalLM(task or Chats()).attach(tokenizer, None)
    stored = [
        {
            key: value if key == "prompt_messages" else json.dumps(value)
            for key, value in row.items()
        }
        for row in given
    ]
    data = datasets.Dataset.from_list(stored)
    return tokenizer, attached.encode(data, tokenizer, max_length=4000)


def trained(tokenizer: Any, row: Any) -> str:
    return str(tokenizer.decode([label for label in row["labels"] if label != -100]))


@pytest.mark.parametrize("flag", [{"weight": 0}, {"train": False}])
def test_an_answer_of_no_weight_is_context(flag: dict[str, Any]) -> None:
    bad, good = turn("assistant", "Wrong.", **flag), turn("assistant", "Right.", weight=1)
    talk = [turn("user", "One?"), bad, turn("user", "Two?"), good]
    tokenizer, encoded = encode(CHATML, {"messages": talk})
    assert trained(tokenizer, encoded.rows[0]) == "Right.<|im_end|>"
    assert "Wrong." in tokenizer.decode(encoded.rows[0]["input_ids"])
    with pytest.raises(DataError, match="no assistant turn to train on"):
        encode(CHATML, {"messages": talk[:2]})
    with pytest.raises(DataError, match="weight 0, or train false"):
        encode(CHATML, {"messages": talk}, task=Chats("all"))


def test_a_template_never_sees_the_keys_of_another_row() -> None:
    template = CHATML.replace("{{ m.content }}", "{{ m.content }}{{ m.keys() | list | length }}")
    thinks = {"messages": [turn("user", "a"), turn("assistant", "b", reasoning_content="c")]}
    _, encoded = encode(template, {"messages": [turn("user", "a"), turn("assistant", "b")]})
    tokenizer, both = encode(
        THINKING, {"messages": [turn("user", "a"), turn("assistant", "b")]}, thinks
    )
    assert "b2<|im_end|>" in tokenizer_for(template).decode(encoded.rows[0]["input_ids"])
    assert [trained(tokenizer, row) for row in both.rows] == [
        "b<|im_end|>", "<think>c</think>b<|im_end|>",
    ]  # fmt: skip


def test_numbers_among_the_arguments_are_trained() -> None:
    template = CHATML.replace(
        "{{ m.content }}",
        "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}",
    )
    call = {
        "type": "function",
        "function": {"name": "f", "arguments": {"n": 37, "s": ['a "q"'], "x": None}},
    }
    talk = [turn("user", "Go."), turn("assistant", "", tool_calls=[call])]
    tokenizer, encoded = encode(template, {"messages": talk})
    text = trained(tokenizer, encoded.rows[0])
    assert json.loads(text.removesuffix("<|im_end|>")) == call["function"]


def test_tools_of_a_row_are_rendered_or_refused() -> None:
    template = "{% if tools %}{{ tools | tojson }}{% endif %}" + CHATML
    talk = [turn("user", "Go."), turn("assistant", "No.")]
    tokenizer, encoded = encode(template, {"messages": talk, "tools": TOOLS})
    assert "look_up_weather" in tokenizer.decode(encoded.rows[0]["input_ids"])
    assert trained(tokenizer, encoded.rows[0]) == "No.<|im_end|>"
    with pytest.raises(DataError, match="does not render the tools of the row"):
        encode(CHATML, {"messages": talk, "tools": TOOLS})


def test_a_set_of_templates_has_one_for_rows_with_tools() -> None:
    marked = CHATML.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
    named = {"default": CHATML, "tool_use": "{{ tools | tojson }}{{ place }}" + marked}
    tokenizer = tokenizer_for(CHATML)
    tokenizer.chat_template = named
    task = CausalLM(Chats(variables={"place": "here"})).attach(tokenizer, None)
    talk = [turn("user", "Go."), turn("assistant", "No.")]
    rows_ = [{"messages": json.dumps(talk), "tools": tools} for tools in (None, json.dumps(TOOLS))]
    encoded = task.encode(datasets.Dataset.from_list(rows_), tokenizer, max_length=4000)
    texts = [tokenizer.decode(row["input_ids"]) for row in encoded.rows]
    assert ["look_up_weather" in text and "here<|im" in text for text in texts] == [False, True]
    assert [trained(tokenizer, row) for row in encoded.rows] == ["No.<|im_end|>"] * 2


def test_variables_hold_in_training_and_in_prompts() -> None:
    talk = [turn("user", "a"), turn("assistant", "b")]
    tokenizer = tokenizer_for(THINKING)
    task = CausalLM(Chats(variables={"thinks": False})).attach(tokenizer, None)
    ask = lambda **row: tokenizer.decode(  # noqa: E731
        task.rows.prompts([{"messages": talk, **row}], tokenizer, 99)[0]
    )
    assert ask().endswith("assistant\n<think></think>")
    assert ask(chat_template_kwargs={"thinks": True}).endswith("assistant\n")
    # Written into the template, they hold for whoever loads the exported tokenizer.
    text = tokenizer.apply_chat_template(talk[:1], tokenize=False, add_generation_prompt=True)
    assert text == ask()
    again = CausalLM.from_state(json.loads(json.dumps(task.state())))
    assert again == task
    assert again.attach(tokenizer_for(THINKING), None) == task


@pytest.mark.parametrize(
    "value", [True, None, 3, 0.5, 'it\'s "so"\n{{ x }}', ["a", {"b": [False]}], {"a": None}]
)
def test_values_of_variables(value: Any) -> None:
    template = "{{ given | tojson }}" + CHATML
    tokenizer = tokenizer_for(template)
    CausalLM(Chats(variables={"given": value})).attach(tokenizer, None)
    text = tokenizer.apply_chat_template([turn("user", "a")], tokenize=False)
    assert json.loads(text.split("<|im_start|>")[0]) == value


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt", "a b", "for"])
def test_names_that_are_no_variables(name: str) -> None:
    with pytest.raises(ConfigError, match="no variable that a template can be given"):
        CausalLM(Chats(variables={name: 1})).attach(tokenizer_for(CHATML), None)


def test_parts_for_templates_that_take_only_parts() -> None:
    template = CHATML.replace("{{ m.content }}", "{% for p in m.content %}{{ p.text }}{% endfor %}")
    tokenizer, encoded = encode(template, rows("")["several turns"])
    assert trained(tokenizer, encoded.rows[0]).count("<|im_end|>") == 2


def test_a_developer_is_a_system_where_the_template_has_no_such_role(
    caplog: pytest.LogCaptureFixture,
) -> None:
    template = CHATML.replace(
        "<|im_start|>{{ m.role }}",
        "{% if m.role == 'developer' %}{{ raise_exception('no') }}{% endif %}"
        "<|im_start|>{{ m.role }}",
    )
    row = rows("")["developer"]
    tokenizer, encoded = encode(template, row, row)
    assert "<|im_start|>system\nSpeak" in tokenizer.decode(encoded.rows[0]["input_ids"])
    assert caplog.text.count("no role 'developer'") == 1
    tokenizer, encoded = encode(CHATML, row)
    assert "<|im_start|>developer\nSpeak" in tokenizer.decode(encoded.rows[0]["input_ids"])


def _renders(template: str, given: list[dict[str, Any]]) -> int:
    layouts = Layouts(Renderer(tokenizer_for(template)))
    for row in given:
        layouts.rows(Chat.of(row, loss_on="assistant", system=None))
    return layouts.renderer.count


@pytest.mark.parametrize("form", ["plain", "several turns", "content parts", "tool call"])
def test_a_row_costs_about_one_render(form: str) -> None:
    template = "{% if tools %}{{ tools | tojson }}{% endif %}" + CHATML.replace(
        "{{ m.content }}", "{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}"
    )
    given = []
    for number in range(200):
        text = json.dumps(rows(end_of(template))[form])
        text = text.replace("Which colour", f"Which of {number} colours")
        text = text.replace("Sarum", f'Sarum \\"{number}\\"').replace("abcdefghi", f"call{number}")
        text = text.replace("thermometer", f"thermometer {number}")
        given.append(json.loads(text))
    assert _renders(template, given) <= 1.2 * len(given)


def test_rows_of_many_shapes_cost_two_renders() -> None:
    given = []
    for number in range(400):
        talk = []
        for at in range(1 + number % 7):
            talk += [
                turn("user", f"Question {at} of {number}?"),
                turn("assistant", f"Answer {at}."),
            ]
        given.append({"messages": talk})
    assert _renders(CHATML, given) <= 2 * len(given)


def test_a_row_of_one_shape_and_another_layout() -> None:
    """A template may look at texts: what was learnt of the first row is not believed of all."""
    template = CHATML.replace("{{ m.content }}", "{{ '!' if 'loud' in m.content }}{{ m.content }}")
    talks = [
        [turn("user", text), turn("assistant", "b")] for text in ("calm", "loud", "calm", "loud")
    ]
    tokenizer, encoded = encode(template, *({"messages": talk} for talk in talks))
    texts = [tokenizer.decode(row["input_ids"]) for row in encoded.rows]
    assert ["!loud" in text for text in texts] == [False, True, False, True]
    assert {trained(tokenizer, row) for row in encoded.rows} == {"b<|im_end|>"}


BY_HAND = {
    "chatml": (CHATML, "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n",
        "Yes.<|im_end|>",
    ),
    "llama3": (
        LLAMA3,
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "Yes.<|eot_id|>",
    ),
    "mistral": (MISTRAL, "<s>[INST] Hi. [/INST]", " Yes.</s>"),
    "thinking": (
        THINKING, "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n",
        "<think>Hm.</think>Yes.<|im_end|>",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_the_loss_is_that_of_tokens_laid_by_hand(name: str) -> None:
    template, prompt, answer = BY_HAND[name]
    thought = {"reasoning_content": "Hm."} if name == "thinking" else {}
    talk = [turn("user", "Hi."), turn("assistant", "Yes.", **thought)]
    tokenizer, encoded = encode(template, {"messages": talk})
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2,
        )
    )  # fmt: skip
    task = CausalLM(Chats()).attach(tokenizer, None)
    batch = task.collator(tokenizer)([encoded.rows[0]])
    loss = task.loss_sum(model, batch)
    head, tail = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer)
    )
    logits = model(torch.tensor([head + tail])).logits[0, len(head) - 1 : -1].double()
    reference = torch.nn.functional.cross_entropy(logits, torch.tensor(tail), reduction="sum")
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    assert task.count_items(batch) == len(tail)


def test_a_tokenizer_without_offsets() -> None:
    fast = tokenizer_of("chatml")
    slow = _Slow(fast)
    talk = [turn("user", "What is two?"), turn("assistant", "Two."), turn("user", "And more?"),
            turn("assistant", "Four.")]  # fmt: skip
    data = datasets.Dataset.from_list([{"messages": talk, "prompt_messages": 0}])
    one, other = (
        CausalLM(Chats()).attach(tokenizer, None).encode(data, tokenizer, max_length=400).rows[0]
        for tokenizer in (fast, slow)
    )
    assert one == other


class _Slow:
    """A tokenizer that says it has no offsets, and refuses to give any."""

    is_fast = False

    def __init__(self, fast: Any) -> None:
        self._fast = fast

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fast, name)

    def __call__(self, texts: Any, **options: Any) -> Any:
        assert "return_offsets_mapping" not in options
        return self._fast(texts, **options)


STRIKES = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("content", ["an <s>old</s> text", "an <s>old text", "plain"])
def test_a_text_that_opens_the_end_token_closes_nothing(content: str) -> None:
    """One end token, whatever rows of the same shape came before."""
    rows = [{"messages": [turn("user", "q"), turn("assistant", text)]} for text in (content, "no")]
    for order in (rows, rows[::-1]):
        tokenizer, encoded = encode(STRIKES, *order)
        ends = [trained(tokenizer, row) for row in encoded.rows]
        assert all(text.endswith("</s>") and not text.endswith("</s></s>") for text in ends)


def test_tools_that_a_template_leaves_out_are_refused_though_they_are_called() -> None:
    called = {"type": "function", "function": {"name": "weather", "arguments": {}}}
    tool = {"type": "function", "function": {"name": "weather", "description": "d"}}
    template = CHATML.replace("{{ m.content }}", "{{ m.content }}{{ m.tool_calls }}")
    talk = [turn("user", "weather?"), turn("assistant", "", tool_calls=[called])]
    for messages in (talk, [turn("user", "use weather"), turn("assistant", "ok")]):
        with pytest.raises(DataError, match="does not render the tools"):
            encode(template, {"messages": messages, "tools": [tool]})


def test_a_last_thought_that_the_template_leaves_out_is_refused_whatever_is_trained() -> None:
    talk = [turn("user", "q"), turn("assistant", "a", reasoning_content="THOUGHT")]
    for loss_on in ("assistant", "all"):
        with pytest.raises(DataError, match="omits the thought of turn 2"):
            encode(CHATML, {"messages": talk}, task=Chats(loss_on))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"enable_thinkng": False}, "reads no 'enable_thinkng'; did you mean enable_thinking"),
        ({"eos_token": "x"}, "'eos_token' is no variable"),
        ({"enable_thinking": float("inf")}, "inf is no value"),
    ],
)
def test_variables_without_effect_are_refused(variables: dict[str, Any], message: str) -> None:
    template = CHATML + "{% if enable_thinking %}{% endif %}"
    row = {"messages": [turn("user", "q"), turn("assistant", "a")]}
    with pytest.raises(ConfigError, match=message):
        encode(template, row, task=Chats(variables=variables))


def test_rare_letters_in_tools_and_what_a_template_computes(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "weather", "description": "\U00020bb7"}}
    template = "{{ tools }}" + CHATML
    row = {"messages": [turn("user", "q"), turn("assistant", "a")], "tools": [tool]}
    tokenizer, encoded = encode(template, row)
    assert trained(tokenizer, encoded.rows[0]) == "a<|im_end|>"
    with pytest.raises(DataError, match="refuses turns of user, assistant: division by zero"):
        encode("{{ 1 / 0 }}" + CHATML, {"messages": row["messages"]})
    file = tmp_path / "marked.jinja"
    file.write_text(CHATML, encoding="utf-8-sig")
    assert read_template(str(file)) == CHATML
    assert with_variables("\n\nLEAD{{ x }}", {"x": 1}).endswith("+%}\n\nLEAD{{ x }}")
