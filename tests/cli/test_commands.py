from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from peftlab.cli.inputs import inputs_of
from peftlab.errors import CheckFailed, ConfigError, DataError

Cli = Callable[..., Any]


def test_plan_shows_data_targets_and_steps(cli: Cli, calls: Any, config: str) -> None:
    done = cli("plan", config, "method.r=4", "train.seed=7")
    assert done.code == 0, done.err
    name, (run_config,), _ = calls.last
    assert name == "plan"
    assert (run_config.method.r, run_config.train.seed) == (4, 7)
    for words in (
        "lora on some/model for text-classification, data rows.csv, into runs/model-lora",
        "encoder.layer.*.query",
        "770 of 77,000 parameters (1.00%)",
        "9 steps, 3 per epoch, of 16 rows each (2 x 8), at most 64 tokens per row",
        "learning rate 0.002; weights stored in bfloat16, computed in float32",
        "The kernels compute 2 of 3 adapted layers\n  1 not fused: it is a variant",
        "note: loaded in fp32",
        "negative    10  25.0%",
    ):
        assert words in done.out, words


def test_print_config_reads_neither_data_nor_model(cli: Cli, calls: Any, config: str) -> None:
    done = cli("plan", config, "--print-config", "method=head")
    assert calls.made == []
    Path(config).write_text(done.out)
    again = cli("plan", config, "--print-config")
    assert again.out == done.out
    result = json.loads(cli("plan", config, "--print-config", "--json").out)
    assert result["method"] == {"name": "head", "pooling": "auto", "cache_limit": "2GiB"}


def test_data_needs_no_method(cli: Cli, calls: Any) -> None:
    keys = ["model.name=m", "task=text-classification", "data.source=rows.csv"]
    done = cli("data", *keys, "-n", "5")
    assert done.code == 0, done.err
    assert calls.last[2] == {"rows": 5}
    assert "[CLS] fine [SEP]" in done.out
    assert "label: negative" in done.out
    assert cli("data", *keys, "-n", "-1").code == 2
    assert cli("data", *keys, "-n", "x").code == 2


def test_train_shows_the_result(cli: Cli, calls: Any, config: str) -> None:
    done = cli("train", config, "--max-steps", "5", "--resume", "auto")
    assert done.code == 0, done.err
    name, (run_config,), keywords = calls.last
    assert (name, run_config.train.max_steps, keywords) == ("train", 5, {"resume": "auto"})
    assert "Run in runs/model-lora: 12.5 s, 1,234 tokens/s, peak memory 0.50 GiB" in done.out
    assert "0.875  0.85 to 0.9" in done.out
    assert "peftlab predict runs/model-lora" in done.out
    # Flags may stand anywhere, and a path is a path.
    cli("train", "--resume", "runs/x.unfinished/checkpoint-5", config, "train.seed=1")
    assert calls.last[2] == {"resume": Path("runs/x.unfinished/checkpoint-5")}
    cli("train", config)
    assert calls.last[2] == {"resume": "never"}


