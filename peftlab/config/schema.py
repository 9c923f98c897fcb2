"""The configuration's sections. One class a section, Hugging Face's spellings, no unknown keys.

Only `pipeline`, the planner and `bench` hold a whole `RunConfig`; everything below them takes one
section or plain arguments.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

TaskName = Literal["text-classification", "causal-lm"]


class ReadBy:
    """Marks a key that only some tasks read; setting it under another task is an error."""

    def __init__(self, *tasks: TaskName) -> None:
        self.tasks = tasks


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ModelConfig(Section):
    name: str = Field(min_length=1, description="Hub id or local folder, weights as safetensors.")
    revision: str | None = Field(None, description="Hub branch, tag or commit; resolved and recorded.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: the checkpoint's dtype at rest, bf16 or fp32 arithmetic by device."
    )
    trust_remote_code: bool = Field(False, description="Run code that the checkpoint brings along.")


class SplitsConfig(Section):
    train: str = Field("train", description="Name of the training split.")
    validation: str | float = Field(
        "auto", description="Name of a split, a fraction of train, or auto: the split if there, else 0.1."
    )
    test: str | None = Field("auto", description="Name of a split, null, or auto: the split if there.")


class DataConfig(Section):
    source: str = Field(min_length=1, description="Hub id, a file, or a folder of train|validation|test files.")
    subset: str | None = Field(None, description="Name of the hub data set's configuration.")
    columns: dict[str, str] = Field(
        default_factory=dict, description="Role to column: text, text_pair, label, prompt, completion."
    )
    splits: SplitsConfig = Field(default_factory=SplitsConfig)
    max_length: Literal["auto"] | Annotated[int, Field(ge=2)] = Field(
        "auto", description="Tokens a row may have; auto: the model's limit, 512 at most."
    )
    truncation: Literal["warn", "error", "silent"] = Field("warn", description="What to do about longer rows.")
    packing: Annotated[bool, ReadBy("causal-lm")] = Field(
        False, description="Plain text only: join rows into blocks of max_length tokens."
    )
    max_train_samples: int | None = Field(None, ge=1, description="Keep so many training rows, drawn by seed.")
    max_eval_samples: int | None = Field(None, ge=1, description="Keep so many validation and test rows each.")
    seed: int = Field(42, ge=0, description="Seed of splitting and sampling; apart from train.seed.")


class HeadMethod(Section):
    name: Literal["head"]
    pooling: Annotated[
        Literal["auto", "cls", "mean", "last", "model"], ReadBy("text-classification")
    ] = Field("auto", description="How token features become one; auto reads the checkpoint's pooling config.")
    cache_limit: str = Field("2GiB", description="Memory for cached features; above it they live in a mapped file.")


class LastNMethod(Section):
    name: Literal["last_n"]
    n: int = Field(2, ge=1, description="How many of the last blocks train, with all that follows them.")


class _AdapterMethod(Section):
    r: int = Field(16, ge=1, le=256, description="Rank.")
    alpha: float = Field(
        32, gt=0, validation_alias=AliasChoices("alpha", "lora_alpha"), description="Scaling is alpha / r."
    )
    dropout: float = Field(
        0.05, ge=0, lt=1, validation_alias=AliasChoices("dropout", "lora_dropout"),
        description="Dropout on the adapter's input.",
    )
    target_modules: Literal["auto", "all-linear"] | list[str] = Field(
        "auto", description="auto: every linear inside the blocks; all-linear: the others too; or patterns."
    )
    modules_to_save: Literal["auto"] | list[str] = Field(
        "auto", description="Modules trained in full beside the adapter; auto: the task's head."
    )
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(r) (rank-stabilised LoRA).")
    init_from: str | None = Field(None, description="Folder of an adapter whose weights training starts from.")


class LoraMethod(_AdapterMethod):
    name: Literal["lora"]
    use_dora: bool = Field(False, description="Weight-decomposed LoRA.")


class QLoraMethod(_AdapterMethod):
    name: Literal["qlora"]
    bits: Literal[8] = Field(8, description="Bits of the frozen base.")


class FullMethod(Section):
    name: Literal["full"]


MethodConfig = Annotated[
    HeadMethod | LastNMethod | LoraMethod | QLoraMethod | FullMethod, Field(discriminator="name")
]


class TrainConfig(Section):
    num_train_epochs: float = Field(3, gt=0)
    max_steps: int | None = Field(None, ge=1, description="Optimizer steps; overrides num_train_epochs.")
    global_batch_size: int = Field(16, ge=1, description="Rows an optimizer step, whatever the micro-batch.")
    micro_batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="Rows a forward pass; divides global_batch_size. auto: its largest divisor up to 16."
    )
    learning_rate: Literal["auto"] | Annotated[float, Field(gt=0)] = Field(
        "auto", description="auto: by method and hidden size, see `peftlab plan`."
    )
    lr_scheduler_type: str = "linear"
    warmup_steps: float = Field(
        0.06, ge=0, validation_alias=AliasChoices("warmup_steps", "warmup_ratio"),
        description="Steps, or below 1 a fraction of all steps.",
    )
    optim: str = Field("adamw_torch", description="Any optimizer that transformers.Trainer knows.")
    weight_decay: float = Field(0.01, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, ge=0, description="Clip the gradient's norm; 0: never.")
    gradient_checkpointing: bool = False
    loss: Annotated[Literal["auto", "plain", "chunked"], ReadBy("causal-lm")] = Field(
        "auto", description="chunked never forms the whole logits; auto takes it where it equals plain."
    )
    logging_steps: int = Field(10, ge=1)
    save_every: Literal["epoch", "never"] | Annotated[int, Field(ge=1)] = Field(
        "epoch", description="When to write a checkpoint to resume from: epoch, never, or steps."
    )
    allocator: Literal["auto", "off"] = Field(
        "auto", description="auto: keep glibc from returning large buffers to the kernel after each step."
    )
    seed: int = Field(42, ge=0, description="Seed of initialisation, order and dropout.")


class GenerationConfig(Section):
    max_new_tokens: int = Field(64, ge=1)
    do_sample: bool = False
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    num_beams: int = Field(1, ge=1)


class EvalConfig(Section):
    every: Literal["epoch", "never"] | Annotated[int, Field(ge=1)] = Field(
        "epoch", description="When to evaluate on validation: epoch, never, or steps."
    )
    metrics: Literal["auto"] | list[str] = Field("auto", description="The task's metrics to report.")
    best: str = Field("auto", description="Validation metric that chooses the weights kept.")
    early_stopping_patience: int | None = Field(None, ge=1, description="Evaluations without gain before stopping.")
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = Field("auto", description="auto: 32.")
    generation: Annotated[GenerationConfig, ReadBy("causal-lm")] = Field(
        default_factory=GenerationConfig, description="How predict generates."
    )


class OutputConfig(Section):
    dir: str = Field("auto", description="The run's folder; auto: runs/MODEL-METHOD.")
    overwrite: bool = Field(False, description="Replace an earlier run in that folder.")
    report_to: list[str] = Field(default_factory=list, description="Trainer's loggers: tensorboard, wandb, ...")
    plots: bool = True


class BenchRow(Section):
    method: MethodConfig
    label: str | None = Field(None, description="Name of the row; by default the method's.")
    train: dict[str, object] = Field(default_factory=dict, description="train keys of this row alone.")


class BenchConfig(Section):
    methods: list[str | BenchRow] = Field(
        default_factory=lambda: ["head", "last_n:2", "lora", "qlora8", "full"],
        min_length=1,
        description="Rows: head, last_n[:N], lora[:R], qlora8, full, or {label, method, train}.",
    )
    seeds: int = Field(1, ge=1, description="Seeds per row, counted up from train.seed.")
    untuned: bool = Field(True, description="Add the row of the model before any training.")


class RunConfig(Section):
    """One run: what is trained, on what, how, and where the result goes."""

    model: ModelConfig
    task: TaskName
    data: DataConfig
    method: MethodConfig
    train: TrainConfig = Field(default_factory=TrainConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    output: OutputConfig = Field(default_factory=OutputConfig)
    bench: BenchConfig = Field(default_factory=BenchConfig)
