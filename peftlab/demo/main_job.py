"""Runs the demo: five methods on one model and one data set, a report, three predictions."""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from peftlab.bench.lab import run_bench
from peftlab.bench.report.quantities import findings, metric_name
from peftlab.bench.report.write import text_table, write_reports
from peftlab.bench.results import BenchResult
from peftlab.config.methods.options import always_mergeable
from peftlab.demo.minilm import locate_model
from peftlab.errors import CheckFailed

if TYPE_CHECKING:
    from peftlab.export.report import MergeReport

logger = logging.getLogger("peftlab")

HERE = Path(__file__).resolve().parent
DATA = HERE / "data" / "sentences_3domains"
SENTENCES = (
    "A warm and funny film with a wonderful cast.",
    "The battery died after two days and nobody answered my mails.",
)
OWN_SENTENCE = "The waiter was rude, but I would come back for the soup alone."


@dataclass(frozen=True, slots=True)
class Answer:
    """The best model's prediction for a sentence."""

    sentence: str
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The bench, its report, the predictions of its best model, and the next command."""

    bench: BenchResult
    report: Path
    best_run: Path
    answers: tuple[Answer, ...]
    merged: MergeReport
    next_command: str

    def text(self) -> str:
        """All of it as plain text for a terminal."""
        best = self.bench.best()
        label = best.label if best is not None else "best model"
        lines = [
            text_table(self.bench),
            "",
            *findings(self.bench),
            "",
            f"Three sentences, classified by the {label} run, "
            f"which had the best {metric_name(self.bench.metric)} on {self.bench.chosen_on}:",
            *(f"  {a.label:<8} {a.probability:6.1%}  {a.sentence}" for a in self.answers),
            "",
            "Merged into one model, whose logits differ from the trained one's by "
            f"{self.merged.verified['logits']['error']:.0e}. Transformers alone loads it:",
            f"  transformers.{self.merged.auto_class}.from_pretrained({str(self.merged.folder)!r})",
            "",
            f"Report with plots: {self.report}",
            "Next, your own data:",
            f"  {self.next_command}",
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, object]:
        """JSON values only."""
        return {
            "bench": self.bench.to_json(),
            "report": str(self.report),
            "best_run": str(self.best_run),
            "answers": [
                {"text": a.sentence, "label": a.label, "probability": a.probability}
                for a in self.answers
            ],
            "merged": self.merged.to_json(),
            "next_command": self.next_command,
        }


def run_demo(text: str | None, folder: Path) -> DemoResult:
    """Run the bundled configuration into `folder` and classify three sentences, `text` the last.

    Takes three to four minutes on two cores, and needs the network only to download the model once.
    An earlier demo in `folder` is replaced. Raises `CheckFailed` where the model is not available
    or no method finished.
    """
    from peftlab.config import load_config

    config = load_config(HERE / "demo.yaml", ()).config
    model = locate_model()
    logger.info("Model: %s", model)
    config = config.model_copy(
        update={
            "model": config.model.model_copy(update={"name": str(model)}),
            "data": config.data.model_copy(update={"source": str(DATA)}),
            "output": config.output.model_copy(update={"dir": str(folder), "overwrite": True}),
        }
    )
    bench = run_bench(config, folder=folder)
    report = write_reports(bench, folder)
    best = bench.best()
    if best is None or best.good[0].folder is None:
        reasons = "; ".join(f"{row.label}: {row.failure}" for row in bench.rows if row.failure)
        raise CheckFailed(f"No method finished ({reasons}). Their logs are in {folder / 'logs'}.")
    run = Path(best.good[0].folder)
    answers = classify(run, [*SENTENCES, text or OWN_SENTENCE])
    merged = export_best(bench, folder / "merged")
    return DemoResult(bench, report, run, answers, merged, next_command(model))


def export_best(bench: BenchResult, out: Path) -> MergeReport:
    """The best run whose head Transformers has a class for, merged into `out` and verified.

    An earlier demo's model there is replaced. A head on pooled features has no such class.
    """
    from peftlab.export.report import REPORT
    from peftlab.pipeline.export.runs import export

    best = replace(
        bench, rows=tuple(row for row in bench.rows if always_mergeable(row.method))
    ).best()
    if best is None or best.good[0].folder is None:
        raise CheckFailed("No method finished whose model can be exported.")
    if (out / REPORT).is_file():
        shutil.rmtree(out)
    logger.info("export of %s into %s", best.label, out)
    return export(best.good[0].folder, out)


def classify(run: Path, sentences: Sequence[str]) -> tuple[Answer, ...]:
    """The prediction of the run's model for each sentence."""
    from peftlab.pipeline.run import open_run

    predictions = open_run(run).predict(list(sentences))
    return tuple(
        Answer(sentence, str(row["label"]), float(row["probability"]))
        for sentence, row in zip(sentences, predictions, strict=True)
    )


def next_command(model: Path) -> str:
    """The command for the user's own data, quoted so that it can be pasted."""
    program = "peftlab"
    if shutil.which(program) is None:
        # Not on the search path: the environment is not activated.
        script = Path(sys.prefix) / "bin" / program
        program = str(
            script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script
        )
    words = ("init", "--model", str(model), "--task", "text-classification")
    return f"{shlex.join([program, *words])} --data YOUR.csv --method lora"
