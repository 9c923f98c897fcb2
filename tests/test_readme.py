"""What the README tells a reader to type, typed: on a tiny model, with the README's own file."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.slow
def test_the_commands_for_ones_own_data(
    tiny_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    from peftlab.cli import main

    monkeypatch.chdir(tmp_path)
    config = next(text for kind, text in BLOCKS if kind == "yaml")
    model = re.search(r"name: (\S+)}", config)
    assert model is not None
    (tmp_path / "reviews.yaml").write_text(config.replace(model[1], str(tiny_checkpoint("bert"))))
    rows = [f"a {('good', 'bad')[i % 2]} film number {i},{(5, 1)[i % 2]}" for i in range(60)]
    (tmp_path / "reviews.csv").write_text("review,stars\n" + "\n".join(rows) + "\n")

    block = next(text for kind, text in BLOCKS if not kind and "peftlab plan reviews" in text)
    commands = [shlex.split(line, comments=True) for line in block.splitlines()]
    commands = [words[1:] for words in commands if words[:1] == ["peftlab"]]
    assert [words[0] for words in commands] == ["plan", "data", "train", "eval", "predict", "bench"]
    for words in commands:
        assert main(words) == 0, (words, capfd.readouterr().err)
    assert (tmp_path / "runs" / "reviews-bench" / "report.html").is_file()

    script = next(text for kind, text in BLOCKS if kind == "python")
    capfd.readouterr()
    exec(compile(script, "README.md", "exec"), {})
    assert "f1_macro" in capfd.readouterr().out


def test_fusing_in_one_line(capfd: Any) -> None:
    import peft
    import torch

    import peftlab

    model = peft.get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(8, 4)), peft.LoraConfig(target_modules=["0"])
    )
    script = next(t for kind, t in BLOCKS if kind == "python" and "peftlab.fuse(" in t)
    exec(compile(script, "README.md", "exec"), {"peftlab": peftlab, "peft_model": model})
    assert "1 of 1 adapted layers fused" in capfd.readouterr().out


def test_the_kernels_in_one_call() -> None:
    import torch

    text = (README.parent / "kernels" / "README.md").read_text(encoding="utf-8")
    script = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0]
    names = {
        "x": torch.ones(2, 8), "weight": torch.ones(4, 8), "lora_a": torch.ones(3, 8),
        "lora_b": torch.ones(4, 3), "bias": torch.ones(4),
    }  # fmt: skip
    exec(compile(script, "kernels/README.md", "exec"), names)
    assert names["y"].shape == (2, 4)


def test_the_readme_is_filled_in() -> None:
    text = README.read_text(encoding="utf-8")
    assert not re.search(r"@[A-Z]+@", text)
    for path in re.findall(r"`((?:peftlab|benchmarks|kernels)/[\w./-]+)`", text):
        assert (README.parent / path).exists(), path
