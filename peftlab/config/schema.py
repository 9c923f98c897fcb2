"""The configuration's sections. One class a section, Hugging Face's spellings, no unknown keys.

Only `pipeline`, the planner and `bench` hold a whole `RunConfig`; everything below them takes one
section or plain arguments.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, Field, model_validator

from peftlab.config.checks import problem_at, refuse_ratio
from peftlab.config.formats import format_names
from peftlab.config.label_names import LabelNames
from peftlab.config.methods.options import METHODS, MethodOptions
from peftlab.config.reader import Column, ReaderConfig
from peftlab.config.regularization import RegularizationConfig
from peftlab.config.section import AutoCount, Count, Names, OneOf, ReadBy, Section, Seed
from peftlab.config.tasks.options import TaskOptions

__all__ = [
    "BenchConfig",
    "BenchRow",
    "DataConfig",
    "EvalConfig",
    "GenerationConfig",
    "MethodOptions",
    "ModelConfig",
    "OutputConfig",
    "ReadBy",
    "RegularizationConfig",
    "RunConfig",
    "Section",
    "SplitsConfig",
    "TaskOptions",
    "TrainConfig",
]


class ModelConfig(Section):
    name: str = Field(min_length=1, description="Hub id or local folder, weights as safetensors.")
    revision: str | None = Field(None, description="Hub branch, tag or commit; it is recorded.")
    head: Literal["auto", "new"] = Field(
        "auto", description="auto: the checkpoint's own where its labels are the data's; or new."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: the checkpoint's dtype at rest, bf16 or fp32 maths by device."
    )
    trust_remote_code: bool = Field(False, description="Run code that the checkpoint brings along.")


class SplitsConfig(Section):
    train: str = Field(
        "train", min_length=1, description="Name of the training split, or rows: train[:80%]."
    )
    validation: str | Annotated[float, Field(gt=0, lt=1)] | None = Field(
        "auto",
        description="A split, a fraction of train, null, or auto: the split if there, else 0.1.",
    )
    test: str | None = Field(
        "auto", description="Name of a split, null, or auto: the split if there."
    )
    column: str | None = Field(
        "auto", description="Column with each row's split; auto: split, if it has such names; null."
    )


class DataConfig(Section):
    source: str = Field(
        min_length=1, description="Hub id, a file, or a folder of train|validation|test files."
    )
    subset: str | None = Field(None, description="Name of the hub data set's configuration.")
    format: Annotated[str, OneOf(lambda: ("auto", *format_names()))] = Field(
        "auto", description="What the rows are: text-label, squad, messages, ...; auto: detected."
    )
    columns: dict[str, Column | Annotated[list[Column], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="Role to column: text, text_pair, label; prompt, ...; label: [a, b], one each.",
    )
    label_names: Annotated[LabelNames | None, ReadBy("data.label_names")] = Field(
        None, description="Names of the labels 0, 1, ... in order; as labels.json beside the data."
    )
    label_separator: Annotated[
        Annotated[str, Field(min_length=1)] | None, ReadBy("data.label_separator")
    ] = Field(
        "auto", description="Stands between labels in a cell; auto: as cells show; null: nothing."
    )
    reader: ReaderConfig = Field(
        default_factory=ReaderConfig, description="How files are read that do not say it."
    )
    splits: SplitsConfig = Field(
        default_factory=SplitsConfig, description="Which rows train, choose, and test."
    )
    max_length: Literal["auto"] | Annotated[int, Field(ge=2, le=2**31 - 1)] = Field(
        "auto", description="Tokens a row may have; auto: the model's limit, 512 at most."
    )
    truncation: Literal["warn", "error", "silent"] = Field(
        "warn", description="What to do about longer rows."
    )
    on_bad_rows: Literal["error", "drop"] = Field(
        "error",
        description="Rows that cannot be used: stop, or leave them out, counted and listed.",
    )
    duplicates: Literal["warn", "drop", "error"] = Field(
        "warn", description="Inputs of train that validation or test has too; drop: from train."
    )
    packing: Annotated[bool, ReadBy("data.packing")] = Field(
        False, description="Join rows into sequences of max_length tokens; see task.packing."
    )
    streaming: bool = Field(
        False, description="Read rows one by one, no more than train.max_steps needs; keep on disk."
    )
    max_train_samples: Count | None = Field(
        None, description="Keep so many training rows, drawn by seed; of a stream, the first."
    )
    max_eval_samples: Count | None = Field(
        None, description="Keep so many validation and test rows each."
    )
    seed: Seed = Field(42, description="Seed of splitting and sampling; apart from train.seed.")


class TrainConfig(Section):
    num_train_epochs: float = Field(3, gt=0, le=1e6, description="Times through the data.")
    max_steps: Count | None = Field(None, description="Optimizer steps; beats num_train_epochs.")
    global_batch_size: Count = Field(
        16, description="Rows an optimizer step, whatever the micro-batch."
    )
    micro_batch_size: AutoCount = Field(
        "auto", description="Rows a forward pass; auto: global_batch_size's divisor up to 16."
    )
    learning_rate: Literal["auto"] | Annotated[float, Field(gt=0)] = Field(
        "auto", description="auto: by method and hidden size, see `peftlab plan`."
    )
    lr_scheduler_type: str = Field(
        "linear", min_length=1, description="linear, cosine, constant, ..., as Trainer names them."
    )
    warmup_steps: float = Field(
        0.06,
        ge=0,
        le=2**31 - 1,
        validation_alias=AliasChoices("warmup_steps", "warmup_ratio"),
        description="Steps, or below 1 a fraction of all steps.",
    )
    optim: str = Field(
        "adamw_torch", min_length=1, description="Any optimizer that transformers.Trainer knows."
    )
    weight_decay: float = Field(0.01, ge=0, description="Not on biases and norms.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="Decay of Adam's first moment.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="Decay of Adam's second moment.")
    adam_epsilon: float = Field(1e-8, gt=0, description="Added to Adam's denominator.")
    max_grad_norm: float = Field(1.0, ge=0, description="Clip the gradient's norm; 0: never.")
    gradient_checkpointing: Annotated[bool, ReadBy("train.gradient_checkpointing", by="method")] = (
        Field(False, description="Recompute activations in the backward pass: less memory.")
    )
    loss: Annotated[Literal["auto", "plain", "chunked"], ReadBy("train.loss")] = Field(
        "auto", description="chunked never forms the whole logits; auto: where it equals plain."
    )
    logging_steps: Count = Field(10, description="Steps between two entries of the loss curve.")
    save_every: Literal["epoch", "never"] | Count = Field(
        "epoch", description="When to write a checkpoint to resume from: epoch, never, or steps."
    )
    kernels: Literal["auto", "off"] = Field(
        "auto", description="auto: LoRA layers computed by peftlab's kernels; off: by PEFT."
    )
    allocator: Literal["auto", "off"] = Field(
        "auto", description="auto: keep glibc from returning large buffers after each step."
    )
    seed: Seed = Field(42, description="Seed of initialisation, order and dropout.")

    @model_validator(mode="before")
    @classmethod
    def _ratio_is_a_fraction(cls, data: Any) -> Any:
        refuse_ratio(data)
        return data

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        rows, micro = self.global_batch_size, self.micro_batch_size
        if micro != "auto" and rows % micro:
            below = max(n for n in range(1, min(micro, rows) + 1) if rows % n == 0)
            raise problem_at(
                "micro_batch_size",
                f"is {micro}, which does not divide global_batch_size {rows}; {below} does",
            )
        warmup = self.warmup_steps
        if warmup > 1 and warmup != int(warmup):
            raise problem_at(
                "warmup_steps", f"is {warmup}; allowed: whole steps, or a fraction below 1"
            )
        if self.max_steps is not None and warmup >= 1 and warmup > self.max_steps:
            raise problem_at(
                "warmup_steps",
                f"is {warmup:.0f}, more than max_steps {self.max_steps}; "
                "below 1 it is a fraction of all steps",
            )
        return self


class GenerationConfig(Section):
    max_new_tokens: Count = Field(64, description="Tokens to generate at most.")
    do_sample: bool = Field(False, description="Draw tokens instead of taking the likeliest.")
    temperature: float = Field(1.0, gt=0, description="Read when do_sample is true.")
    top_p: float = Field(1.0, gt=0, le=1, description="Read when do_sample is true.")
    num_beams: Annotated[int, Field(ge=1, le=1024)] = Field(1, description="1: no beam search.")
    length_penalty: float = Field(
        1.0, description="Read when num_beams is above 1; above 1 favours long texts, below short."
    )

    @model_validator(mode="after")
    def _sampling(self) -> Self:
        for key in ("temperature", "top_p"):
            value = getattr(self, key)
            if value != 1.0 and not self.do_sample:
                raise problem_at(key, f"is {value}, which is read only with do_sample: true")
        if self.length_penalty != 1.0 and self.num_beams == 1:
            raise problem_at(
                "length_penalty", f"is {self.length_penalty}, which is read only with num_beams > 1"
            )
        return self


class EvalConfig(Section):
    every: Literal["epoch", "never"] | Count = Field(
        "epoch", description="When to evaluate on validation: epoch, never, or steps."
    )
    metrics: Literal["auto"] | Names = Field("auto", description="The task's metrics to report.")
    best: str = Field("auto", description="Validation metric that chooses the weights kept.")
    early_stopping_patience: Count | None = Field(
        None, description="Evaluations without gain before stopping."
    )
    batch_size: AutoCount = Field("auto", description="Rows a forward pass; auto: 32.")
    generation: Annotated[GenerationConfig, ReadBy("eval.generation")] = Field(
        default_factory=GenerationConfig, description="How texts are generated."
    )

    @model_validator(mode="after")
    def _stopping(self) -> Self:
        if self.early_stopping_patience is not None and self.every == "never":
            raise problem_at(
                "early_stopping_patience",
                f"is {self.early_stopping_patience}, but every is never: nothing is evaluated "
                "to stop by; set every to epoch or to steps",
            )
        return self


class OutputConfig(Section):
    dir: str = Field("auto", min_length=1, description="The run's folder; auto: runs/MODEL-METHOD.")
    overwrite: bool = Field(False, description="Replace an earlier run in that folder.")
    report_to: list[str] = Field(
        default_factory=list, description="Trainer's loggers: tensorboard, wandb, ..."
    )
    plots: bool = Field(True, description="Draw the loss curve.")


class BenchRow(Section):
    method: MethodOptions
    label: str | None = Field(None, min_length=1, description="Name of the row.")
    train: dict[str, object] = Field(
        default_factory=dict, description="train keys of this row alone."
    )


def _default_rows() -> list[str | BenchRow]:
    return [kind.bench_row for kind in METHODS.values() if kind.bench_row is not None]


class BenchConfig(Section):
    methods: list[str | BenchRow] = Field(
        default_factory=_default_rows,
        min_length=1,
        description="Rows: head, last_n[:N], lora[:R], qlora8[:R], qlora4, full, or a mapping.",
    )
    seeds: Annotated[int, Field(ge=1, le=1000)] = Field(
        1, description="Seeds per row, counted up from train.seed."
    )
    untuned: bool = Field(True, description="Add the row of the model before any training.")


class RunConfig(Section):
    """One run: what is trained, on what, how, and where the result goes."""

    model: ModelConfig = Field(description="The pretrained model.")
    task: TaskOptions = Field(description="What the model learns to do.")
    data: DataConfig = Field(description="Rows to train and evaluate on.")
    method: MethodOptions = Field(description="Which parameters are trained.")
    regularization: RegularizationConfig = Field(
        default_factory=RegularizationConfig, description="Penalties on what trains."
    )
    train: TrainConfig = Field(default_factory=TrainConfig, description="The training loop.")
    eval: EvalConfig = Field(default_factory=EvalConfig, description="What is measured and when.")
    output: OutputConfig = Field(default_factory=OutputConfig, description="What a run leaves.")
    bench: BenchConfig = Field(default_factory=BenchConfig, description="What `bench` compares.")
