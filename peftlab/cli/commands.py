"""The function of each command. Heavy imports are inside the functions that need them."""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.cli import texts
from peftlab.cli.screen import Screen
from peftlab.errors import ConfigError

if TYPE_CHECKING:
    from peftlab.config import RunConfig
    from peftlab.config.loading.overrides import Override


@dataclass(frozen=True, slots=True)
class Answer:
    """A command's result: JSON values, how to show them to people, and the failure, if any."""

    data: Any
    show: Callable[[Screen], None]
    failure: str | None = None


def demo(options: Namespace) -> Answer:
    """Run the bundled demo."""
    _no_arguments("demo", options)
    from peftlab.demo.main_job import run_demo

    result = run_demo(options.text, Path(options.output))
    return Answer(result.to_json(), lambda screen: screen.line(result.text()))


def init(options: Namespace) -> Answer:
    """Write a commented configuration, or print the JSON Schema."""
    _no_arguments("init", options)
    from peftlab.config import json_schema, load_config, resolved_mapping, template

    if options.schema:
        schema = json_schema()
        return Answer(schema, lambda screen: texts.show_json(screen, schema))
    missing = [f"--{name}" for name in ("model", "data") if not getattr(options, name)]
    if missing:
        raise ConfigError(
            f"peftlab init needs {' and '.join(missing)}, as in: peftlab init "
            "--model google-bert/bert-base-uncased --data reviews.csv -o run.yaml"
        )
    paths = (("model", "name"), ("task",), ("data", "source"), ("method", "name"))
    config = load_config(
        None, [_flagged(path, getattr(options, path[0]), f"--{path[0]}") for path in paths]
    ).config
    text = template(options.model, options.task, options.data, options.method)
    if options.output is None:
        return Answer(resolved_mapping(config), lambda screen: screen.line(text.rstrip("\n")))
    file = Path(options.output)
    _write_new(file, text)
    return Answer(
        {"path": str(file), "config": resolved_mapping(config)},
        lambda screen: screen.line(f"Wrote {file}. Next: peftlab plan {shlex.quote(str(file))}"),
    )


def plan(options: Namespace) -> Answer:
    """Check a run and show what it would do, without training."""
    config = _config("plan", options)
    if options.print_config:
        from peftlab.config import dump_yaml, resolved_mapping

        mapping = resolved_mapping(config)
        return Answer(mapping, lambda screen: screen.line(dump_yaml(mapping).rstrip("\n")))
    return _planned(config)


def _planned(config: RunConfig) -> Answer:
    from peftlab.pipeline.plan import plan as make

    planned = make(config).to_json()
    return Answer(planned, lambda screen: texts.show_plan(screen, planned))


def data(options: Namespace) -> Answer:
    """Show rows as the model reads them."""
    config = _config("data", options, need=frozenset({"model", "task", "data"}))
    if options.rows < 0:
        raise ConfigError(f"-n {options.rows}: allowed: a number of rows, 0 or more.")
    from peftlab.pipeline.plan import preview

    shown = preview(config, rows=options.rows)
    return Answer(shown, lambda screen: texts.show_data(screen, shown))


def train(options: Namespace) -> Answer:
    """Train, or with --dry-run plan."""
    flags = []
    if options.max_steps is not None:
        flags.append(_read_flag(("train", "max_steps"), options.max_steps, "--max-steps"))
    config = _config("train", options, flags)
    if options.dry_run:
        return _planned(config)
    from peftlab.pipeline.train import train as run

    resume: str | Path = options.resume
    if resume not in ("auto", "never"):
        resume = Path(resume)
    done = run(config, resume=resume)
    result = {"folder": str(done.folder), "metrics": dict(done.metrics)}
    example = config.task.predict_example
    return Answer(result, lambda screen: texts.show_run(screen, result, example))


def evaluate(options: Namespace) -> Answer:
    """Evaluate a run on one split."""
    folder = _one("eval", "RUN, the folder of a run", options)
    from peftlab.pipeline.run import open_run

    metrics = open_run(folder).evaluate(options.split)
    answer = {"run": str(folder), "split": options.split, "metrics": metrics}
    return Answer(answer, lambda screen: texts.show_metrics(screen, {options.split: metrics}))


def predict(options: Namespace) -> Answer:
    """Answer texts with a run."""
    if not options.arguments:
        raise ConfigError("peftlab predict needs RUN, the folder of a run; see --help.")
    folder, *inputs = options.arguments
    if options.interactive:
        return _conversation(folder, inputs, options)
    from peftlab.cli.predicting import predict as run

    return Answer(*run(folder, inputs, options))


def _conversation(folder: str, inputs: list[str], options: Namespace) -> Answer:
    flags = {"--json": options.json, "--file": options.file, "--output": options.output}
    if others := [flag for flag, value in flags.items() if value] or inputs:
        other = others[0]
        raise ConfigError(f"peftlab predict -i reads texts interactively; leave {other} out.")
    from peftlab.cli.conversation import converse
    from peftlab.pipeline.run import open_run

    run = open_run(folder)
    # Loaded now, while other libraries' output goes to stderr.
    _ = run.loaded
    return Answer(None, lambda screen: converse(screen, run))