def test_a_dry_run_plans(cli: Cli, calls: Any, config: str) -> None:
    assert "9 steps" in cli("train", config, "--dry-run", "--max-steps=2").out
    name, (run_config,), _ = calls.last
    assert (name, run_config.train.max_steps) == ("plan", 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--max-steps", "0"), "--max-steps 0: train.max_steps is 0; allowed: a whole number"),
        (("--max-steps", "many"), "--max-steps many: train.max_steps is 'many'"),
        (("--max-steps", "["), "--max-steps [: is not YAML"),
        (("train.sed=1",), "override train.sed=1: train.sed is unknown; did you mean train.seed?"),
        (("other.yaml",), "takes one CONFIG.yaml, but got 2 words"),
        (("a-b=c",), "override a-b=c: 'a-b' is no key"),
        (("--methods", "lora"), "--methods is a flag of bench; peftlab train takes --resume"),
        (("--resum", "auto"), "--resum is unknown; did you mean --resume?"),
        (("--resume",), "expected one argument"),
        (("--learning-rate", "3"), "other settings are key.path=value"),
    ],
)
def test_mistakes_in_usage(
    words: tuple[str, ...], message: str, cli: Cli, calls: Any, config: str
) -> None:
    done = cli("train", config, *words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert calls.made == []


def test_eval_and_inspect_take_one_folder(cli: Cli, calls: Any) -> None:
    done = cli("eval", "runs/a", "--split", "validation")
    assert calls.made == [
        ("open_run", (Path("runs/a"),), {}), ("evaluate", ("validation",), {}),
    ]  # fmt: skip
    assert "Metrics on validation" in done.out
    result = json.loads(cli("eval", "runs/a", "--json").out)
    assert result["split"] == "test"
    # JSON has no NaN.
    assert result["metrics"]["loss"] is None
    assert "kind: adapter\ntensors:\n  count: 1,200\n" in cli("inspect", "runs/a").out
    for command in ("eval", "inspect"):
        for words in ((), ("a", "b")):
            assert cli(command, *words).code == 2


def test_predict_answers_words(cli: Cli, calls: Any) -> None:
    done = cli("predict", "runs/a", "good", "bad = bad")
    assert calls.last[1] == (["good", "bad = bad"],)
    assert "positive  75.0%        bad = bad" in done.out
    result = json.loads(cli("predict", "runs/a", "--json", "good").out)
    assert result[0]["input"] == "good"
    assert result[0]["probability"] == 0.75
    calls.answers["predict"] = lambda rows: [{"text": "an end", "finished": True}]
    assert "\nonce upon\nan end\n" in cli("predict", "runs/a", "once upon").out


def test_predict_reads_a_pipe(cli: Cli, calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", piped(b"\xef\xbb\xbfone\r\n\r\n two \n"))
    cli("predict", "runs/a")
    assert calls.last[1] == (["one", " two "],)


def test_predict_answers_line_by_line(
    cli: Cli, calls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", piped(b"one\n\nbad\ntwo"))

    def answer(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
        if rows[0]["text"] == "bad":
            raise DataError("it is bad.")
        return [{"text": f"{rows[0]['text']}!"}]

    calls.answers["predict"] = answer
    done = cli("predict", "runs/a", "-i")
    assert (done.code, done.out) == (0, "one!\ntwo!\n")
    assert "it is bad." in done.err
    inputs = [made[1][0][0] for made in calls.made if made[0] == "predict"]
    assert [row["turn"] for row in inputs] == [0, 1, 1]
    for words in (("a text",), ("--file", "a.txt"), ("--json",)):
        refused = cli("predict", "runs/a", "-i", *words)
        assert (refused.code, words[0] in refused.err) == (2, True)


def piped(content: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content))


def test_sources_of_predicts_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = tmp_path / "a.txt"
    lines.write_text("x\n\ny\n")
    assert inputs_of([], str(lines)).rows == ["x", "y"]
    rows = [{"text": "x, y", "label": "1"}, {"text": "z", "label": "0"}]
    objects = tmp_path / "a.jsonl"
    objects.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "a.csv").write_text('text,label\n"x, y",1\nz,0\n')
    (tmp_path / "a.tsv").write_text("text\tlabel\nx, y\t1\nz\t0\n")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "a.parquet")
    for suffix in ("jsonl", "json", "csv", "tsv", "parquet"):
        assert inputs_of([], str(tmp_path / f"a.{suffix}")).rows == rows
    sentences = tmp_path / "sentences.txt"
    sentences.write_text("John B-PER\nlives O\n\nMary B-PER\n")
    assert len(inputs_of([], str(sentences)).rows) == 2
    (tmp_path / "rows.txt").write_text('{"text": "x, y"}\n')
    assert inputs_of([], str(tmp_path / "rows.txt")).rows == [{"text": "x, y"}]
    bare = tmp_path / "lines"
    bare.write_text("x\n")
    assert inputs_of([], str(bare)).rows == ["x"]
    monkeypatch.setattr(sys, "stdin", piped(b"from stdin\n"))
    assert inputs_of([], "-").rows == ["from stdin"]
    monkeypatch.setattr(sys, "stdin", piped(b"a\n\xff\n"))
    with pytest.raises(DataError, match="stdin:2 is not UTF-8"):
        inputs_of([], None)

    def refused(content: bytes, name: str, words: str) -> None:
        file = tmp_path / name
        file.write_bytes(content)
        with pytest.raises(DataError, match=words):
            inputs_of([], str(file))

    refused(b"", "b.txt", "is empty")
    refused(b"a\n\xff\n", "c.txt", r"c\.txt:2 is not UTF-8")
    refused(b'{"text": 1}\n{\n', "d.jsonl", r"d\.jsonl:2: malformed JSON")
    refused(b"3\n", "e.jsonl", r"e\.jsonl:1 holds the value 3")
    refused(b"text,label\nx\n", "f.csv", r"f\.csv:2 has 1 fields, the header has 2")
    refused(b"text\n", "h.csv", r"h\.csv has no rows")
    refused(b"PAR1", "i.parquet", r"i\.parquet is not a readable parquet file")
    refused(b"x", "g.docx", r"g\.docx: peftlab does not read '\.docx'")
    with pytest.raises(DataError, match="peftlab does not read"):
        inputs_of([], str(tmp_path))
    with pytest.raises(DataError, match="cannot be read: No such file"):
        inputs_of([], str(tmp_path / "missing.txt"))
    with pytest.raises(ConfigError, match="not both"):
        inputs_of(["x"], "a.txt")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    with pytest.raises(ConfigError, match="lines on stdin"):
        inputs_of([], None)


def test_bench_takes_methods_and_seeds(cli: Cli, calls: Any, config: str, tmp_path: Path) -> None:
    done = cli("bench", config, "--methods", "head, lora:8", "--seeds", "3", "-o", "out")
    assert done.code == 0, done.err
    (_, (run_config,), keywords), (_, reported, _) = calls.made
    assert run_config.bench.methods == ["head", "lora:8"]
    assert run_config.bench.seeds == 3
    assert keywords == {"folder": Path("out")}
    assert reported[1] == Path("out")
    assert done.out == ("method  accuracy\n\nlora is best.\n\nReport with plots: out/report.html\n")
    # Not the folder that `train` takes from the same configuration.
    for folder, bench_folder in (
        ("a/run", "a/run-bench"),
        ("a/run/", "a/run-bench"),
        (".", "bench"),
    ):
        cli("bench", config, f"output.dir={folder}")
        assert calls.made[-2][2] == {"folder": Path(bench_folder)}
    result = json.loads(cli("bench", config, "--json").out)
    assert result == {"rows": ["lora"], "report": "out/report.html"}
    assert calls.made[-2][2] == {"folder": Path("runs/model-bench")}


def test_a_bench_without_scores_fails(cli: Cli, calls: Any, config: str) -> None:
    calls.answers["run_bench"] = SimpleNamespace(to_json=dict, trained=("lora",), scored=())
    done = cli("bench", config)
    assert done.code == 1
    assert "None was scored" in done.err
    assert "method  accuracy" in done.out


def test_bench_refuses_what_it_cannot_run(cli: Cli, calls: Any, config: str) -> None:
    done = cli("bench", config, "--methods", "head,lorra")
    assert done.code == 2
    assert "--methods head,lorra: bench.methods.1 is 'lorra'" in done.err
    assert cli("bench", config, "--seeds", "0").code == 2
    assert cli("bench", config, "--methods", ",").code == 2


def test_demo_and_env(cli: Cli, calls: Any) -> None:
    assert cli("demo", "--text", "so so", "-o", "here").out == "the table\n"
    assert calls.last == ("run_demo", ("so so", Path("here")), {})
    assert json.loads(cli("demo", "--json").out) == {"answers": []}
    shown = cli("env").out
    assert "LoRA layers are computed by torch; not by triton: the tensors are on cpu" in shown
    assert "memory: 8.0 GiB" in shown
    assert "triton   no      no CUDA device" in shown
    assert json.loads(cli("env", "--json").out)["cpu"]["memory"] == 8 << 30
    assert cli("env", "run.yaml").code == 2
    assert cli("demo", "train.seed=1").code == 2


def test_init_writes_what_plan_reads(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "my new.yaml"
    words = ("init", "--model", "some/model", "--data", "rows.csv", "--method", "qlora")
    done = cli(*words, "-o", str(file))
    assert done.out == f"Wrote {file}. Next: peftlab plan '{file}'\n"
    assert cli(*words).out == file.read_text()
    result = json.loads(cli("plan", str(file), "--print-config", "--json").out)
    assert result["method"]["name"] == "qlora"
    assert json.loads(cli(*words, "--json").out) == result
    before = file.read_text()
    file.write_text(before + "# mine\n")
    again = cli(*words, "-o", str(file))
    assert (again.code, file.read_text()) == (2, before + "# mine\n")
    assert "exists and is not overwritten" in again.err
    assert cli(*words, "-o", str(tmp_path / "no" / "such.yaml")).code == 2


def test_init_needs_model_and_data(cli: Cli) -> None:
    assert "needs --model and --data" in cli("init").err
    done = cli("init", "--model", "m", "--data", "d", "--task", "causal-ml")
    assert (done.code, "--task causal-ml: task.name is 'causal-ml'" in done.err) == (2, True)
    done = cli("init", "--model", "m", "--data", "d", "--method", "lorra")
    assert "--method lorra: method.name is 'lorra'; allowed: head" in done.err


def test_the_schema_is_json_with_and_without_the_flag(cli: Cli) -> None:
    plain, flagged = cli("init", "--schema"), cli("init", "--schema", "--json")
    assert json.loads(plain.out) == json.loads(flagged.out)
    assert "TrainConfig" in json.loads(plain.out)["$defs"]


def test_json_alone_on_stdout_whatever_others_print(cli: Cli, calls: Any, config: str) -> None:
    run = calls.answers["train"]

    def noisy(*args: Any, **kwargs: Any) -> Any:
        import logging

        print("from python")
        os.write(1, b"from C\n")
        os.system("echo from a child")
        logging.getLogger("peftlab").info("step 1")
        logging.getLogger("peftlab").warning("slow")
        return run

    calls.answers["train"] = noisy
    for words in (("--json",), ()):
        done = cli("train", config, *words)
        for noise in ("from python", "from C", "from a child", "step 1\n", "warning: slow\n"):
            assert noise in done.err
            assert noise not in done.out
    assert json.loads(cli("train", config, "--json").out)["folder"] == "runs/model-lora"


def test_an_error_under_json_leaves_stdout_empty(cli: Cli, calls: Any, config: str) -> None:
    calls.answers["train"] = CheckFailed("no target matches 'qurey'; did you mean query?")
    done = cli("train", config, "--json")
    assert (done.code, done.out) == (3, "")
    assert done.err == "no target matches 'qurey'; did you mean query?\n"
