"""`--cost FILE`: CPU-seconds and tests by test file, printed as a table and written as JSON.

CPU-seconds are user and system time of the process that runs a test and of the processes it started
and waited for, so that the table reads the same on a busy machine. A fixture of wider scope counts
for the test that sets it up. With pytest-xdist every worker counts and the controller adds up.
"""

from __future__ import annotations

import json
import resource
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

OWN = "(start, collection)"
"""The row of what no test spends: imports, collection, the reports between tests."""


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the figures go; without it nothing is counted."""
    parser.addoption("--cost", metavar="FILE", help="CPU-seconds and tests by file, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    """Count in this process, as a worker or alone; add up where there are workers."""
    if file := config.getoption("--cost"):
        config.pluginmanager.register(Costs(config, Path(file)), "cost-by-file")


class Costs:
    """The CPU-seconds of this process, and those that workers report."""

    def __init__(self, config: pytest.Config, file: Path) -> None:
        self.config, self.file = config, file
        self.seconds: Counter[str] = Counter()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        before = cpu_seconds()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] += cpu_seconds() - before

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """What a worker counted; one that crashed reports nothing."""
        self.seconds.update(getattr(node, "workeroutput", {}).get("cost", {}))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        workers = bool(getattr(self.config.option, "numprocesses", None))
        if not workers:
            # A controller's children are its workers, which count themselves.
            self.seconds[OWN] += cpu_seconds() - sum(self.seconds.values())
        if (sent := getattr(self.config, "workeroutput", None)) is not None:
            sent["cost"] = dict(self.seconds)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        files: dict[str, dict[str, float]] = {}
        for test, seconds in self.seconds.items():
            row = files.setdefault(test.split("::")[0], {"cpu_seconds": 0.0, "tests": 0})
            row["cpu_seconds"] += seconds
            row["tests"] += test != OWN
        ranked = dict(sorted(files.items(), key=lambda row: -row[1]["cpu_seconds"]))
        total = {key: sum(row[key] for row in files.values()) for key in ("cpu_seconds", "tests")}
        written = {"total": total, "files": ranked, "tests": dict(self.seconds.most_common())}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(written, indent=1) + "\n")
        terminalreporter.section("CPU-seconds by file")
        terminalreporter.write_line(f"{'CPU s':>9} {'tests':>6}  file")
        for name, row in [*ranked.items(), ("total", total)]:
            terminalreporter.write_line(f"{row['cpu_seconds']:9.1f} {row['tests']:6.0f}  {name}")
