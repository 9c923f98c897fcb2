"""Rows of every form that conversations have, each text unique where the form allows it."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def turn(role: str, content: Any = None, **more: Any) -> Row:
    return {"role": role, **({} if content is None else {"content": content}), **more}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up_weather",
            "description": "Reads a thermometer.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Where to read it."}},
                "required": ["city"],
            },
        },
    }
]
QUESTION, ANSWER = "Which colour has quartz?", "Mostly white or clear."
SECOND, REPLY = "And how hard is it?", "Seven on the scale of Mohs."
THOUGHT, AFTERTHOUGHT = "They ask about a mineral.", "Hardness is wanted now."


def _call(content: str | None) -> list[Row]:
    call = {
        "id": "abcdefghi",
        "type": "function",
        "function": {
            "name": "look_up_weather",
            "arguments": {"city": "Old Sarum", "unit": "kelvin"},
        },
    }
    return [
        turn("user", "How warm is it in that town?"),
        turn("assistant", content, tool_calls=[call]),
        turn("tool", "291 degrees", name="look_up_weather", tool_call_id="abcdefghi"),
        turn("assistant", "It is mild outside."),
    ]


def rows(end: str) -> dict[str, Row]:
    """A row of each form; `end`: the end token of the template's answers."""
    plain = [turn("user", QUESTION), turn("assistant", ANSWER)]
    several = [*plain, turn("user", SECOND), turn("assistant", REPLY)]
    tagged = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"
    again = f"<think>\n{AFTERTHOUGHT}\n</think>\n\n{REPLY}"
    talks: dict[str, list[Row]] = {
        "plain": plain,
        "system": [turn("system", "Speak as a geologist."), *plain],
        "two systems": [
            turn("system", "Speak as a geologist."), turn("system", "Use few words."), *plain,
        ],
        "several turns": several,
        "thoughts in the content": [plain[0], turn("assistant", tagged)],
        "reasoning_content": [plain[0], turn("assistant", ANSWER, reasoning_content=THOUGHT)],
        "thinking": [plain[0], turn("assistant", ANSWER, thinking=THOUGHT)],
        "thoughts in the content, several turns": [
            plain[0], turn("assistant", tagged), several[2], turn("assistant", again),
        ],
        "reasoning_content, several turns": [
            plain[0], turn("assistant", ANSWER, reasoning_content=THOUGHT),
            several[2], turn("assistant", REPLY, reasoning_content=AFTERTHOUGHT),
        ],
        "tool call": _call(None),
        "tool call with text": _call("Let me read the instrument."),
        "tools without a call": plain,
        "content parts": [
            turn(t["role"], [{"type": "text", "text": t["content"]}]) for t in several
        ],
        "developer": [turn("developer", "Speak as a geologist."), *plain],
        "two answers in a row": [*plain, turn("assistant", REPLY)],
        "empty answer": [plain[0], turn("assistant", "")],
        "outer white space": [
            turn("user", f" \n{QUESTION} "), turn("assistant", f"\n\n {ANSWER}\n"),
        ],
        "inner white space": [
            turn("user", "Which\n\n  colour\thas it?"),
            turn("assistant", "White,\n\n\n    or  clear."),
        ],
        "repeated answers": [
            turn("user", "Yes."), turn("assistant", "Yes."), turn("user", "Yes."),
            turn("assistant", "Yes."),
        ],
        "names of roles": [
            turn("user", "assistant"), turn("assistant", "user"), turn("user", "system"),
            turn("assistant", "assistant"),
        ],
        "decomposed accents": [
            turn("user", "Cafe\u0301 or the\u0301?"),
            turn("assistant", "Cre\u0300me bru\u0302le\u0301e."),
        ],
        "end token in a text": [
            turn("user", f"What does {end} mean?"),
            turn("assistant", f"The mark {end} ends a turn."),
        ],
        "</think> in a text": [
            turn("user", "What does </think> mean?"),
            turn("assistant", "The tag </think> ends it."),
        ],
    }  # fmt: skip
    return {
        form: {"messages": talk, "tools": TOOLS} if form.startswith("tool") else {"messages": talk}
        for form, talk in talks.items()
    }
