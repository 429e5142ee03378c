"""From a storage URL to a libcloud driver.

    local:///srv/timestep                                    files below a folder
    s3://KEY:SECRET@bucket/prefix?region=eu-central-1        also ?endpoint=http://host:9000 for other S3 servers
    gs://KEY:SECRET@bucket, azure://ACCOUNT:SECRET@container
    backblaze-b2://…, minio://…, any other libcloud driver   by libcloud's name, '-' for '_'

Credentials may also be given as the options ``key`` and ``secret``; every other option is an argument
of the driver. A new driver of our own is one line in ``DRIVERS``.
"""

import difflib
import functools
import importlib
import inspect
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from timestep.errors import StorageError, UsageError

# scheme -> module, class, what to install where an import is missing
DRIVERS = {
    "local": ("storage.local", "AtomicLocalDriver", "pip install fasteners"),
    "s3": ("libcloud.storage.drivers.s3", "S3StorageDriver", "pip install apache-libcloud"),
    "gs": ("libcloud.storage.drivers.google_storage", "GoogleStorageDriver", "pip install cryptography"),
    "azure": ("libcloud.storage.drivers.azure_blobs", "AzureBlobsStorageDriver", "pip install apache-libcloud"),
}
# libcloud's stub keeps no bytes.
_REFUSED = {"dummy"}
# Seconds to connect, and between two reads. libcloud itself sends uploads and downloads with no timeout.
TIMEOUT = (10, 60)


@dataclass(frozen=True)
class Location:
    """A storage URL, taken apart. ``url`` is what may be shown: no credentials."""

    url: str
    scheme: str
    container: str
    prefix: str = ""
    arguments: dict[str, Any] = field(default_factory=dict, repr=False)

    def connect(self) -> Any:
        """A new libcloud ``StorageDriver``; it serves one thread at a time. Nothing is sent yet.

        Raises:
            UsageError: the driver's package is missing, or the driver refuses the options.
            StorageError: the local folder can't be made.
        """
        if self.scheme == "local":
            try:
                Path(self.arguments["key"], self.container).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(self.url, f"the folder can't be made: {error.strerror}") from error
        try:
            driver = driver_class(self.scheme)(**self.arguments)
        except Exception as error:
            raise UsageError(f"Storage '{self.url}' can't be opened: {error}") from error
        session = driver.connection.connection.session
        session.timeout = TIMEOUT
        session.send = functools.partial(session.send, timeout=TIMEOUT)
        return driver


def parse_url(url: str) -> Location:
    """The place a storage URL names; see the head of this file.

    Raises:
        UsageError: no such driver or option, or a part is missing.
    """
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator:
        raise UsageError(
            f"Storage URL '{_hidden(url)}' names no driver. Did you mean 'local://{Path(url).absolute()}'?"
        )
    return _local(rest) if scheme == "local" else _remote(scheme, rest)


def driver_class(scheme: str) -> Any:
    """The libcloud driver class behind a URL's scheme, imported on first use.

    Raises:
        UsageError: no such driver (names the nearest), or its package is missing (says what to install).
    """
    from libcloud.storage.providers import DRIVERS as LIBCLOUD

    known = {name.replace("_", "-"): (*place, "pip install apache-libcloud") for name, place in LIBCLOUD.items()}
    known = {**{name: place for name, place in known.items() if name not in _REFUSED}, **DRIVERS}
    name = scheme.replace("_", "-")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise UsageError(f"No storage driver '{scheme}'.{hint} Drivers: {', '.join(known)}.")
    module, attribute, install = known[name]
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise UsageError(f"Storage driver '{scheme}' needs a package that is missing ({error}): {install}") from error


def _local(rest: str) -> Location:
    # Settings writes paths as they are, so nothing is decoded here. '/C:/data' is how URLs write 'C:/data'.
    path = Path(rest[1:] if re.match(r"/[A-Za-z]:", rest) else rest)
    if not path.is_absolute() or path.parent == path or ".." in path.parts:
        raise UsageError(f"Storage URL 'local://{rest}' names no folder. Use an absolute path: local:///srv/timestep")
    return Location(f"local://{path.as_posix()}", "local", path.name, arguments={"key": str(path.parent)})


def _remote(scheme: str, rest: str) -> Location:
    """Taken apart by hand: secrets hold '/' and '+', which URL parsers read as something else."""
    driver = driver_class(scheme)
    place, _, query = rest.partition("?")
    userinfo, _, place = place.rpartition("@")
    container, _, prefix = place.partition("/")
    options = {name: unquote(value) for name, _, value in (pair.partition("=") for pair in query.split("&") if pair)}
    key, _, secret = userinfo.partition(":")
    arguments = {"key": options.pop("key", unquote(key)), "secret": options.pop("secret", unquote(secret))}
    shown = "&".join(f"{name}={quote(value, safe=':/')}" for name, value in options.items() if name != "token")
    url = f"{scheme}://{place}" + (f"?{shown}" if shown else "")

    if not container:
        raise UsageError(f"Storage URL '{url}' names no container: {scheme}://KEY:SECRET@container/prefix")
    if not all(arguments.values()):
        raise UsageError(f"Storage URL '{url}' has no credentials: {scheme}://KEY:SECRET@{place}")
    if "endpoint" in options:
        arguments |= _endpoint(options.pop("endpoint"))
    _check_options(scheme, driver, options)
    prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    return Location(url, scheme, container, prefix, {**arguments, **options})


def _endpoint(endpoint: str) -> dict[str, Any]:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
        raise UsageError(f"Storage option endpoint='{endpoint}' is no server. Example: endpoint=http://127.0.0.1:9000")
    secure = parts.scheme == "https"
    return {"secure": secure, "host": parts.hostname, "port": parts.port or (443 if secure else 80)}


def _check_options(scheme: str, driver: Any, options: dict[str, str]) -> None:
    """libcloud swallows arguments it does not know; a misspelt option must not be silently ignored."""
    known = {
        name
        for base in driver.__mro__
        if "__init__" in vars(base)
        for name, parameter in inspect.signature(base.__init__).parameters.items()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    } - {"self", "key", "secret", "secure", "host", "port"} | {"endpoint"}
    for name in options:
        if name not in known and not name.startswith("ex_"):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise UsageError(
                f"Storage driver '{scheme}' has no option '{name}'.{hint} Options: {', '.join(sorted(known))}."
            )


def _hidden(url: str) -> str:
    return url.rpartition("@")[2]
