"""What a conversation's row holds beside its turns: tools on offer, variables of the template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftlab.data.formats.cells import Cells, parsed
from peftlab.data.formats.chat_turns import own_keys


def tools_of(cells: Cells) -> list[dict[str, Any]] | None:
    """The tools on offer, each as `{type, function: {name, ...}}`; None where there are none."""
    value = cells.values.get("tools")
    tools = own_keys(cells, parsed(value))
    if tools is None or tools == [] or (isinstance(value, str) and not value.strip()):
        return None
    made = []
    for given in tools if isinstance(tools, list) else [tools]:
        tool = parsed(given)
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            cells.wrong(f"column {cells.column('tools')!r} holds {given!r:.40}, not a tool: an "
                        "object with a name")  # fmt: skip
            return None
        made.append({**({} if function is tool else tool), "type": "function",
                     "function": dict(function)})  # fmt: skip
    return made


RESERVED = frozenset({
    "messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template",
    "conversation", "tokenize", "padding", "truncation", "max_length", "return_tensors",
    "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens",
})  # fmt: skip
"""Names that a chat template's variables cannot have."""


def variables_of(cells: Cells) -> dict[str, Any] | None:
    """Variables of the chat template for one row."""
    value = cells.values.get("chat_template_kwargs")
    variables = own_keys(cells, parsed(value))
    if not variables:
        return None
    column = cells.column("chat_template_kwargs")
    if not isinstance(variables, Mapping):
        cells.wrong(f"column {column!r} holds {value!r:.40}, not an object")
        return None
    if taken := sorted(RESERVED & variables.keys()):
        cells.wrong(f"column {column!r} sets {', '.join(taken)}, which the row itself gives")
    return dict(variables)
