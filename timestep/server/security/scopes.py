"""Which scope of a key a request needs, by its method and path. What is not listed needs ``admin``.

A step thinks or learns by what its body says: its route asks :func:`demand` for the scope of that.
"""

from starlette.requests import HTTPConnection

from timestep.errors import PermissionDeniedError
from timestep.keys import Scope

INFERENCE = frozenset({Scope.INFERENCE})
TRAINING = frozenset({Scope.TRAINING})
EITHER = INFERENCE | TRAINING

# The shells of pages hold nothing: what they show, they ask for with the key that a person gives them.
OPEN = ("/health", "/livez", "/docs", "/static", "/openapi.json")

# The first that fits counts.
_RULES: tuple[tuple[str, str, frozenset[Scope]], ...] = (
    ("GET", "/metrics", EITHER),
    ("DELETE", "/v1/models", TRAINING),
    ("*", "/v1/models", EITHER),
    ("*", "/v1/fine_tuning", TRAINING),
    ("*", "/v1/files", EITHER),  # of both: what a job learns from, and what it was evaluated on
    ("*", "/v1/uploads", EITHER),
    ("*", "/v1/steps", EITHER),
    *(
        ("*", path, INFERENCE)
        for path in (
            *("/v1/chat", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/conversations"),
            *("/v1/batches", "/v1/agents", "/ap"),
        )
    ),
)


def is_open(path: str) -> bool:
    """Whether anybody may ask."""
    return path == "/" or any(_within(path, prefix) for prefix in OPEN)


def needed(method: str, path: str) -> frozenset[Scope]:
    """The scopes of which a key must have one; none of them where ``admin`` alone will do."""
    asked = "GET" if method == "HEAD" else method
    fits = (scopes for rule, prefix, scopes in _RULES if rule in ("*", asked) and _within(path, prefix))
    return next(fits, frozenset())


def check(held: frozenset[Scope], wanted: frozenset[Scope], what: str) -> None:
    """PermissionDeniedError unless a key with the scopes ``held`` may do ``what``."""
    if Scope.ADMIN in held or held & wanted:
        return
    names = " or ".join(f"'{scope.value}'" for scope in sorted(wanted)) or "'admin'"
    has = ", ".join(f"'{scope.value}'" for scope in sorted(held))
    raise PermissionDeniedError(f"{what} needs a key of scope {names}; this one has {has}.")


def demand(request: HTTPConnection, scope: Scope, what: str) -> None:
    """For routes whose body says what is wanted. PermissionDeniedError: the caller's key doesn't cover it."""
    check(request.state.caller.scopes, frozenset({scope}), what)


def _within(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}/")
