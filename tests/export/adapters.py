"""Tiny bases on disk with PEFT adapters that do something, for what merges them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

FAMILIES = ("bert", "gpt2", "t5", "llama")
TASKS = {"bert": "SEQ_CLS", "gpt2": "CAUSAL_LM", "t5": "SEQ_2_SEQ_LM", "llama": "CAUSAL_LM"}
EMBEDDING = {"gpt2": "wte", "llama": "embed_tokens"}
LINEAR = {"bert": "query", "gpt2": "c_attn", "t5": "q", "llama": "q_proj"}


def tiny(family: str, *, tied: bool = True, dtype: torch.dtype = torch.float32) -> Any:
    """A random model of a family; BERT has a head of three labels."""
    import transformers as t

    torch.manual_seed(0)
    small: dict[str, Any] = {"vocab_size": 50, "tie_word_embeddings": tied}
    if family == "bert":
        small = {"vocab_size": 50, "intermediate_size": 48, "num_attention_heads": 4}
        config: Any = t.BertConfig(hidden_size=32, num_hidden_layers=2, num_labels=3, **small)
        model: Any = t.BertForSequenceClassification(config)
    elif family == "gpt2":
        small |= {"n_positions": 32, "bos_token_id": 1, "eos_token_id": 2}
        model = t.GPT2LMHeadModel(t.GPT2Config(n_embd=32, n_layer=2, n_head=4, **small))
    elif family == "t5":
        small |= {"num_heads": 4, "decoder_start_token_id": 0, "d_kv": 8}
        model = t.T5ForConditionalGeneration(t.T5Config(d_model=32, d_ff=48, num_layers=2, **small))
    else:
        small |= {"intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
        model = t.LlamaForCausalLM(t.LlamaConfig(hidden_size=32, num_hidden_layers=2, **small))
    return model.to(dtype)


class Made:
    """A base and an adapter below a folder; `kind` is the base's class, `model` the PEFT model."""

    def __init__(
        self,
        folder: Path,
        family: str,
        *,
        tied: bool = True,
        dtype: torch.dtype = torch.float32,
        prepare: Callable[[Any], object] | None = None,
        bare: bool = False,
        shards: str | None = None,
        **config: Any,
    ) -> None:
        model = tiny(family, tied=tied, dtype=dtype)
        self.kind, self.family, self.dtype = type(model), family, dtype
        self.base, self.adapter, self.out = folder / "base", folder / "adapter", folder / "out"
        saved = model.base_model if bare else model
        saved.save_pretrained(self.base, **({"max_shard_size": shards} if shards else {}))
        torch.manual_seed(1)
        loaded = self.load(self.base)
        if prepare is not None:
            prepare(loaded)
        settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
        settings |= {"task_type": TASKS[family], "fan_in_fan_out": family == "gpt2"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model: Any = get_peft_model(loaded, LoraConfig(**settings | config))
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad and "base_layer" not in name:
                    torch.nn.init.normal_(parameter, std=0.1)
            self.model.save_pretrained(self.adapter)

    def load(self, folder: Path) -> Any:
        """The model in a folder by Transformers alone; nothing may be missing or left over."""
        result, info = self.kind.from_pretrained(folder, dtype=self.dtype, output_loading_info=True)
        if folder == self.out:
            assert info["missing_keys"] == info["unexpected_keys"] == set()
        return result.eval()

    def merged_by_peft(self) -> dict[str, Tensor]:
        """The state that PEFT's own merge makes of the base."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: Any = PeftModel.from_pretrained(self.load(self.base), str(self.adapter))
            state: dict[str, Tensor] = model.merge_and_unload().state_dict()
        return state

    def logits(self, model: Any) -> Tensor:
        """For a fixed batch, in fp32."""
        ids = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(2))
        more = {"decoder_input_ids": ids[:, :4]} if self.family == "t5" else {}
        with torch.no_grad():
            result: Tensor = model.eval()(input_ids=ids, **more).logits
        return result.float()
