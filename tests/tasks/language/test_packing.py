from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from peftlab.errors import CheckFailed
from peftlab.tasks.language.causal_lm import CausalLM
from peftlab.tasks.language.causal_rows import Chats, Pairs, PlainText
from peftlab.tasks.language.isolation import check_packed, require_isolation
from peftlab.tasks.language.loss.hidden_states import model_inputs
from peftlab.tasks.language.packing import best_fit, pack
from tests.tasks.language.chat.tokenizers import tokenizer_of

datasets = pytest.importorskip("datasets")


def test_bins_hold_every_row_once() -> None:
    draw = random.Random(0)
    for capacity in (1, 7, 64):
        lengths = [draw.randint(1, capacity) for _ in range(200)]
        bins = best_fit(lengths, capacity)
        assert sorted(itertools.chain(*bins)) == list(range(200))
        assert all(sum(lengths[row] for row in rows) <= capacity for rows in bins)
        fewest = -(-sum(lengths) // capacity)
        assert len(bins) <= 11 / 9 * fewest + 1 or capacity == 1
        assert bins == best_fit(lengths, capacity)


def test_bins_by_hand() -> None:
    assert best_fit([3, 7, 4, 6, 10], 10) == [[4], [1, 0], [3, 2]]
    # The fullest bin that still has room is taken, not the first.
    assert best_fit([6, 7, 3, 3], 10) == [[1, 2], [0, 3]]
    assert best_fit([], 10) == []
    assert best_fit([10, 10], 10) == [[0], [1]]


CONVERSATION = [
    {"role": "user", "content": "What is two and two?"},
    {"role": "assistant", "content": "Four."},
    {"role": "user", "content": "And more?"},
    {"role": "assistant", "content": "Five is more than four."},
]
ROWS = {
    "text": (PlainText("isolated"), [{"text": "Once upon a time." * n} for n in (1, 2, 7, 3)]),
    "pairs": (
        Pairs("\n"),
        [{"prompt": "What is two?", "completion": "Two." * n} for n in (1, 5, 2, 9)],
    ),
    "chats": (
        Chats(),
        [{"messages": CONVERSATION[:n], "prompt_messages": 0} for n in (2, 4, 2, 4)],
    ),
}
MODELS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=400, max_position_embeddings=128,
    ),
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=128, vocab_size=400, bos_token_id=1,
        eos_token_id=2,
    ),
    "bloom": lambda: transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=400),
}  # fmt: skip


