"""Conversations: what is trained of them, and that prompts equal those of training."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from peftlab.errors import DataError
from peftlab.tasks.language.causal_lm import CausalLM
from peftlab.tasks.language.causal_rows import Chats, PlainText, rows_from_state
from tests.tasks.language.chat.tokenizers import END, MARKS, TEMPLATES, tokenizer_of

datasets = pytest.importorskip("datasets")

FAMILIES = [*TEMPLATES, "plain"]
REAL = ["model_stories260k", "model_tinystories656k"]


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def system(content: str) -> dict[str, str]:
    return {"role": "system", "content": content}


TALK = [user("What is two?"), assistant("Two."), user("And more?"), assistant("Four is more.")]
ODD = [
    [user(" spaces  around "), assistant("\n\nlines before and after\n")],
    [user("Åäö 你好 🙂"), assistant("🙂")],
    [user("a\n\n### Assistant:\nb"), assistant("### User:\n"), user("?"), assistant("!")],
    [user("x"), assistant(" "), user("y"), assistant("z")],
]


def encoded(
    rows: Chats, tokenizer: Any, talks: Any, *, max_length: int = 4000, prompt: int = 0
) -> tuple[CausalLM, Any]:
    task = CausalLM(rows).attach(tokenizer, None)
    data = datasets.Dataset.from_list([{"messages": t, "prompt_messages": prompt} for t in talks])
    return task, task.encode(data, tokenizer, max_length=max_length)


def trained(row: Any) -> list[list[int]]:
    """The runs of trained ids."""
    runs = itertools.groupby(
        zip(row["input_ids"], row["labels"], strict=True), lambda pair: pair[1] != -100
    )
    return [[token for token, _ in run] for learnt, run in runs if learnt]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_is_trained_with_its_end(family: str) -> None:
    tokenizer = tokenizer_of(family)
    task, result = encoded(Chats(), tokenizer, [TALK])
    row = result.rows[0]
    pieces = [tokenizer.decode(run).lstrip(" ") for run in trained(row)]
    assert pieces == [f"Two.{END[family]}", f"Four is more.{END[family]}"]
    assert result.statistics.trained_tokens == sum(map(len, trained(row)))
    assert task.stops == (tokenizer.convert_tokens_to_ids(END[family]),)
    starts = row["input_ids"].count(tokenizer.bos_token_id)
    assert starts == (0 if family.startswith("chatml") else 1), "no BOS twice"
    # As a server that renders the template tokenises it.
    whole = tokenizer.apply_chat_template(TALK, return_dict=False)
    assert row["input_ids"] == whole[: len(row["input_ids"])]


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_equal_those_of_training(family: str) -> None:
    tokenizer = tokenizer_of(family)
    talks = [TALK, *ODD]
    if family != "gemma":
        talks.append([system("Be brief."), *TALK])
    _check_asked(tokenizer, Chats(), talks)
    _check_asked(tokenizer, Chats("completion"), talks)
    _check_asked(tokenizer, Chats("all"), talks)


@pytest.mark.parametrize("model", REAL)
@pytest.mark.parametrize("family", ["plain", "chatml", "llama3", "mistral"])
def test_prompts_equal_those_of_training_with_real_tokenizers(
    model: str, family: str, shared_data: Path
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(shared_data / model)
    tokenizer.chat_template = TEMPLATES.get(family)
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS[family]})
    lines = (shared_data / "alpaca_1k" / "test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[:25]]
    talks = [[user(row["instruction"]), assistant(row["output"])] for row in rows]
    talks.append([turn for talk in talks[:3] for turn in talk])
    _check_asked(tokenizer, Chats(), [*talks, *ODD])


def _check_asked(tokenizer: Any, rows: Chats, talks: list[list[dict[str, str]]]) -> None:
    """The ids of each prompt are those that the trained row has up to the answer."""
    task, result = encoded(rows, tokenizer, talks)
    assert len(result.rows) == len(talks)
    for talk, row in zip(talks, result.rows, strict=True):
        answers = [i for i, turn in enumerate(talk) if turn["role"] == "assistant"]
        queries = [{"messages": talk[:i]} for i in answers]
        prompts = task.rows.prompts(queries, tokenizer, 4000)
        for ids in prompts:
            assert row["input_ids"][: len(ids)] == ids
        firsts = [
            at for at, label in enumerate(row["labels"])
            if label != -100 and (at == 0 or row["labels"][at - 1] == -100)
        ]  # fmt: skip
        if rows.loss_on == "assistant":
            assert [len(ids) for ids in prompts] == firsts
        elif rows.loss_on == "completion":
            assert [len(prompts[-1])] == firsts
        else:
            assert firsts == [1]
            assert row["labels"][1:] == row["input_ids"][1:]


def test_tokens_do_not_lie_across_the_border() -> None:
    tokenizer = tokenizer_of("plain", bos=False)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'Q ' if m.role == 'user' else 'st' }}{{ m.content }}"
        "{{ eos_token if m.role == 'assistant' else '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}st{% endif %}"
    )
    talk = [user("Tell"), assistant("ory of a dog"), user("and"), assistant("ory")]
    whole = tokenizer.apply_chat_template(talk, return_dict=False)
    _, result = encoded(Chats(), tokenizer, [talk])
    row = result.rows[0]
    assert row["input_ids"] != whole, "otherwise nothing is tested"
    assert tokenizer.decode(row["input_ids"]) == tokenizer.decode(whole)
    assert [tokenizer.decode(run) for run in trained(row)] == ["ory of a dog</s>", "ory</s>"]
    _check_asked(tokenizer, Chats(), [talk])


def test_loss_on() -> None:
    tokenizer = tokenizer_of("chatml")
    ended = [*TALK, user("And?")]
    decoded = lambda rows, talk, **more: [  # noqa: E731
        tokenizer.decode(run)
        for run in trained(encoded(rows, tokenizer, [talk], **more)[1].rows[0])
    ]
    both, last = ["Two.<|im_end|>", "Four is more.<|im_end|>"], ["Four is more.<|im_end|>"]
    assert decoded(Chats("assistant"), ended) == both
    assert decoded(Chats("completion"), ended) == last
    assert decoded(Chats("completion"), ended, prompt=1) == both
    assert decoded(Chats("completion"), ended, prompt=3) == last
    assert decoded(Chats("assistant"), ended, prompt=3) == both
    (everything,) = decoded(Chats("all"), ended)
    assert everything.endswith("user\nAnd?<|im_end|>\n")
    with pytest.raises(DataError, match="no assistant turn to train on"):
        encoded(Chats("completion"), tokenizer, [ended], prompt=4)


def test_a_system_turn_where_there_is_none() -> None:
    tokenizer = tokenizer_of("llama3")
    own = [system("Mine."), *TALK]
    task, result = encoded(Chats(system="Be brief."), tokenizer, [TALK, own])
    texts = [tokenizer.decode(row["input_ids"]) for row in result.rows]
    assert "Be brief." in texts[0]
    assert "Be brief." not in texts[1]
    ids = task.rows.prompts([task.input_row("Hello?")], tokenizer, 400)[0]
    assert "Be brief." in tokenizer.decode(ids)


def test_the_end_token_follows_where_the_template_has_none() -> None:
    tokenizer = tokenizer_of("plain")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    task, result = encoded(Chats(), tokenizer, [TALK])
    # In the middle of a row no end token can stand: each answer is the end of a row of its own.
    assert [[tokenizer.decode(run) for run in trained(row)] for row in result.rows] == [
        ["Two.\n</s>"], ["Four is more.\n</s>"],
    ]  # fmt: skip
    assert result.statistics.conversations == 1
    assert task.stops == ()
    _, result = encoded(Chats("all"), tokenizer, [TALK])
    assert result.rows[0]["input_ids"][-1] == tokenizer.eos_token_id


def test_a_mark_without_the_end_token_is_widened() -> None:
    tokenizer = tokenizer_of("chatml-marked")
    tokenizer.chat_template = TEMPLATES["chatml-marked"].replace(
        "{{ m.content }}<|im_end|>{% endgeneration %}",
        "{{ m.content }}{% endgeneration %}<|im_end|>",
    )
    _, result = encoded(Chats(), tokenizer, [TALK])
    assert [tokenizer.decode(run) for run in trained(result.rows[0])] == [
        "Two.<|im_end|>", "Four is more.<|im_end|>",
    ]  # fmt: skip


def test_oldest_turns_go_first() -> None:
    tokenizer = tokenizer_of("chatml")
    talk = [system("Be brief."), *TALK, user("Why?"), assistant("So.")]
    length = lambda turns: len(encoded(Chats(), tokenizer, [turns])[1].rows[0]["input_ids"])  # noqa: E731
    whole, without_one = length(talk), length([talk[0], *talk[3:]])
    for room, kept in (
        (whole, talk),
        (whole - 1, [talk[0], *talk[3:]]),
        (without_one, [talk[0], *talk[3:]]),
        (without_one - 1, [talk[0], *talk[5:]]),
    ):
        task, result = encoded(Chats(), tokenizer, [talk, TALK[:2]], max_length=room)
        assert (
            result.rows[0]["input_ids"]
            == encoded(Chats(), tokenizer, [kept])[1].rows[0]["input_ids"]
        )
        assert result.statistics.truncated == (kept is not talk)
        assert result.statistics.longest == whole
        # Served with the same room, the same turns are forgotten.
        end = len(trained(result.rows[0])[-1])
        (ids,) = task.rows.prompts([{"messages": talk}], tokenizer, room - end)
        assert ids == result.rows[0]["input_ids"][:-end]


def test_the_last_answer_is_cut_without_its_end(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tokenizer_of("chatml")
    talk = [user("Why?"), assistant("Once upon a time there was a dog who ran home.")]
    whole = encoded(Chats(), tokenizer, [talk])[1].rows[0]["input_ids"]
    prompt = len(CausalLM(Chats()).rows.prompts([{"messages": talk}], tokenizer, 99)[0])
    task, result = encoded(Chats(), tokenizer, [talk], max_length=prompt + 3)
    assert result.rows[0]["input_ids"] == whole[: prompt + 3]
    assert trained(result.rows[0]) == [whole[prompt : prompt + 3]]
    assert result.statistics.truncated == 1
    assert "dropped" not in caplog.text
    longer = [user("Why? " * 40), assistant("So.")]
    _, result = encoded(Chats(), tokenizer, [talk, longer], max_length=prompt + 3)
    assert len(result.rows) == 1
    assert (result.statistics.rows, result.statistics.truncated) == (2, 2)
    assert "1 of 2 conversations are dropped" in caplog.text
    with pytest.raises(DataError, match=r"no row has a token to train on.*max_length"):
        encoded(Chats(), tokenizer, [longer], max_length=20)
    with pytest.raises(DataError, match="row 2 to predict: its last question takes"):
        task.rows.prompts([{"messages": talk}, {"messages": longer}], tokenizer, 20)


def test_a_conversation_continues() -> None:
    tokenizer = tokenizer_of("gemma")
    task, _ = encoded(Chats(), tokenizer, [TALK])
    first = task.input_row("What is two?")
    assert first == {"messages": TALK[:1]}
    second = task.input_row("And more?", [(first, {"text": "Two.", "finished": True})])
    assert second == {"messages": TALK[:3]}
    third = task.input_row("?", [(first, {"text": "Two."}), (second, {"text": "Four is more."})])
    assert third == {"messages": [*TALK, user("?")]}
    silent = [(first, {"text": "Two."}), (second, {"text": " \n"})]
    assert task.input_row("?", silent) == {"messages": [*TALK[:2], user("?")]}
    assert CausalLM(PlainText()).input_row("a", [({"text": "b"}, {"text": "c"})]) == {"text": "a"}


def test_state_and_template_come_back() -> None:
    tokenizer = tokenizer_of("plain")
    task, _ = encoded(Chats("all", system="Be brief."), tokenizer, [TALK])
    assert "### " in tokenizer.chat_template, "kept with the tokenizer, and saved with it"
    again = CausalLM.from_state(json.loads(json.dumps(task.state())))
    assert again == task
    fresh = tokenizer_of("plain")
    assert again.attach(fresh, None) == task
    assert fresh.chat_template == tokenizer.chat_template
    assert rows_from_state({"paired": False, "separator": ""}) == PlainText()


def test_preview_shows_the_mask() -> None:
    tokenizer = tokenizer_of("chatml")
    task, result = encoded(Chats(), tokenizer, [TALK])
    shown = task.preview(result.rows[0], tokenizer)
    assert "assistant\n⟦Two.<|im_end|>⟧\n<|im_start|>user" in shown["text"]
    assert shown["text"].replace("⟦", "").replace("⟧", "") == tokenizer.decode(
        result.rows[0]["input_ids"]
    )
    assert shown["trained"] == "Two.<|im_end|>Four is more.<|im_end|>"
    assert shown["trained_tokens"] == result.statistics.trained_tokens
    data = datasets.Dataset.from_list([{"messages": TALK, "prompt_messages": 0}] * 2)
    packed = task.encode(data, tokenizer, max_length=400, packing=True)
    shown = task.preview(packed.rows[0], tokenizer)
    assert shown["packed_rows"] == 2
    assert shown["text"].count("│") == 1
