"""Every error Timestep raises on purpose, one tree.

A constructor takes facts and writes the sentence: what happened, with the value in quotes, then the
next step. The command line prints that line and exits 1; the server maps ``status`` to HTTP.

    TimestepError                   500
    ├── UsageError                  400  an argument, option or combination that can't be meant
    │   ├── ParameterError          400  a parameter of the API whose value can't be meant
    │   ├── ContextLengthError      400  a prompt that is longer than the model's context
    │   ├── NotSupportedError       400  a parameter of the API that is not implemented
    │   ├── DatasetError            400  a line of a dataset, or a dataset as a whole
    │   └── StateTransferError      400  a part of a run's state that the other language's SDK has no place for
    ├── AuthenticationError         401  no API key, or an unknown one
    ├── PermissionDeniedError       403  an API key whose scopes don't cover what was asked
    ├── SlowRequestError            408  a request whose body stopped coming
    ├── TooLargeError               413  more bytes than are taken
    ├── RateLimitError              429  more requests than are taken now
    ├── NotFoundError               404  an agent, model, tool or object with no such name
    ├── ConflictError               409  a second service on one home, a taken port
    │   ├── UnitChangedError        409  a step started again, whose code asks something else than before
    │   └── RunStateError           409  a saved run's state that is damaged, or of another agent or version
    ├── InterruptionException       409  a run that waits for a person's approval, where the caller asked for it
    ├── AgentFileError              400  an agents file that does not import
    ├── ModelFileError              400  a file that is no GGUF, or a truncated one
    ├── StorageError                503  storage that can't be reached, or refuses
    │   └── IntegrityError          500  an object whose bytes are not those that were stored
    ├── ToolchainError              500  llama.cpp could not be fetched, built or trusted
    ├── TrainingError               500  fine-tuning that crashed, diverged or ran out of disk
    ├── DeadlineError               504  an answer that was not ready in time
    ├── RunFailedError              500  a flow run that ended without a result
    └── ServiceUnavailableError     503  no service runs where one was expected
"""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


class TimestepError(Exception):
    """Base of the tree. ``status`` is the HTTP status, ``code`` the machine-readable kind."""

    status = 500
    code = "internal_error"


class UsageError(TimestepError):
    """An argument or combination of arguments that can't be meant."""

    status = 400
    code = "invalid_request"


class ParameterError(UsageError):
    """A parameter of the API whose value can't be meant: which one, and why."""

    code = "invalid_value"

    def __init__(self, param: str, why: str) -> None:
        super().__init__(f"'{param}' {why}")
        self.param = param


class ContextLengthError(UsageError):
    """A prompt that is longer than the model's context, both in tokens."""

    code = "context_length_exceeded"

    def __init__(self, tokens: int, context: int, *, at_least: bool = False) -> None:
        counted = f"at least {tokens}" if at_least else tokens
        super().__init__(
            f"The prompt has {counted} tokens and the context {context}. Shorten the conversation, "
            "or serve the model with a longer context (TIMESTEP_CONTEXT_LENGTH)."
        )


class NotSupportedError(UsageError):
    """A parameter that is known, and not implemented: refused by name instead of ignored."""

    code = "unsupported_parameter"

    def __init__(self, param: str, why: str = "is not supported. Leave it out.") -> None:
        super().__init__(f"'{param}' {why}")
        self.param = param


class AuthenticationError(TimestepError):
    """No key, or none that is known."""

    status = 401
    code = "invalid_api_key"


class PermissionDeniedError(TimestepError):
    """A key whose scopes don't cover this."""

    status = 403
    code = "insufficient_scope"


class TooLargeError(TimestepError):
    """More bytes than are taken."""

    status = 413
    code = "too_large"


class SlowRequestError(TimestepError):
    """A request whose body stopped coming."""

    status = 408
    code = "request_timeout"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"No byte of the request's body came for {seconds:g} s.")


class DeadlineError(TimestepError):
    """An answer that was not ready in time."""

    status = 504
    code = "timeout"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"The answer was not ready after {seconds:g} s. What was begun may still be done: look first.")


class RateLimitError(TimestepError):
    """More requests than are taken now; ``retry_after`` in seconds says when to come back."""

    status = 429
    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DatasetError(UsageError):
    """A dataset that can't be trained on: which one, which line, and why."""

    code = "invalid_dataset"

    def __init__(self, dataset: str, why: str, line: int | None = None) -> None:
        where = f"'{dataset}'" if line is None else f"'{dataset}', line {line}"
        super().__init__(f"Dataset {where}: {why}")
        self.dataset, self.line, self.why = dataset, line, why


