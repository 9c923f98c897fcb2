"""Run by `test_distributed.py` in each of two processes: data parallel training of a fused model.

Prints, as JSON and by kind of training, how often the kernels were called in one step, why the
first layer falls back outside and inside of the forward pass, the gradients that are missing, and
the largest error of a gradient against the mean over both batches of a plain PEFT model.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from peftlab.fusion import fuse
from peftlab.fusion.guards import why_not
from peftlab_kernels import functional
from tests.fusion.common import adapted_tiny, batch, gradients, layer_of
from tests.hanging import HANGS_AFTER

WORLD = 2


def fsdp2(model: nn.Module) -> nn.Module:
    for block in model.modules():
        if isinstance(block, LlamaDecoderLayer):
            fully_shard(block)
    fully_shard(model)
    return model


def fsdp1(model: nn.Module) -> nn.Module:
    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=ModuleWrapPolicy({LlamaDecoderLayer}),
        use_orig_params=True,
        device_id=torch.device("cpu"),
    )


WRAPS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "ddp": DistributedDataParallel,
    "fsdp2": fsdp2,
    "fsdp1": fsdp1,
}


def rows(rank: int) -> dict[str, Tensor]:
    """Each process's own batch: rows rolled by its rank, of equal numbers of labels."""
    return {
        name: torch.cat([t[:1], t[:1].roll(rank + 1, dims=-1)])
        for name, t in batch("llama").items()
    }


def truth() -> dict[str, Tensor]:
    """Loss and mean gradients of both batches, by PEFT in one process."""
    model = adapted_tiny("llama")
    loss = torch.stack([model(**rows(rank)).loss for rank in range(WORLD)]).mean()
    loss.backward()
    return gradients(model)


def whole(gradient: Any) -> Tensor:
    full: Tensor = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    return full


def step(how: str, rank: int) -> dict[str, Any]:
    """One step's forward and backward."""
    expected = truth()
    model = adapted_tiny("llama")
    first = layer_of(model)
    fuse(model)
    wrapped = WRAPS[how](model)
    calls = 0
    real = functional.lora_linear

    @functools.wraps(real)
    def spy(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return real(*args, **kwargs)

    functional.lora_linear = spy
    inside: list[str | None] = []
    outside = why_not(first)
    first.register_forward_pre_hook(lambda *_: inside.append(why_not(first)))
    try:
        wrapped(**rows(rank)).loss.backward()
    finally:
        functional.lora_linear = real
    errors = {}
    if how == "fsdp1":
        with FullyShardedDataParallel.summon_full_params(wrapped, with_grads=True):
            result = gradients(wrapped)
    else:
        result = gradients(wrapped)
    for name, gradient in result.items():
        plain = name.removeprefix("module.").replace("_fsdp_wrapped_module.", "")
        # FSDP1 keeps one flat gradient, which has a place for frozen weights too.
        want = expected.pop(plain, torch.zeros(()).double())
        errors[plain] = float((whole(gradient) - want).norm() / (want.norm() or 1.0))
    return {
        "calls": calls,
        "outside": outside,
        "inside": inside,
        "missing": sorted(expected),
        "error": max(errors.values()),
    }


def main(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("default")  # FSDP1 warns of frozen weights beside adapters
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD,
        timeout=timedelta(seconds=HANGS_AFTER),
    )  # fmt: skip
    reports = {how: step(how, rank) for how in WRAPS}
    if rank == 0:
        print(json.dumps(reports))
    dist.barrier()
    dist.destroy_process_group()
