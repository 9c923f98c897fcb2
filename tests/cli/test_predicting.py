"""`predict --file`: every format, columns as in training, answers beside the file's own columns."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

import peftlab
from peftlab.cli import main
from peftlab.cli.inputs import Inputs, inputs_of
from peftlab.data.bad_rows import BadRows
from peftlab.errors import DataError
from tests.checkpoints import write_checkpoint
from tests.tasks.language.chat.tokenizers import tokenizer_of


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def classifier(tiny_checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose texts were in the column `body`, beside a column `text` of something else."""
    folder = tmp_path_factory.mktemp("run")
    rows = [
        {"text": f"title {at}", "body": f"a {word} film", "label": word}
        for at, word in enumerate(["good", "bad"] * 6)
    ]
    run = peftlab.train(
        {
            "model": {"name": str(tiny_checkpoint("bert"))}, "task": "text-classification",
            "data": {
                "source": str(write(folder / "train.jsonl", rows)), "columns": {"text": "body"},
                "duplicates": "warn",
            },
            "method": {"name": "head"},
            "train": {"max_steps": 2, "save_every": "never"},
            "output": {"dir": str(folder / "run"), "plots": False},
        }
    )  # fmt: skip
    return run.folder


ROWS = [
    {"id": 7, "text": "bad bad", "body": "a good film", "score": 0.5},
    {"id": 8, "text": "good good", "body": "an awful film", "score": None},
]


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def files(folder: Path) -> dict[str, Path]:
    table = pa.Table.from_pylist(ROWS)
    parquet.write_table(table, folder / "a.parquet")
    text = "".join(f"{json.dumps(row)}\n" for row in ROWS)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "a.json").write_text(json.dumps(ROWS))
    lines = ["id,text,body,score", *(f"{r['id']},{r['text']},{r['body']}," for r in ROWS)]
    (folder / "a.csv").write_text("\n".join(lines))
    (folder / "a.tsv").write_text("\n".join(line.replace(",", "\t") for line in lines))
    return {file.name: file for file in folder.iterdir() if file.name.startswith("a.")}


def test_every_format_gives_the_same_answers_and_keeps_its_columns(
    classifier: Path, tmp_path: Path, cli: Any
) -> None:
    expected = peftlab.load_run(classifier).predict([row["body"] for row in ROWS])
    for name, file in files(tmp_path).items():
        out = tmp_path / f"{name}.out"
        done = cli("predict", str(classifier), "--file", str(file), "-o", str(out))
        assert (done.code, f"2 answers in {out}" in done.out) == (0, True), done.err
        for row, given, answer in zip(read(out), ROWS, expected, strict=True):
            assert row["input"].keys() == given.keys()
            assert str(row["input"]["id"]) == str(given["id"])
            assert row["input"]["body"] == given["body"]
            # The column that was trained, though another one is called text.
            assert row["label"] == answer["label"]
            assert row["probabilities"] == pytest.approx(answer["probabilities"], abs=1e-5)
    assert not list(tmp_path.glob("*.partial"))


def test_a_file_with_the_role_alone(classifier: Path, tmp_path: Path) -> None:
    run = peftlab.load_run(classifier)
    by_role, by_column = run.predict([{"text": "a good film"}, {"body": "a good film"}])
    assert by_role == by_column


def test_a_bad_row_is_named_by_its_line(classifier: Path, tmp_path: Path, cli: Any) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"body": "a film"}\n\n{"body": " "}\n')
    out = tmp_path / "out.jsonl"
    done = cli("predict", str(classifier), "--file", str(file), "-o", str(out))
    assert done.code == 3
    assert f"{file}:3" in done.err
    assert "row 2" not in done.err
    assert not out.exists()
    (tmp_path / "there").write_text("kept")
    done = cli("predict", str(classifier), "x", "-o", str(tmp_path / "there"))
    assert (done.code, "exists and is not overwritten" in done.err) == (2, True)
    done = cli("predict", str(classifier), "x", "-o", str(tmp_path / "no" / "out"))
    assert (done.code, "is not a folder" in done.err) == (2, True)


def test_errors_name_places() -> None:
    inputs = Inputs(["a", "b"], lambda index: f"f:{index + 5}")
    with pytest.raises(DataError) as told, inputs.located():
        raise DataError("row 2 to predict has no 'text'; see row 1 of the table")
    assert str(told.value) == "f:6 has no 'text'; see row 1 of the table"
    with pytest.raises(DataError) as told, inputs.located():
        raise BadRows({1: "no token"})
    assert str(told.value) == "f:6: no token"
    with pytest.raises(DataError, match="row 2 to predict: no token"), Inputs(["a"]).located():
        raise BadRows({1: "no token"})
    with pytest.raises(DataError, match="row 2 to predict has"), Inputs(["a"]).located():
        raise DataError("row 2 to predict has no 'text'")


def test_lines_of_text_have_places(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_text("x\n\ny\n")
    inputs = inputs_of([], str(file))
    assert inputs.place is not None
    assert [inputs.place(index) for index in range(2)] == [f"{file}:1", f"{file}:3"]


TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}
TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{% for t in tools %}{{ t.function.name }}{% endfor %}"
    "{% endif %}{{ mood }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_columns_of_a_conversation_that_training_did_not_have(tmp_path: Path) -> None:
    from peftlab.pipeline.run import Run

    base = write_checkpoint(
        tmp_path / "base", "llama", "causal", vocab_size=400, max_position_embeddings=256
    )
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(base)
    ask, say = {"role": "user", "content": "name"}, {"role": "assistant", "content": "a dog"}
    run: Run = peftlab.train(
        {
            "model": {"name": str(base)}, "task": "causal-lm",
            "data": {
                "source": str(write(tmp_path / "train.jsonl", [{"messages": [ask, say]}] * 4)),
                "splits": {"validation": None},
            },
            "method": {"name": "lora", "r": 2},
            "train": {"max_steps": 1, "save_every": "never"},
            "output": {"dir": str(tmp_path / "run"), "plots": False},
        }
    )  # fmt: skip
    assert "tools" not in run.record["columns"]
    row = {"messages": [ask], "functions": [TOOL], "chat_template_kwargs": {"mood": "calm"}}
    prepared = run._input_row(row, 1)
    ids = run.task.rows.prompts([prepared], run.loaded.tokenizer, 200)[0]  # type: ignore[attr-defined]
    text = run.loaded.tokenizer.decode(ids)
    assert "tools\nlook" in text
    assert "calm" in text
    file = write(tmp_path / "ask.jsonl", [row])
    assert main(["predict", str(run.folder), "--file", str(file), "--json"]) == 0