class StateTransferError(UsageError):
    """A part of a run's state that can't be carried to the other language: what, where and why.

    ``where`` is the path in the state's JSON, such as ``generated_items[2].raw_item``.
    """

    code = "state_not_transferable"

    def __init__(self, target: str, where: str, why: str) -> None:
        super().__init__(f"This state can't be carried to {target}: '{where}' {why}.")
        self.target, self.where, self.why = target, where, why


class NotFoundError(TimestepError):
    """No such agent, model, tool or object; names the nearest and lists what there is."""

    status = 404
    code = "not_found"

    def __init__(self, kind: str, name: str, known: Iterable[str] = ()) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=1)
        sentence = f"No {kind} '{name}'."
        if near:
            sentence += f" Did you mean '{near[0]}'?"
        if known:
            sentence += f" {kind.capitalize()}s: {', '.join(known[:20])}{', …' if len(known) > 20 else ''}."
        super().__init__(sentence)
        self.kind, self.name, self.known = kind, name, known


class ConflictError(TimestepError):
    """Two things that can't both be: a second service on one home, a taken port."""

    status = 409
    code = "conflict"


class UnitChangedError(ConflictError):
    """A step started again asks something else at a position than what is recorded there: the code changed."""

    code = "unit_changed"

    def __init__(self, step_id: str, position: str, recorded: str, changed: Iterable[str] = ()) -> None:
        what = ", ".join(changed)
        super().__init__(
            f"Step '{step_id}' asks something else at '{position}' than the {recorded} recorded there: its code "
            f"changed in between{f' ({what})' if what else ''}. "
            f"Start it with the code of before, or go on from the record: "
            f"timestep resume {step_id} --accept-changes"
        )
        self.step_id, self.position = step_id, position


class RunStateError(ConflictError):
    """A saved run's state that can't be loaded: where it lies, and why."""

    code = "run_state_refused"

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"Run state '{where}': {why}")
        self.where, self.why = where, why


class InterruptionException(TimestepError):  # noqa: N818 - the name that the interface is specified with
    """A run that waits for approvals. ``interruptions`` are the waiting calls, ``state`` is where it goes on.

    Decide with ``state.approve(item)`` or ``state.reject(item)``, then ``run_agent(agent, state)``.
    """

    status = 409
    code = "approval_needed"

    def __init__(self, interruptions: Sequence[Any], state: Any) -> None:
        names = ", ".join(f"'{item.name}'" for item in interruptions)
        super().__init__(f"The run waits for a person's approval of {names}. Decide in its state, then run that.")
        self.interruptions, self.state = list(interruptions), state


class AgentFileError(TimestepError):
    """An agents file that does not import: which file, which line, and why."""

    status = 400
    code = "invalid_agents_file"

    def __init__(self, path: Path, why: str, line: int | None = None) -> None:
        where = f"'{path}'" if line is None else f"'{path}', line {line}"
        super().__init__(f"Agents file {where}: {why}")
        self.path, self.line = path, line


class ModelFileError(TimestepError):
    """A model file that can't be loaded."""

    status = 400
    code = "invalid_model_file"

    def __init__(self, path: str | Path, why: str) -> None:
        super().__init__(f"Model file '{path}': {why}")
        self.path = path


class StorageError(TimestepError):
    """Storage that can't be reached, or refuses."""

    status = 503
    code = "storage_unavailable"

    def __init__(self, url: str, why: str) -> None:
        super().__init__(f"Storage '{url}': {why}")
        self.url = url


class IntegrityError(StorageError):
    """An object whose bytes are not those that were stored."""

    status = 500
    code = "corrupted_object"

    def __init__(self, url: str, key: str, expected: str, actual: str) -> None:
        super().__init__(url, f"object '{key}' is corrupted: sha256 {actual[:12]}…, stored as {expected[:12]}…")
        self.key, self.expected, self.actual = key, expected, actual


class ToolchainError(TimestepError):
    """llama.cpp's tools could not be fetched, built or trusted."""

    code = "toolchain_error"


class TrainingError(TimestepError):
    """Fine-tuning that crashed, diverged or ran out of disk; keeps the tool's last output.

    ``log`` is the tail of what the tool printed (text, at most a few KB).
    """

    code = "training_error"

    def __init__(self, why: str, log: str = "") -> None:
        super().__init__(why)
        self.log = log


class RunFailedError(TimestepError):
    """A flow run that ended without a result, in the words of its final state."""

    code = "run_failed"


class ServiceUnavailableError(TimestepError):
    """No service runs where one was expected: ``what``. ``by_tool``: it is a user's tool that expected one."""

    status = 503
    code = "service_unavailable"

    def __init__(self, what: str, url: str) -> None:
        advice = "" if what == "provider" else " Start one: timestep up"
        super().__init__(f"No {what} answers at '{url}'.{advice}")
        self.what, self.url, self.by_tool = what, url, False
