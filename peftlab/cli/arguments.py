"""The verbs and their flags. Knobs of a run are configuration keys, not flags."""

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
    """One option: its spellings, and how argparse is to read it."""

    names: tuple[str, ...]
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb: what it does, what follows it, and the flags that are its own."""

    summary: str
    usage: str
    about: str
    flags: tuple[Flag, ...] = ()


def _flag(*names: str, **options: Any) -> Flag:
    return Flag(names, options)


_JSON = _flag("--json", action="store_true", help="print JSON, and nothing else, on stdout")
_FOLDER = ("-o", "--output")

VERBS: dict[str, Verb] = {
    "demo": Verb(
        "compare five methods on a real model and real data, offline, in minutes",
        "",
        "Fine-tunes a small sentence model in five ways and writes a report.",
        (
            _flag("--text", metavar="TEXT", help="a sentence of yours to classify at the end"),
            _flag(*_FOLDER, metavar="DIR", default="runs/demo", help="default: runs/demo"),
        ),
    ),
    "init": Verb(
        "write a commented configuration",
        "--model NAME --data SOURCE",
        "Writes YAML with every key the task and method read, defaults commented out.",
        (
            _flag("--model", metavar="NAME", help="hub id or local folder"),
            _flag("--data", metavar="SOURCE", help="hub id, file, or folder of split files"),
            _flag("--task", default="text-classification", help="default: text-classification"),
            _flag("--method", default="lora", help="head, last_n, lora (default), qlora, full"),
            _flag(*_FOLDER, metavar="FILE", help="write here; never overwrites (default: stdout)"),
            _flag("--schema", action="store_true", help="print the JSON Schema of configurations"),
        ),
    ),
    "plan": Verb(
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
    "data": Verb(
        "show rows as the model reads them, labels and lengths",
        _CONFIG,
        _CONFIG_HELP,
        (_flag("-n", "--rows", metavar="N", type=int, default=3, help="rows to show; default: 3"),),
    ),
    "train": Verb(
        "train, evaluate, and save a run folder",
        _CONFIG,
        _CONFIG_HELP,
        (
            _flag(
                "--resume",
                metavar="{auto,never,PATH}",
                default="never",
                help="go on from the newest checkpoint (auto) or from this one; default: never",
            ),
            _flag("--dry-run", action="store_true", help="stop before the first step, as `plan`"),
            _flag("--max-steps", metavar="N", help="short for train.max_steps=N"),
        ),
    ),
    "eval": Verb(
        "evaluate a run on one split of its data",
        "RUN",
        _RUN_HELP,
        (_flag("--split", default="test", help="train, validation or test (default)"),),
    ),
    "predict": Verb(
        "answer texts with a run",
        "RUN [TEXT ...]",
        f"{_RUN_HELP}\nTEXT             texts or prompts; without any, lines of --file or stdin",
        (
            _flag(
                "--file",
                metavar="F",
                help="lines of text, or rows of .jsonl, .json, .csv, .tsv, .parquet by column",
            ),
            _flag(
                "-i",
                "--interactive",
                action="store_true",
                help="ask for a text after each answer, until the input ends",
            ),
        ),
    ),
    "bench": Verb(
        "compare methods on your model and data",
        _CONFIG,
        _CONFIG_HELP,
        (
            _flag("--methods", metavar="A,B", help="short for bench.methods: head,last_n:2,lora:8"),
            _flag("--seeds", metavar="N", help="short for bench.seeds=N"),
            _flag(*_FOLDER, metavar="DIR", help="default: <output.dir>-bench, or runs/MODEL-bench"),
        ),
    ),
    "export": Verb(
        "merge a run or an adapter into one model that any tool loads, and prove it",
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
    "inspect": Verb(
        "say what a run, adapter or checkpoint is",
        "PATH",
        "PATH             a folder",
    ),
    "env": Verb(
        "show versions, devices and optional packages", "", "Nothing is probed until you ask."
    ),
}

_EXIT_CODES = (
    "exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 a check failed,\n"
    "            4 what was exported is not what it should be, 130 stopped"
)


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help.")


def parse(arguments: Sequence[str]) -> tuple[str, argparse.Namespace]:
    """The verb and its parsed flags; what is no flag lies in `arguments`.

    Prints help and raises `SystemExit` where asked to. Raises `ConfigError`.
    """
    if not arguments:
        raise ConfigError(f"{overview()}\n\nName a verb.")
    first = arguments[0]
    if first in {"-h", "--help", "help"}:
        print(overview())
        raise SystemExit(0)
    if first in {"-V", "--version"}:
        import peftlab

        print(f"peftlab {peftlab.__version__}")
        raise SystemExit(0)
    if first not in VERBS:
        hint = did_you_mean(first, tuple(VERBS))
        verbs = ", ".join(VERBS)
        raise ConfigError(f"peftlab: {first!r} is no verb{hint or '.'} Verbs are {verbs}.")
    parser = _parser(first)
    found, unknown = parser.parse_known_intermixed_args(arguments[1:])
    if unknown:
        raise ConfigError(_foreign(first, unknown[0]))
    return first, found


def overview() -> str:
    """The help of `peftlab` alone."""
    lines = ["usage: peftlab VERB [CONFIG.yaml] [key.path=value ...] [flags]", ""]
    lines += [f"  {name:<9} {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join([*lines, "", "peftlab VERB --help says more of each.", _EXIT_CODES])


def _parser(name: str) -> _Parser:
    verb = VERBS[name]
    parser = _Parser(
        prog=f"peftlab {name}",
        usage=f"peftlab {name} {verb.usage} [flags]".replace("  ", " "),
        description=f"{verb.summary[0].upper()}{verb.summary[1:]}.\n\n{verb.about}",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    for flag in (*verb.flags, _JSON):
        parser.add_argument(*flag.names, **flag.options)
    return parser


def _foreign(name: str, argument: str) -> str:
    """What to say of a flag that a verb does not have."""
    spelling = argument.partition("=")[0]
    own = [n for flag in (*VERBS[name].flags, _JSON) for n in flag.names]
    others = [
        verb for verb, known in VERBS.items() if any(spelling in flag.names for flag in known.flags)
    ]
    takes = f"peftlab {name} takes {', '.join(own)}"
    if others:
        return f"peftlab {name}: {spelling} is a flag of {' and '.join(others)}; {takes}."
    hint = did_you_mean(spelling, own)
    return (
        f"peftlab {name}: {spelling} is unknown{hint or ';'} {takes}; "
        "other knobs are key.path=value."
    )
