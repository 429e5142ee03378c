"""The shape of a step: what it takes and what it returns. Pure data, shared by every door.

Flat enough for the Prefect UI's form: the mode is an enum (a select), each mode's settings are one
nested object (a group of fields), and no field is a discriminated union.
"""

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from storage.references import Reference

SEEDS = 2**63  # more than that, and Prefect can store the parameters of a run and never read them again


class Mode(StrEnum):
    """What a step does with its agent: let it think, or let it learn."""

    INFERENCE = "inference"
    TRAINING = "training"


class Promotion(StrEnum):
    """When a newly trained version replaces the one that its agent serves."""

    NEVER = "never"
    IF_BETTER = "if_better"
    ALWAYS = "always"


class Optimizer(StrEnum):
    """Optimisers of ``llama-finetune``."""

    ADAMW = "adamw"
    SGD = "sgd"


class ToolChoice(StrEnum):
    """Whether the model may, must or must not call a tool."""

    AUTO = "auto"
    REQUIRED = "required"
    NONE = "none"


def _in_order(schema: dict[str, Any]) -> None:
    """Prefect's database forgets the order of JSON keys; its form goes by ``position``."""
    for position, name in enumerate(schema["properties"]):
        schema["properties"][name]["position"] = position


class ApprovalDefault(StrEnum):
    """What is decided of a call when nobody decided in time."""

    APPROVE = "approve"
    REJECT = "reject"


class InferenceSettings(BaseModel):
    """Settings of a step that thinks; empty fields leave the agent's own setting."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_in_order)

    temperature: float | None = Field(
        None, ge=0, le=2, title="Temperature", description="0 picks the likeliest token; higher values vary more."
    )
    top_p: float | None = Field(
        None, gt=0, le=1, title="Top p", description="Sample from the likeliest tokens that add up to this probability."
    )
    max_tokens: int | None = Field(
        None, ge=1, le=10**9, title="Max tokens", description="Longest answer of one model call, in tokens."
    )
    seed: int | None = Field(
        None, ge=-SEEDS, lt=SEEDS, title="Seed", description="Equal seeds give equal samples on the local model."
    )
    tool_choice: ToolChoice = Field(
        ToolChoice.AUTO, title="Tool choice", description="Whether the model may, must or must not call a tool."
    )
    stream: bool = Field(True, title="Stream", description="Tell the model's words to watchers as they come.")
    model_timeout: float | None = Field(
        1800,
        gt=0,
        title="Model timeout",
        description="Seconds one try of a model call may take; empty for no end.",
    )
    model_retries: int = Field(
        5,
        ge=0,
        le=100,
        title="Model retries",
        description="More tries of a model call after rate limits and faults.",
    )
    tool_timeout: float | None = Field(
        3600, gt=0, title="Tool timeout", description="Seconds that one tool call may take; empty for no end."
    )
    approval_deadline_hours: float | None = Field(
        None,
        gt=0,
        title="Approval deadline (hours)",
        description="How long approvals and questions wait for a person; empty to wait for ever.",
    )
    approval_default: ApprovalDefault = Field(
        ApprovalDefault.REJECT,
        title="Approval default",
        description="What is decided after the deadline: approve or reject. A question is then left unanswered.",
    )
    request: dict[str, Any] | None = Field(
        None,
        title="Request",
        description="A request of OpenAI's Responses API that the step answers, as POST /v1/responses takes it.",
    )


class TrainingSettings(BaseModel):
    """Settings of a step that learns."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_in_order)

    dataset: str = Field(
        "traces",
        title="Dataset",
        description="'traces' for the agent's own recorded steps, or an OpenAI fine-tuning JSONL file: "
        "a path, the key of a stored object, or the id of a file of the HTTP API.",
    )
    validation: str | None = Field(
        None,
        title="Validation dataset",
        description="A file of the same kind that the result is judged by, instead of a share of the dataset.",
    )
    since_hours: float | None = Field(
        None, gt=0, title="Traces since (hours)", description="Only traces of the last so many hours; empty for all."
    )
    skip_bad_lines: bool = Field(
        False, title="Skip bad lines", description="Train on the good lines of a file that has bad ones."
    )
    epochs: int = Field(1, ge=1, le=100, title="Epochs", description="Passes over the training conversations.")
    learning_rate: float = Field(
        3e-5, gt=0, lt=1, title="Learning rate", description="Step size of the optimiser, constant over an epoch."
    )
    context_length: int = Field(
        1024,
        ge=256,
        le=2**24,
        multiple_of=256,
        title="Context length",
        description="Tokens in one training window, a multiple of 256; longer conversations are cut.",
    )
    batch: int = Field(
        0,
        ge=0,
        lt=SEEDS,
        title="Batch",
        description="Tokens in one optimiser step; 0 means one window, else a divisor of it.",
    )
    optimizer: Optimizer = Field(Optimizer.ADAMW, title="Optimizer", description="adamw, or sgd with less memory.")
    validation_split: float = Field(
        0.1, ge=0, le=0.9, title="Validation split", description="Share of conversations held out to judge the result."
    )
    quantization: str | None = Field(
        None, title="Quantization", description="Type of the served file, for example Q8_0; empty keeps the base's."
    )
    promote: Promotion = Field(
        Promotion.IF_BETTER, title="Promote", description="When the new version replaces the one served now."
    )
    seed: int = Field(
        42, ge=-SEEDS, lt=SEEDS, title="Seed", description="Decides which conversations are held out, and their order."
    )
    own_line: bool = Field(
        False,
        title="Own line",
        description="The agent's name above is that of a line of versions of its own, begun from the model above.",
    )