def bench(options: Namespace) -> Answer:
    """Compare methods and write the report."""
    flags = []
    if options.methods is not None:
        names = [name.strip() for name in options.methods.split(",") if name.strip()]
        flags.append(_flagged(("bench", "methods"), names, "--methods", options.methods))
    if options.seeds is not None:
        flags.append(_read_flag(("bench", "seeds"), options.seeds, "--seeds"))
    config = _config("bench", options, flags, need=frozenset({"model", "task", "data"}))
    folder = _bench_folder(options.output, config)
    from peftlab.bench.lab import run_bench
    from peftlab.bench.report.quantities import findings, why_nothing_scored
    from peftlab.bench.report.write import text_table, write_reports

    result = run_bench(config, folder=folder)
    page = write_reports(result, folder)
    lines = [text_table(result), "", *findings(result), "", f"Report with plots: {page}"]
    return Answer(
        {**result.to_json(), "report": str(page)},
        lambda screen: screen.line("\n".join(lines)),
        why_nothing_scored(result),
    )


def _bench_folder(output: str | None, config: RunConfig) -> Path:
    if output is not None:
        return Path(output)
    if config.output.dir == "auto":
        return Path("runs") / f"{Path(config.model.name).name or 'model'}-bench"
    # Next to the folder that `train` uses with the same configuration.
    run = Path(config.output.dir)
    return run / "bench" if run.name in ("", "..") else run.with_name(f"{run.name}-bench")


def inspect(options: Namespace) -> Answer:
    """Describe a folder."""
    folder = _one("inspect", "PATH, a folder", options)
    from peftlab.pipeline.inspection import inspect as look

    description = look(folder)
    return Answer(description, lambda screen: screen.tree(description))


def env(options: Namespace) -> Answer:
    """Describe this machine and its packages."""
    _no_arguments("env", options)
    from peftlab.fusion.backend import describe_kernels
    from peftlab.measure.environment import describe_environment
    from peftlab.model.precision import training_device

    description = describe_environment() | {"kernels": describe_kernels(training_device())}
    return Answer(description, lambda screen: texts.show_environment(screen, description))


def _export(options: Namespace) -> Answer:
    from peftlab.cli.exporting import export

    out = _one("export", "RUN_OR_ADAPTER, the folder of a run or an adapter", options)
    data, show = export(out, options)
    return Answer(data, show)


RUN: Mapping[str, Callable[[Namespace], Answer]] = {
    "demo": demo,
    "init": init,
    "plan": plan,
    "data": data,
    "train": train,
    "eval": evaluate,
    "predict": predict,
    "bench": bench,
    "export": _export,
    "inspect": inspect,
    "env": env,
}


def _config(
    command: str, options: Namespace, flags: list[Override] | None = None, **need: frozenset[str]
) -> RunConfig:
    """The configuration from a command's arguments, overridden by its flags."""
    from peftlab.config.loading.loader import load_config
    from peftlab.config.loading.overrides import is_override, parse_override

    words = options.arguments
    files = [argument for argument in words if not is_override(argument)]
    for argument in files:
        if "=" in argument and not Path(argument).exists():
            parse_override(argument)
    if len(files) > 1:
        raise ConfigError(
            f"peftlab {command} takes one CONFIG.yaml, but got {len(files)} words that are neither "
            f"flag nor key.path=value: {', '.join(files)}."
        )
    if not words and not flags:
        raise ConfigError(
            f"peftlab {command} needs CONFIG.yaml, key.path=value, or both; "
            "peftlab init writes a configuration."
        )
    overrides = [parse_override(argument) for argument in words if is_override(argument)]
    file = Path(files[0]) if files else None
    return load_config(file, [*overrides, *(flags or [])], **need).config


def _flagged(path: tuple[str, ...], value: Any, flag: str, text: str | None = None) -> Override:
    """A flag's value as an override of its key; messages name the flag."""
    from peftlab.config.loading.overrides import Override

    written = str(value) if text is None else text
    return Override(path, value, written, f"{flag} {written}")


def _read_flag(path: tuple[str, ...], text: str, flag: str) -> Override:
    from peftlab.config.loading.source import parse_value

    return _flagged(path, parse_value(text, f"{flag} {text}"), flag, text)


def _no_arguments(command: str, options: Namespace) -> None:
    if options.arguments:
        raise ConfigError(
            f"peftlab {command} takes flags only, not {options.arguments[0]!r}; "
            f"see peftlab {command} --help."
        )


def _one(command: str, what: str, options: Namespace) -> Path:
    if len(options.arguments) != 1:
        given = ", ".join(options.arguments) or "nothing"
        raise ConfigError(f"peftlab {command} takes {what}, but got {given}.")
    return Path(options.arguments[0])


def _write_new(file: Path, text: str) -> None:
    """Write a new file. Raises `ConfigError` where it exists or cannot be created."""
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        raise ConfigError(f"{file} exists and is not overwritten; name another file.") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}.") from None
