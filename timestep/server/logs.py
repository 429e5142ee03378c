"""The server's log: no line of it holds a key, whoever wrote the line and whatever an error quotes."""

import logging
import re
from collections.abc import Iterable
from contextlib import suppress
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from timestep.errors import UsageError
from timestep.models import endpoints
from timestep.settings import Settings

HIDDEN = "[hidden]"
_LEAST = 6  # characters: shorter ones are no secrets, and would blank out words
# What a header, a URL or one of our keys looks like, for the secrets of others, which nobody here knows.
_SHAPES = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[^\s'\",;]+"), rf"\1 {HIDDEN}"),
    (re.compile(r"(?i)(api[-_]?key['\"]?\s*[:=]\s*['\"]?)[^\s'\",;&]+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)([?&][\w.-]*(?:password|secret|token|key)=)[^\s'\"&]+"), rf"\1{HIDDEN}"),
    (re.compile(r"://[^/\s:@]*:[^/\s@]+@"), f"://{HIDDEN}@"),
    (re.compile(r"\b(?:ts|sk)-[\w-]{16,}"), HIDDEN),
)


class Discreet(logging.Formatter):
    """Writes a record, its traceback included, without the given secrets and without what looks like one."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        # The longest first: one may be a part of another.
        self._secrets = sorted({secret for secret in secrets if len(secret) >= _LEAST}, key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        """The line, or the lines of an error."""
        text = super().format(record)
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        for shape, replacement in _SHAPES:
            text = shape.sub(replacement, text)
        return text


def secrets_of(settings: Settings) -> list[str]:
    """Every secret that the settings hold: keys, the providers' among them, and passwords in URLs."""
    found = [value.get_secret_value() for _, value in settings if isinstance(value, SecretStr)]
    with suppress(UsageError):  # said by whoever asks for a provider
        found += [one.api_key for one in endpoints.configured(settings).values() if one.api_key]
    for url in (settings.database_url, settings.storage_url):
        if password := urlsplit(url or "").password:
            found += [password, unquote(password)]
    return found


def log_discreetly(settings: Settings) -> None:
    """Log to stderr: warnings, and of ours also which steps were started again, and why."""
    handler = logging.StreamHandler()
    handler.setFormatter(Discreet(secrets_of(settings)))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("timestep").setLevel(logging.INFO)