class Usage(BaseModel):
    """Tokens of a step, summed over its model calls."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    cost: float | None = Field(0.0, description="USD; local models cost nothing. Empty where a price isn't known.")


class ToolCall(BaseModel):
    """One tool call: its name, its arguments as the model wrote them (JSON text), what came back."""

    name: str
    arguments: str
    output: str | None = None


class CallFigures(BaseModel):
    """What one model or tool call took and cost, as it was executed; a replay adds nothing."""

    position: str = Field(description="Where in the step: the path of runs above it, the agent, the turn, the call.")
    kind: str = Field(description="model or tool")
    name: str = Field(description="The model that answered, or the tool.")
    seconds: float = 0.0
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost: float | None = Field(None, description="USD of a model call; empty where its price isn't known.")


class TrainingOutcome(BaseModel):
    """What a step that learned achieved; perplexities and accuracies are on held-out conversations."""

    model_version: str = Field(description="Name of the new version, such as 'local/assistant@3'.")
    losses: list[float] = Field(description="Mean training loss of each epoch, in nats per token.")
    perplexity_before: float | None = None
    perplexity_after: float | None = None
    tool_call_accuracy_before: float | None = None
    tool_call_accuracy_after: float | None = None
    promoted: bool = False
    seconds: float = Field(description="Time spent in the epochs.")
    tokens: int = Field(description="Tokens trained on, all epochs.")
    conversations: int = 0
    held_out: int = 0
    cut: int = Field(0, description="Conversations longer than a window, cut at its end.")
    skipped_lines: int = 0


class StepOutput(BaseModel):
    """What a step returns, in either mode: small JSON; bytes are behind references."""

    step_id: str = Field(description="Id of the Prefect flow run.")
    mode: Mode
    agent: str
    status: str = "completed"
    model: str | None = Field(None, description="The model that was asked, or trained.")
    output: Any = Field(None, description="The agent's final output: text, or the structured output's JSON.")
    turns: int = 0
    tool_calls: list[ToolCall] = Field(default_factory=list)
    forced: bool = Field(False, description="True where a tool call was demanded, not the model's own choice.")
    usage: Usage = Field(default_factory=Usage)
    calls: list[CallFigures] = Field(default_factory=list, description="Its first 200 calls; the trace has all.")
    seconds: float = Field(0.0, description="From the step's start to its end, with its waits for people.")
    artifacts: dict[str, Reference] = Field(default_factory=dict)
    training: TrainingOutcome | None = None
    response: list[dict[str, Any]] | None = Field(
        None, description="The output items of the response, where the step answered a request of the Responses API."
    )


class BatchOutput(BaseModel):
    """Counts of a batch, and where its results are: a JSONL file with one object per input line."""

    total: int
    completed: int
    failed: int
    output: Reference
