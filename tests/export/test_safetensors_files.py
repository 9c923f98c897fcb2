"""Files that are not what they say are refused by name, before anything is written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftlab.errors import CheckFailed
from peftlab.export.merge import merge
from peftlab.export.safetensors_files import Spec, stored_tensors, written

from .adapters import Made

pytestmark = [
    pytest.mark.poison_empty(False),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

STATE = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.arange(4, dtype=torch.int8),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
}


def with_header(file: Path, change: Callable[[dict[str, Any]], object], cut: int = 0) -> None:
    """Write the file again with its header changed, and its last bytes cut off."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    body = data[8 + length :]
    file.write_bytes(len(text).to_bytes(8, "little") + text + body[: len(body) - cut])


def test_read_as_the_library_reads(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "x.safetensors")
    result = stored_tensors(tmp_path / "x.safetensors")
    assert result.keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert torch.equal(result[name].read(), tensor)
        assert (
            b"".join(result[name].chunks())
            == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        )


def test_written_as_the_library_reads(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    names = {torch.float32: "F32", torch.int8: "I8", torch.bfloat16: "BF16"}
    specs = [Spec(name, names[t.dtype], tuple(t.shape)) for name, t in STATE.items()]
    with written(file, specs, {"format": "pt"}) as writer:
        for name, tensor in STATE.items():
            writer.tensor(name, tensor)
    result = load_file(file)
    assert result.keys() == STATE.keys()
    assert all(torch.equal(result[name], tensor) for name, tensor in STATE.items())


def test_what_was_not_announced_is_not_written(tmp_path: Path) -> None:
    spec = Spec("a", "F32", (2, 3))
    with (
        pytest.raises(ValueError, match="b comes where a was announced"),
        written(tmp_path / "x", [spec], {}) as writer,
    ):
        writer.tensor("b", STATE["a"])
    with (
        pytest.raises(ValueError, match=r"announced as F32 \(2, 3\) and is torch.int8"),
        written(tmp_path / "y", [spec], {}) as writer,
    ):
        writer.tensor("a", STATE["b"])
    with (
        pytest.raises(ValueError, match="a was announced and never written"),
        written(tmp_path / "z", [spec], {}),
    ):
        pass


@pytest.mark.parametrize(
    ("change", "cut", "message"),
    [
        (lambda h: None, 1, "is beyond its end"),
        (lambda h: h["a"].update(data_offsets=[0, 99]), 0, "is beyond its end"),
        (lambda h: h["a"].update(data_offsets=[24, 0]), 0, "is beyond its end"),
        (lambda h: h["a"].update(data_offsets=[-8, 16]), 0, "is beyond its end"),
        (lambda h: h["a"].update(shape=[2, 4]), 0, "a size that does not match its shape"),
        (lambda h: h["a"].update(shape=[-2, -3]), 0, "a size that does not match its shape"),
        (lambda h: h["b"].update(data_offsets=[2, 6]), 0, "overlap"),
        (lambda h: h["a"].pop("dtype"), 0, "dtype"),
        (lambda h: h.update(a=3), 0, "not a complete safetensors file"),
    ],
)
def test_broken_headers(
    change: Callable[[dict[str, Any]], object], cut: int, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "x.safetensors"
    save_file(STATE, file)
    with_header(file, change, cut)
    with pytest.raises(CheckFailed, match=message):
        stored_tensors(file)


@pytest.mark.parametrize(
    "data", [b"", b"short", b"\xff" * 64, (10**9).to_bytes(8, "little") + b"{}"]
)
def test_what_is_no_such_file(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(data)
    with pytest.raises(CheckFailed, match="is not a complete safetensors file"):
        stored_tensors(file)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file(STATE, file)
    result = stored_tensors(file)
    file.write_bytes(file.read_bytes()[:-30])
    *_, last = result.values()
    with pytest.raises(CheckFailed, match="is truncated"):
        last.read()
    with pytest.raises(CheckFailed, match="is truncated"):
        list(last.chunks())


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path, "llama", shards="20KB", target_modules=["q_proj"])


def renamed(base: Path, new: str) -> None:
    """Let the index name another file for the first shard."""
    file = base / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    first = min(index["weight_map"].values())
    for name, shard in index["weight_map"].items():
        if shard == first:
            index["weight_map"][name] = new
    file.write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "a/b.safetensors", "/etc/passwd"])
def test_shards_outside_of_the_folder_are_refused(name: str, made: Made) -> None:
    renamed(made.base, name)
    with pytest.raises(CheckFailed, match=re.escape(name)):
        merge(made.adapter, made.out, base=str(made.base))
    assert not made.out.exists()


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused(made: Made, tmp_path: Path) -> None:
    shard = min(made.base.glob("model-*.safetensors"))
    shard.rename(tmp_path / "elsewhere.safetensors")
    shard.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckFailed, match=shard.name):
        merge(made.adapter, made.out, base=str(made.base))
    assert not made.out.exists()


def test_a_missing_shard_is_named(made: Made) -> None:
    shard = max(made.base.glob("model-*.safetensors"))
    shard.unlink()
    with pytest.raises(CheckFailed, match=shard.name):
        merge(made.adapter, made.out, base=str(made.base))
    assert not made.out.exists()


def test_pickled_weights_are_refused(made: Made) -> None:
    state = {k: t for f in made.base.glob("*.safetensors") for k, t in load_file(f).items()}
    for file in made.base.glob("*.safetensors*"):
        file.unlink()
    torch.save(state, made.base / "pytorch_model.bin")
    with pytest.raises(CheckFailed, match="safetensors"):
        merge(made.adapter, made.out, base=str(made.base))
    (made.adapter / "adapter_model.safetensors").rename(made.adapter / "adapter_model.bin")
    with pytest.raises(CheckFailed, match="safetensors"):
        merge(made.adapter, made.out, base=str(made.base))
    assert not made.out.exists()
