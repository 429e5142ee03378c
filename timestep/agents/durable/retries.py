"""Which failures of a model call are worth another try, and when. Knows errors and waits, not units or positions.

The tries of one call are one unit: the SDK's own retry loop runs inside it, with the author's policy
(``ModelSettings.retry``) where there is one, and with the one below elsewhere. The provider client's retries are
switched off meanwhile, or both would multiply.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import openai
from agents import (
    Model,
    ModelResponse,
    ModelRetryBackoffSettings,
    ModelRetrySettings,
    RetryDecision,
    RetryPolicyContext,
    retry_policies,
)
from agents.exceptions import ModelTimeoutError
from agents.models._retry_runtime import provider_managed_retries_disabled
from agents.run_internal.model_retry import get_response_with_retry

from timestep.agents.durable.streams import BrokenStreamError

LONGEST_WAIT = 600.0  # seconds; a server that asks for more is told to the person instead
# Parts of the codes of failures within a stream that pass by themselves.
_PASSING = ("server_error", "internal", "rate_limit", "overload", "unavailable", "timeout", "slow_down", "connection")
_HOPELESS = {"insufficient_quota", "billing_hard_limit_reached", "invalid_api_key", "content_filter"}
_transient = retry_policies.any(
    retry_policies.provider_suggested(),
    retry_policies.network_error(),
    retry_policies.http_status({408, 409, 425, 429, *range(500, 600)}),
)


async def transient(context: RetryPolicyContext) -> bool | RetryDecision:
    """Rate limits, server errors and transport errors; the wait is what the server asks for (``Retry-After``)."""
    error = context.normalized
    if error.error_code in _HOPELESS or (error.retry_after or 0) > LONGEST_WAIT:
        return False
    if isinstance(context.error, ModelTimeoutError):
        return context.attempt == 1  # what was slow twice is slow
    if type(context.error) is openai.APIError:
        return not _blames_request(context.error)  # told within a stream, whose status was 200
    if isinstance(context.error, BrokenStreamError):
        code = context.error.code
        return code is None or any(part in code for part in _PASSING)
    decision = _transient(context)
    return decision if isinstance(decision, bool | RetryDecision) else await decision


DEFAULT_RETRY = ModelRetrySettings(
    max_retries=5,
    backoff=ModelRetryBackoffSettings(initial_delay=0.5, max_delay=30.0, multiplier=2.0, jitter=True),
    policy=transient,
)


async def retrying(
    call: Callable[[], Awaitable[ModelResponse]],
    model: Model,
    retry: ModelRetrySettings,
    timeout: float | None,
    request: dict[str, Any],
) -> ModelResponse:
    """The response of the first try that succeeds; ``timeout`` (seconds) is of each try.

    ``request`` may hold a ``previous_response_id`` or ``conversation_id``: repeating such a request is not always safe.

    Raises:
        The last try's error. ModelTimeoutError: it took too long.
    """

    async def attempt() -> ModelResponse:
        with provider_managed_retries_disabled(True):
            return await call()

    async def nothing_to_rewind() -> None:
        return

    return await get_response_with_retry(
        get_response=attempt,
        rewind=nothing_to_rewind,
        retry_settings=retry,
        get_retry_advice=model.get_retry_advice,
        previous_response_id=request.get("previous_response_id"),
        conversation_id=request.get("conversation_id"),
        timeout=timeout,
    )


def _blames_request(error: openai.APIError) -> bool:
    kind = str((error.body or {}).get("type")) if isinstance(error.body, dict) else ""
    return "invalid" in kind or "not_found" in kind or "auth" in kind or str(error.code) in _HOPELESS