def model_of(family: str, attention: str | None = None) -> Any:
    torch.manual_seed(0)
    settings = {} if attention is None else {"attn_implementation": attention}
    model = transformers.AutoModelForCausalLM.from_config(
        MODELS[family](), dtype=torch.float32, **settings
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model.eval()


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize(
    ("family", "attention"), [("llama", "sdpa"), ("llama", "eager"), ("gpt2", "sdpa")]
)
def test_packed_logits_and_loss_are_those_of_the_rows_alone(
    kind: str, family: str, attention: str
) -> None:
    rows, given = ROWS[kind]
    tokenizer, model = tokenizer_of("chatml"), model_of(family, attention)
    task = CausalLM(rows).attach(tokenizer, model)
    data = datasets.Dataset.from_list(given)
    alone = task.encode(data, tokenizer, max_length=128)
    packed = task.encode(data, tokenizer, max_length=128, packing=True)
    assert len(packed.rows) < len(alone.rows)
    assert packed.statistics.rows == len(alone.rows)
    assert packed.statistics.trained_tokens == alone.statistics.trained_tokens
    collate = task.collator(tokenizer)
    single = {
        tuple(row["input_ids"]): model(**model_inputs(collate([row])), use_cache=False).logits[0]
        for row in alone.rows
    }
    # Side by side, so that shorter ones are padded.
    batch = collate(list(packed.rows))
    logits = model(**model_inputs(batch), use_cache=False).logits
    seen = 0
    for row, results in zip(packed.rows, logits, strict=True):
        borders = [at for at, position in enumerate(row["position_ids"]) if position == 0]
        for start, end in itertools.pairwise([*borders, len(row["input_ids"])]):
            expected = single[tuple(row["input_ids"][start:end])]
            torch.testing.assert_close(results[start:end], expected, atol=2e-5, rtol=2e-5)
            assert row["labels"][start] == -100
            seen += 1
    assert seen == len(alone.rows)
    whole = sum(float(task.loss_sum(model, collate([row])).detach()) for row in alone.rows)
    assert float(task.loss_sum(model, batch).detach()) == pytest.approx(whole, rel=1e-5)
    assert task.count_items(batch) == alone.statistics.trained_tokens
    scores = task.score(model, batch)
    assert scores["loss"].sum() == pytest.approx(whole, rel=1e-5)
    assert int(batch["attention_mask"].sum()) == packed.statistics.tokens


def test_gradients_of_packed_rows_are_those_of_the_rows() -> None:
    rows, given = ROWS["pairs"]
    tokenizer, model = tokenizer_of("plain"), model_of("llama")
    task = CausalLM(rows)
    data = datasets.Dataset.from_list(given)
    collate = task.collator(tokenizer)
    results = []
    for packing in (False, True):
        model.zero_grad()
        encoded = task.encode(data, tokenizer, max_length=128, packing=packing)
        task.loss_sum(model, collate(list(encoded.rows))).backward()
        results.append([parameter.grad.clone() for parameter in model.parameters()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_leak_is_detected() -> None:
    rows, given = ROWS["chats"]
    tokenizer, model = tokenizer_of("chatml"), model_of("bloom")
    data = datasets.Dataset.from_list(given)
    task = CausalLM(rows).attach(tokenizer, model)
    with pytest.raises(CheckFailed, match=r"data\.packing cannot be used with BloomForCausalLM"):
        task.encode(data, tokenizer, max_length=128, packing=True)
    task.encode(data, tokenizer, max_length=128)
    # Where no two rows share a sequence there is nothing to find.
    task.encode(data.select([0]), tokenizer, max_length=128, packing=True)


def test_a_model_that_ignores_positions_is_refused() -> None:
    model = model_of("llama")
    own = type(model).forward

    class Deaf(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
            return own(self, *args, **kwargs)

    model.__class__ = Deaf
    with pytest.raises(CheckFailed, match="differ from those of the row alone"):
        require_isolation(model, [5, 6, 7], [8, 9, 10])
    require_isolation(model.to("meta"), [5, 6, 7], [8, 9, 10])
    check_packed(None, datasets.Dataset.from_dict({"position_ids": [[0, 1, 0]]}))


def test_sixteen_bits_are_not_a_leak() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        require_isolation(model_of("llama").to(dtype), list(range(5, 30)), list(range(40, 60)))


def test_long_text_is_packed_in_pieces() -> None:
    tokenizer = tokenizer_of("plain")
    texts = ["Once upon a time there was a little dog. " * n for n in (1, 9, 3)]
    data = datasets.Dataset.from_dict({"text": texts})
    task = CausalLM(PlainText("isolated"))
    packed = task.encode(data, tokenizer, max_length=50, packing=True)
    whole = task.encode(data, tokenizer, max_length=10_000).statistics
    assert packed.statistics.tokens == whole.tokens
    assert packed.statistics.truncated == 0
    assert all(len(row["input_ids"]) <= 50 for row in packed.rows)
    assert sum(row["input_ids"].count(tokenizer.bos_token_id) for row in packed.rows) == 3
    wrapped = CausalLM(PlainText()).encode(data, tokenizer, max_length=50, packing=True)
    assert "position_ids" not in wrapped.rows.column_names


def test_packing_keeps_what_is_there(shared_data: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(shared_data / "model_tinystories656k")
    data = datasets.Dataset.from_json(str(shared_data / "tinystories_1k" / "validation.jsonl"))
    alone = CausalLM(PlainText()).encode(data, tokenizer, max_length=64)
    packed = pack(alone, 64)
    ids = lambda rows: np.sort(np.concatenate(rows["input_ids"]))  # noqa: E731
    np.testing.assert_array_equal(ids(alone.rows), ids(packed.rows))
    assert packed.statistics == alone.statistics
