"""What to do about a conversation that cannot be trained, by the reason."""

from __future__ import annotations

import re

_FILE = "task.chat_template=FILE"

# The first pattern that a reason has: what follows the reason.
_ADVICE = (
    (r"task\.loss_on is all", ""),
    (r"no assistant turn to train on", "add an answer, or one whose weight is not 0"),
    (
        r"refuses turns of system\b.*[Ss]ystem|refuses turns of developer\b",
        f"put the instruction into the first user turn (or leave task.system out), or give a "
        f"template with system turns ({_FILE})",
    ),
    (r"refuses turns of", f"change the turns to what it takes, or give another template ({_FILE})"),
    (
        r"does not render the tools",
        f"give a template that renders tools ({_FILE}), or leave the tools out of the row",
    ),
    (
        r"omits the thought",
        f"give a template that writes thoughts ({_FILE}), or leave the thoughts out of the row",
    ),
    (
        r"omits (a call|an argument)|the argument .* is not in",
        f"give a template that writes tool calls ({_FILE})",
    ),
    (r"without an end token|no end token ends", "set eos_token in tokenizer_config.json"),
    (r"rare letters|it has more than", "leave the row out"),
    (
        r"does not start with the prompt|of another turn|the header of a role",
        f"train on the last answers alone (task.loss_on=completion), or give another template "
        f"({_FILE})",
    ),
)


def with_advice(reason: str) -> str:
    """A reason for which a row is refused, and the way out that fits it."""
    for pattern, advice in _ADVICE:
        if re.search(pattern, reason):
            return f"{reason}; {advice}." if advice else f"{reason}."
    return f"{reason}; give another template ({_FILE})."
