"""The commands and their flags. Settings of a run are configuration keys, not flags."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from peftlab.errors import ConfigError, did_you_mean

_CONFIG = "[CONFIG.yaml] [key.path=value ...]"
_CONFIG_HELP = (
    "CONFIG.yaml      a configuration; `peftlab init` writes one\n"
    "key.path=value   sets one key, with or without a file: method=qlora train.seed=1\n"
    "                 (the value is YAML; a later one wins; a bare method replaces the section)"
)
_RUN_HELP = "RUN              the folder that `peftlab train` wrote"


@dataclass(frozen=True, slots=True)
class Flag:
    """One option: its spellings and the arguments of argparse."""

    names: tuple[str, ...]
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Command:
    """A command: its summary, its arguments and its flags."""

    summary: str
    usage: str
    about: str
    flags: tuple[Flag, ...] = ()


def _flag(*names: str, **options: Any) -> Flag:
    return Flag(names, options)


_JSON = _flag("--json", action="store_true", help="print JSON only on stdout")
_VERBOSE = _flag("-v", "--verbose", action="store_true", help="log more details on stderr")
_FOLDER = ("-o", "--output")

COMMANDS: dict[str, Command] = {
    "demo": Command(
        "compare five methods on a real model and real data, in minutes",
        "",
        "Fine-tunes a small sentence model (91 MB, downloaded once) with five methods and\n"
        "writes a report.",
        (
            _flag("--text", metavar="TEXT", help="your own sentence to classify at the end"),
            _flag(*_FOLDER, metavar="DIR", default="runs/demo", help="default: runs/demo"),
        ),
    ),
    "init": Command(
        "write a commented configuration",
        "--model NAME --data SOURCE",
        "Writes YAML with every key that task and method read, defaults commented out.",
        (
            _flag("--model", metavar="NAME", help="hub id or local folder"),
            _flag("--data", metavar="SOURCE", help="hub id, file, or folder of split files"),
            _flag("--task", default="text-classification", help="default: text-classification"),
            _flag(
                "--method",
                default="lora",
                help="head, last_n, lora (default), qlora, full, peft, or one that a package adds",
            ),
            _flag(*_FOLDER, metavar="FILE", help="write here; never overwrites (default: stdout)"),
            _flag("--schema", action="store_true", help="print the JSON Schema of configurations"),
        ),
    ),
    "plan": Command(
        "check everything without training: data, targets, steps",
        _CONFIG,
        _CONFIG_HELP,
        (
            _flag(
                "--print-config",
                action="store_true",
                help="print the resolved configuration; reads neither data nor model",
            ),
        ),
    ),
    "data": Command(
        "show rows as the model reads them, with labels and lengths",
        _CONFIG,
        _CONFIG_HELP,
        (_flag("-n", "--rows", metavar="N", type=int, default=3, help="rows to show; default: 3"),),
    ),
    "train": Command(
        "train, evaluate, and save a run folder",
        _CONFIG,
        _CONFIG_HELP,
        (
            _flag(
                "--resume",
                metavar="{auto,never,PATH}",
                default="never",
                help="continue from the newest checkpoint (auto) or from this one; default: never",
            ),
            _flag("--dry-run", action="store_true", help="stop before the first step, as `plan`"),
            _flag("--max-steps", metavar="N", help="short for train.max_steps=N"),
        ),
    ),
    "eval": Command(
        "evaluate a run on one split of its data",
        "RUN",
        _RUN_HELP,
        (_flag("--split", default="test", help="train, validation or test (default)"),),
    ),
    "predict": Command(
        "answer texts with a run",
        "RUN [TEXT ...]",
        f"{_RUN_HELP}\nTEXT             texts or prompts; without any, lines of --file or stdin",
        (
            _flag(
                "--file",
                metavar="F",
                help="lines of text, or rows by column, of any file that data.source may be",
            ),
            _flag(
                *_FOLDER,
                metavar="FILE",
                help="write the answers to a new file, a row of JSON a line, columns included",
            ),
            _flag(
                "-i",
                "--interactive",
                action="store_true",
                help="ask for a text after each answer, until the input ends",
            ),
        ),
    ),
    "bench": Command(
        "compare methods on your model and data",
        _CONFIG,
        _CONFIG_HELP,
        (
            _flag("--methods", metavar="A,B", help="short for bench.methods: head,last_n:2,lora:8"),
            _flag("--seeds", metavar="N", help="short for bench.seeds=N"),
            _flag(*_FOLDER, metavar="DIR", help="default: <output.dir>-bench, or runs/MODEL-bench"),
        ),
    ),
    "export": Command(
        "merge a run or an adapter into one verified model that any tool loads",
        "RUN_OR_ADAPTER -o DIR",
        "RUN_OR_ADAPTER   the folder of a run, or of a PEFT LoRA adapter",
        (
            _flag(*_FOLDER, metavar="DIR", help="a folder that is new or empty"),
            _flag("--base", metavar="MODEL", help="the base, where not the one it was trained on"),
            _flag("--dtype", help="float32, bfloat16 or float16; default: as the base has it"),
            _flag("--max-shard-size", metavar="SIZE", default="5GB", help="default: 5GB"),
            _flag(
                "--merge-base",
                default="auto",
                help="of 8-bit runs: original, dequant, requant, or auto, which measures (default)",
            ),
            _flag("--no-verify", action="store_true", help="compare no logits"),
            _flag("--to", metavar="FORMAT", default="safetensors", help="safetensors, or gguf"),
            _flag("--llama-cpp", metavar="DIR", help="llama.cpp's checkout, for --to gguf"),
        ),
    ),
    "inspect": Command(
        "describe a run, adapter or checkpoint",
        "PATH",
        "PATH             a folder",
    ),
    "env": Command(
        "show versions, devices and optional packages",
        "",
        "Describes this machine and its packages.",
    ),
}

_EXIT_CODES = (
    "exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 a check failed,\n"
    "            4 an export failed its verification, 130 stopped"
)


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help.")


def parse(arguments: Sequence[str]) -> tuple[str, argparse.Namespace]:
    """The command and its parsed flags; positional words are in `arguments`.

    Prints help or the version on request and raises `SystemExit`. Raises `ConfigError`.
    """
    if not arguments:
        raise ConfigError(f"{overview()}\n\nName a command.")
    first = arguments[0]
    if first in {"-h", "--help", "help"}:
        print(overview())
        raise SystemExit(0)
    if first in {"-V", "--version"}:
        import peftlab

        print(f"peftlab {peftlab.__version__}")
        raise SystemExit(0)
    if first not in COMMANDS:
        hint = did_you_mean(first, tuple(COMMANDS))
        commands = ", ".join(COMMANDS)
        raise ConfigError(
            f"peftlab: unknown command {first!r}{hint or '.'} The commands are {commands}."
        )
    parser = _parser(first)
    options, unknown = parser.parse_known_intermixed_args(arguments[1:])
    if unknown:
        raise ConfigError(_foreign(first, unknown[0]))
    return first, options


def overview() -> str:
    """The help of `peftlab` alone."""
    lines = ["usage: peftlab COMMAND [CONFIG.yaml] [key.path=value ...] [flags]", ""]
    lines += [f"  {name:<9} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "peftlab COMMAND --help explains each.", _EXIT_CODES])


def _parser(name: str) -> _Parser:
    command = COMMANDS[name]
    parser = _Parser(
        prog=f"peftlab {name}",
        usage=f"peftlab {name} {command.usage} [flags]".replace("  ", " "),
        description=f"{command.summary[0].upper()}{command.summary[1:]}.\n\n{command.about}",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    for flag in (*command.flags, _JSON, _VERBOSE):
        parser.add_argument(*flag.names, **flag.options)
    return parser


def _foreign(name: str, argument: str) -> str:
    """The message on a flag that a command does not have."""
    spelling = argument.partition("=")[0]
    own = [n for flag in (*COMMANDS[name].flags, _JSON, _VERBOSE) for n in flag.names]
    others = [
        other
        for other, command in COMMANDS.items()
        if any(spelling in flag.names for flag in command.flags)
    ]
    takes = f"peftlab {name} takes {', '.join(own)}"
    if others:
        return f"peftlab {name}: {spelling} is a flag of {' and '.join(others)}; {takes}."
    hint = did_you_mean(spelling, own)
    return (
        f"peftlab {name}: {spelling} is unknown{hint or ';'} {takes}; "
        "other settings are key.path=value."
    )
