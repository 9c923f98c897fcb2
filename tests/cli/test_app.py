from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftlab.cli.arguments import COMMANDS
from peftlab.cli.commands import RUN
from peftlab.errors import (
    CheckFailed,
    ConfigError,
    DataError,
    Interrupted,
    PeftlabError,
    VerificationError,
)
from tests.hanging import HANGS_AFTER

Cli = Callable[..., Any]
REPOSITORY = Path(__file__).resolve().parents[2]


def command(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "peftlab", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (PeftlabError("it failed"), 1, "it failed\n"),
        (ConfigError("a\nb"), 2, "a\nb\n"),
        (DataError("row 3"), 3, "row 3\n"),
        (CheckFailed("too long"), 3, "too long\n"),
        (VerificationError("differs"), 4, "differs\n"),
        (Interrupted("saved"), 130, "saved\n"),
        (KeyboardInterrupt(), 130, "Stopped.\n"),
        (MemoryError("3 GiB"), 3, "Out of memory: 3 GiB\nLower train.micro_batch_size"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: "
                "can't allocate memory: you tried to allocate 4000000000000 bytes."
            ),
            3,
            "Out of memory: [enforce fail at alloc_cpu.cpp:124]",
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), 3, "Lower train.micro_batch_size"),
        (OSError("not enough memory of old times"), 1, "unexpectedly: OSError"),
        (BrokenPipeError("a worker died"), 1, "BrokenPipeError: a worker died"),
        (ValueError("one\ntwo\nthree\nfour"), 1, "unexpectedly: ValueError: one\ntwo\nthree\nPEFT"),
        (RuntimeError(), 1, "RuntimeError: no message\nPEFTLAB_DEBUG=1 shows the traceback.\n"),
    ],
)
def test_every_failure_has_its_code_and_message(
    raised: BaseException, code: int, message: str, cli: Cli, calls: Any, config: str
) -> None:
    calls.answers["train"] = raised
    done = cli("train", config)
    assert (done.code, done.out) == (code, "")
    assert message in done.err


def test_torchs_out_of_memory_error_is_recognised(cli: Cli, calls: Any, config: str) -> None:
    torch = pytest.importorskip("torch")
    calls.answers["train"] = lambda *args, **kwargs: torch.empty(1 << 50, dtype=torch.uint8)
    done = cli("train", config)
    assert done.code == 3
    assert "Out of memory" in done.err


