"""What a client asks a fine-tuning job for, as the parameters of a step that learns."""

import re
import secrets
from collections.abc import Container
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from timestep.errors import NotSupportedError, ParameterError
from timestep.models.routing import PREFIX, is_file

LEARNING_RATE = 3e-5  # that a multiplier of 1 means
EPOCHS = 3  # where the client leaves it to us
MOST_EPOCHS = 100
_SUFFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Auto = Literal["auto"]


class Hyperparameters(BaseModel):
    """How to train. An optimiser step is one window of packed conversations, which is a batch of one."""

    model_config = ConfigDict(extra="forbid")

    n_epochs: Auto | Annotated[int, Field(ge=1, le=MOST_EPOCHS)] = "auto"
    batch_size: Auto | Annotated[int, Field(ge=1)] = "auto"
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=1000)] = "auto"


class Supervised(BaseModel):
    """The settings of the one method that there is."""

    model_config = ConfigDict(extra="forbid")

    hyperparameters: Hyperparameters = Hyperparameters()


class Method(BaseModel):
    """How to learn: 'supervised'."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised = Supervised()
    dpo: Any = None
    reinforcement: Any = None


class CreateJob(BaseModel):
    """A fine-tuning job to be made."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(description="local/NAME, the model of an agent; or a base, from which another model is made.")
    training_file: str = Field(description="A file of purpose 'fine-tune': JSONL, a conversation on each line.")
    validation_file: str | None = Field(None, description="The same, to judge the result by.")
    hyperparameters: Hyperparameters | None = Field(None, description="Older form of method.supervised.")
    method: Method | None = None
    suffix: str | None = Field(None, description="The result is a version of local/SUFFIX instead of the model.")
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    metadata: dict[str, str] | None = None
    integrations: list[Any] | None = None

    def parameters(self, lines: Container[str]) -> dict[str, Any]:
        """The step's, where there are these ``lines`` of versions.

        Raises:
            ParameterError, NotSupportedError: what this service can't do, by its name.
        """
        if self.integrations:
            raise NotSupportedError("integrations")
        name, own_line = self._line(lines)
        chosen, where = self._hyperparameters()
        if chosen.batch_size not in ("auto", 1):
            why = "must be 1 or 'auto': an optimiser step is one window of packed conversations."
            raise NotSupportedError(f"{where}.batch_size", why)
        multiplier = 1.0 if chosen.learning_rate_multiplier == "auto" else chosen.learning_rate_multiplier
        training = {
            "dataset": self.training_file,
            "validation": self.validation_file,
            "epochs": EPOCHS if chosen.n_epochs == "auto" else chosen.n_epochs,
            "learning_rate": LEARNING_RATE * multiplier,
            "promote": "always" if own_line else "if_better",
            "own_line": own_line,
        }
        if self.seed is not None:
            training["seed"] = self.seed
        return {"agent": name, "model": self.model, "mode": "training", "training": training}

    def _line(self, lines: Container[str]) -> tuple[str, bool]:
        """The line of versions that the result belongs to, and whether it is another than the model's own."""
        if is_file(self.model):
            raise ParameterError("model", "is a file; name a model that /v1/models lists.")
        if self.suffix is not None:
            if not _SUFFIX.fullmatch(self.suffix):
                said = f"'{self.suffix[:80]}', which has more than 64 characters, or others than letters, digits, .-_"
                raise ParameterError("suffix", f"is {said}")
            return self.suffix, True
        name = self.model.removeprefix(PREFIX).partition("@")[0]
        if self.model.startswith(PREFIX) and name in lines:
            return name, False
        return f"{name}-{secrets.token_hex(3)}", True

    def _hyperparameters(self) -> tuple[Hyperparameters, str]:
        """As asked for, and where."""
        method = self.method
        if method is not None and method.type != "supervised":
            raise NotSupportedError("method.type", f"'{method.type}' is not supported; 'supervised' is.")
        if method is not None and (method.dpo is not None or method.reinforcement is not None):
            raise NotSupportedError("method.dpo" if method.dpo is not None else "method.reinforcement")
        if method is not None and self.hyperparameters is not None:
            raise ParameterError("hyperparameters", "is the older form of 'method'. Give one of them.")
        if self.hyperparameters is not None:
            return self.hyperparameters, "hyperparameters"
        supervised = method.supervised if method is not None else Supervised()
        return supervised.hyperparameters, "method.supervised.hyperparameters"
