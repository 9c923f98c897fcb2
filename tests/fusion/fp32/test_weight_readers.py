"""Which weights are read outside their own module, detected in the code of any class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from peftlab.fusion.fp32.weight_readers import weights_read_outside
from peftlab.fusion.fp32.widen import widen
from tests.fusion.sixteen_bits import adapted, tiny


class Reader(nn.Module):
    """Reads the weights of `own`, `deep.inner` and `helped`, and not of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.helped, self.called, self.inspected, self.unreached = (
            nn.Linear(4, 4) for _ in range(5)
        )
        self.deep = nn.ModuleDict({"inner": nn.Linear(4, 4)})
        self.scale = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.called(x.to(self.own.weight.dtype)).to(self.inspected.weight.device)

        def nested(y: Tensor) -> Tensor:
            return F.linear(y, self.deep.inner.weight)

        return self.scale(self.help(nested(x)))

    def help(self, x: Tensor) -> Tensor:
        return x @ self.helped.weight[:4]

    def not_reached_from_forward(self) -> Tensor:
        return self.unreached.weight + 1


def test_what_forward_reaches_is_read() -> None:
    reader = Reader()
    result = weights_read_outside(nn.ModuleList([reader]))
    assert result == dict.fromkeys([reader.own, reader.helped, reader.deep["inner"]], "Reader")


def test_a_model_that_reads_computes_in_fp32() -> None:
    torch.manual_seed(0)
    reader, x = Reader().requires_grad_(False).bfloat16(), torch.randn(3, 4)
    plain = Reader()
    plain.load_state_dict(reader.state_dict())
    report = widen(reader)
    assert report.linears == ("called", "inspected", "unreached")
    torch.testing.assert_close(reader(x), plain(x))
    assert {w.name for w in report.widened} == {"own", "helped", "deep.inner", "scale"}


def names(model: nn.Module) -> set[str]:
    result = weights_read_outside(model)
    return {name for name, module in model.named_modules() if module in result}


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "bart"])
def test_ordinary_models_read_none(family: str) -> None:
    assert names(tiny(family)) == set()
    assert names(adapted(tiny(family))) == set()


def test_t5_reads_wo_through_pefts_wrappers_too() -> None:
    blocks = [
        *(f"encoder.block.{i}.layer.1.DenseReluDense.wo" for i in (0, 1)),
        *(f"decoder.block.{i}.layer.2.DenseReluDense.wo" for i in (0, 1)),
    ]
    assert names(tiny("t5")) == set(blocks)
    assert names(adapted(tiny("t5"))) == {f"base_model.model.{b}.base_layer" for b in blocks}
    saved: Any = get_peft_model(
        tiny("t5"), LoraConfig(target_modules=["q"], modules_to_save=["wo"])
    )
    assert names(saved) == {
        f"base_model.model.{block}.{part}"
        for block in blocks
        for part in ("original_module", "modules_to_save.default")
    }


def test_deberta_and_trainable_tokens_read_a_table() -> None:
    import transformers

    config = transformers.DebertaV2Config(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=48, relative_attention=True, pos_att_type=["c2p"], position_buckets=8,
    )  # fmt: skip
    assert names(transformers.DebertaV2Model(config)) == {"encoder.rel_embeddings"}
    tokens = get_peft_model(
        tiny("llama"), LoraConfig(target_modules=["q_proj"], trainable_token_indices=[3])
    )
    (name,) = names(tokens)
    assert (
        tokens.get_submodule(name)
        is tokens.get_submodule(  # type: ignore[operator]
            "base_model.model.model.embed_tokens"
        ).original_module
    )