def test_a_traceback_on_demand(
    calls: Any, config: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from peftlab.cli import main

    monkeypatch.setenv("PEFTLAB_DEBUG", "1")
    for error in (ValueError("odd"), CheckFailed("refused")):
        calls.answers["train"] = error
        main(["train", config])
        message = capfd.readouterr().err
        assert "Traceback" in message
        assert "PEFTLAB_DEBUG" not in message


def test_the_context_is_restored(
    cli: Cli, calls: Any, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("peftlab")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    seen: dict[str, Any] = {}

    def look(*args: Any, **kwargs: Any) -> Any:
        seen.update(os.environ, handlers=len(logger.handlers))
        warnings.warn("noise", stacklevel=1)
        return run

    run = calls.answers["train"]
    calls.answers["train"] = look
    before = dict(os.environ), logger.level, logger.propagate, list(logger.handlers)
    done = cli("train", config)
    assert "noise" not in done.err
    assert seen["TRANSFORMERS_VERBOSITY"] == "error"
    assert seen["HF_HUB_DISABLE_TELEMETRY"] == "1"
    # What a user has set stays; stderr is no terminal here, so there are no bars.
    assert seen["TOKENIZERS_PARALLELISM"] == "true"
    assert seen["TQDM_DISABLE"] == "1"
    assert seen["handlers"] == len(before[3]) + 1
    after = dict(os.environ), logger.level, logger.propagate, list(logger.handlers)
    assert after == before


def test_every_command_runs_and_has_help_that_names_its_flags(cli: Cli) -> None:
    assert COMMANDS.keys() == RUN.keys()
    overview = cli("--help")
    assert overview.code == 0
    assert cli("help").out == cli("-h").out == overview.out
    for name, subcommand in COMMANDS.items():
        assert f"  {name} " in overview.out
        shown = cli(name, "--help")
        assert shown.code == 0
        assert "--json" in shown.out
        for flag in subcommand.flags:
            assert flag.names[-1] in shown.out
        assert max(map(len, shown.out.splitlines())) <= 100


def test_details_are_logged_under_v(cli: Cli, calls: Any, config: str) -> None:
    run = calls.answers["train"]

    def detailed(*args: Any, **kwargs: Any) -> Any:
        logging.getLogger("peftlab").debug("36 of 36 adapted layers fused")
        return run

    calls.answers["train"] = detailed
    assert "36 of 36" not in cli("train", config).err
    assert "36 of 36" in cli("train", config, "-v").err


def test_no_command_or_an_unknown_one(cli: Cli) -> None:
    assert cli().code == 2
    assert "usage: peftlab COMMAND" in cli().err
    assert "did you mean train?" in cli("trian").err
    assert cli("run.yaml").code == 2
    assert cli("--version").out.startswith("peftlab ")


def test_a_terminal_gets_tables_of_rich(
    calls: Any, config: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from peftlab.cli import main

    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["plan", config]) == 0
    fancy = capfd.readouterr().out
    assert "\u2500\u2500" in fancy
    assert "\x1b[" in fancy
    assert "encoder.layer.*.query" in fancy
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["plan", config]) == 0
    plain = capfd.readouterr().out
    assert "encoder.layer.*.query" in plain
    for colour in ("\x1b[3", "\x1b[9"):
        assert colour not in plain


@pytest.mark.parametrize("words", [("--help",), ("train", "--help"), ("bench", "--help")])
def test_help_imports_little(words: tuple[str, ...]) -> None:
    """What makes a command quick to start, by what it imports: seconds say nothing here."""
    code = (
        "import sys\nbefore = set(sys.modules)\nfrom peftlab.cli import main\n"
        "code = main(sys.argv[1:])\nprint(code, *sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    status, *imported = done.stdout.splitlines()[-1].split()
    assert status == "0"
    ours = [name for name in imported if name.startswith("peftlab")]
    assert len(ours) <= 10, ours
    assert len(imported) <= 60, imported
    assert {name.split(".")[0] for name in imported} - {"peftlab"} <= sys.stdlib_module_names


def test_help_and_config_import_nothing_heavy(config: str) -> None:
    code = (
        "import sys\nfrom peftlab.cli import main\ncode = main(sys.argv[1:])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'matplotlib', 'rich', 'peft'}\n"
        "print(code, sorted(heavy & sys.modules.keys()), 'pydantic' in sys.modules)"
    )

    def last_line(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=REPOSITORY, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.splitlines()[-1]

    assert last_line("train", "--help") == "0 [] False"
    assert last_line("train", config, "train.sed=1") == "2 [] True"
    assert last_line("plan", config, "--print-config") == "0 [] True"


def test_a_closed_pipe(config: str) -> None:
    done = subprocess.run(
        f'"{sys.executable}" -m peftlab init --schema | head -n 1; echo "${{PIPESTATUS[0]}}"',
        shell=True, executable="/bin/bash", cwd=REPOSITORY,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "{\n0\n"
    assert done.stderr == ""


def test_control_c_in_a_real_process(tmp_path: Path) -> None:
    fifo = tmp_path / "never.yaml"
    os.mkfifo(fifo)
    running = subprocess.Popen(
        [sys.executable, "-m", "peftlab", "plan", str(fifo)],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    # The pipe opens for writing once the command waits for its configuration.
    with fifo.open("w"):
        time.sleep(0.2)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=HANGS_AFTER)
    assert (running.returncode, out, err) == (130, "", "Stopped.\n")


def test_a_real_command_without_colour_or_terminal(config: str) -> None:
    done = command("plan", config, "--print-config", "--json")
    assert done.returncode == 0
    assert done.stderr == ""
    assert json.loads(done.stdout)["model"]["name"] == "some/model"
    done = command("plan", config, "train.sed=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("override train.sed=1: train.sed is unknown; did you mean train.seed?\n")
