"""What a batch of OpenAI's API is told beside its file; a group of fields in the form of the ``batch`` flow."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from timestep.batches.lines import Endpoint


class BatchSettings(BaseModel):
    """Settings of a batch; all but the endpoint are for lines that are requests."""

    model_config = ConfigDict(extra="forbid")

    endpoint: Endpoint = Field(
        Endpoint.STEP,
        title="Endpoint",
        description="step: each line holds a step's parameters. Else each line is a request to this endpoint of the "
        "HTTP API, in the format of OpenAI's batches.",
        json_schema_extra={"position": 0},
    )
    completion_window: str = Field(
        "24h",
        title="Completion window",
        description="As it was asked for.",
        json_schema_extra={"position": 1},
    )
    deadline: datetime | None = Field(
        None,
        title="Deadline",
        description="When the window ends, and lines without an answer expire.",
        json_schema_extra={"position": 2},
    )
    output_expires_after: int | None = Field(
        None,
        ge=3_600,
        le=2_592_000,
        title="Output expires after (seconds)",
        description="How long the files with the results are kept; empty for ever.",
        json_schema_extra={"position": 3},
    )
