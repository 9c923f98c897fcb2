"""GGUF through a stand-in for llama.cpp's converter: its arguments, and what its failing leaves."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.poison_empty(False)

Train = Callable[..., Any]
Cli = Callable[..., Any]

CONVERTER = '''
import json, struct, sys
from pathlib import Path

here = Path(__file__).parent
merged = Path(sys.argv[1])
names = sorted(p.name for p in merged.iterdir())
config = json.loads((merged / "config.json").read_text())
seen = {"arguments": sys.argv[1:], "files": names, "config": config}
(here / "seen.json").write_text(json.dumps(seen))
out = Path(sys.argv[sys.argv.index("--outfile") + 1])


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def model(tensors):
    """Version 3: a string value, and tensors of 32 fp32 zeros, aligned to 32 bytes."""
    head = b"GGUF" + struct.pack("<IQQ", 3, tensors, 1)
    head += text("general.architecture") + struct.pack("<I", 8) + text("llama")
    for i in range(tensors):
        head += text(f"t{i}") + struct.pack("<IQIQ", 1, 32, 0, 128 * i)
    return head + bytes(-len(head) % 32) + bytes(128 * tensors)


'''
WHOLE = "out.write_bytes(model(2))"


@pytest.fixture
def checkout(tmp_path: Path) -> Callable[[str], Path]:
    """`checkout(last_line)`: a folder with a converter that ends in that line."""

    def make(line: str = WHOLE) -> Path:
        folder = tmp_path / "llama cpp"
        folder.mkdir()
        (folder / "convert_hf_to_gguf.py").write_text(CONVERTER + line + "\n")
        return folder

    return make


@pytest.fixture
def run(trained: Train) -> Any:
    """A language model's run."""
    return trained("llama", name="lora", r=4)


@pytest.mark.parametrize(("dtype", "outtype"), [(None, "f32"), ("bfloat16", "bf16")])
def test_the_converter_is_given_the_merged_model(
    dtype: str | None, outtype: str, run: Any, checkout: Any, cli: Cli, tmp_path: Path
) -> None:
    out, there = tmp_path / "new folder" / "model.gguf", checkout()
    words = () if dtype is None else ("--dtype", dtype)
    ran = cli(
        "export", run.folder, "-o", out, "--to", "gguf", "--llama-cpp", there, "--json", *words
    )
    assert ran.code == 0, ran.err
    seen = json.loads((there / "seen.json").read_text())
    merged, *rest = seen["arguments"]
    assert rest[0::2] == ["--outfile", "--outtype"]
    assert rest[3] == outtype
    # Beside the file that it becomes, so that its rename stays on one disk; gone by now.
    assert Path(merged).parent == Path(rest[1]).parent
    assert Path(merged).parent.parent == out.parent
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= set(seen["files"])
    assert seen["config"]["architectures"] == ["LlamaForCausalLM"]
    assert out.read_bytes()[:4] == b"GGUF"
    assert [p.name for p in out.parent.iterdir()] == ["model.gguf"]
    report = json.loads(ran.out)
    assert report["file"] == str(out)
    assert report["tensors"] == (2 if importlib.util.find_spec("gguf") else None)
    assert report["merge"]["verified"]["logits"]["tokens"] > 0


FAILING: dict[str, tuple[str, int, str]] = {
    "refuses": ("sys.exit('ERROR: Model Foo is not supported')", 3, "Model Foo is not supported"),
    "raises": ("raise NotImplementedError('BPE pre-tokenizer')", 3, "NotImplementedError: BPE"),
    "writes nothing": ("print('done')", 3, "refused the merged model: done"),
    "is silent": ("", 3, "it printed nothing"),
    "half": ("out.write_bytes(model(2)[:40]); sys.exit(1)", 3, "it printed nothing"),
    "another format": ("out.write_bytes(b'GGML' + bytes(60))", 4, "is not a GGUF file"),
}


@pytest.mark.parametrize("how", FAILING)
def test_a_converter_that_fails_leaves_nothing(
    how: str, run: Any, checkout: Any, cli: Cli, tmp_path: Path
) -> None:
    line, code, message = FAILING[how]
    out, there = tmp_path / "new" / "model.gguf", checkout(line)
    ran = cli("export", run.folder, "-o", out, "--to", "gguf", "--llama-cpp", there, "--no-verify")
    assert ran.code == code
    assert message in ran.err
    assert [p.name for p in tmp_path.iterdir()] == ["llama cpp"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("out.write_bytes(model(0))", "holds no tensor"),
        ("out.write_bytes(model(2)[:40])", "cannot be read back"),
    ],
)
def test_what_the_reader_cannot_read_leaves_nothing(
    line: str, message: str, run: Any, checkout: Any, cli: Cli, tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    out = tmp_path / "model.gguf"
    ran = cli(
        "export", run.folder, "-o", out, "--to", "gguf", "--llama-cpp", checkout(line),
        "--no-verify",
    )  # fmt: skip
    assert ran.code == 4
    assert message in ran.err
    assert not out.exists()


def test_without_the_reader_the_mark_is_checked(
    run: Any, checkout: Any, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    out = tmp_path / "model.gguf"
    ran = cli(
        "export", run.folder, "-o", out, "--to", "gguf", "--llama-cpp", checkout(),
        "--no-verify", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["tensors"] is None


def test_no_checkout_says_how_to_get_one(run: Any, cli: Cli, tmp_path: Path) -> None:
    words = ("export", run.folder, "-o", tmp_path / "model.gguf", "--to", "gguf")
    for more in ((), ("--llama-cpp", tmp_path)):
        ran = cli(*words, *more)
        assert ran.code == 2
        for part in ("git clone https://github.com/ggml-org/llama.cpp", "--llama-cpp DIR"):
            assert part in ran.err
    assert f"{tmp_path} has no convert_hf_to_gguf.py" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_outputs_and_bases_that_are_no_gguf_are_refused(
    run: Any, trained: Train, checkout: Any, cli: Cli, tmp_path: Path
) -> None:
    there = checkout()
    (tmp_path / "taken.gguf").write_text("x")
    to = ("--to", "gguf", "--llama-cpp", there)
    for out, message in (("model", "NAME.gguf"), ("taken.gguf", "exists")):
        ran = cli("export", run.folder, "-o", tmp_path / out, *to)
        assert ran.code == 2
        assert message in ran.err
    assert (tmp_path / "taken.gguf").read_text() == "x"
    eight_bits = trained("llama", name="qlora", bits=8, r=4)
    out = tmp_path / "model.gguf"
    ran = cli("export", eight_bits.folder, "-o", out, *to, "--merge-base", "requant")
    assert ran.code == 2
    assert "--merge-base original or dequant" in ran.err
    assert cli("export", eight_bits.folder, "-o", out, *to, "--no-verify").code == 0
