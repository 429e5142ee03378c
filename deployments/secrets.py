"""The Secrets of a service in Kubernetes, made once: `python -m deployments.secrets --prefix P --namespace N NAME…`.

Made by this and not by templates, so that their values are in no rendered manifest and outlive every upgrade, whoever
applies the manifests. What is there is kept; what is missing is added, also keys that a newer version wants.

Of its service account this needs, on secrets: `create`, and by the names of those Secrets `get`, `patch` (to add a key)
and, to forget them, `delete`.
"""

import argparse
import asyncio
import base64
import json
import os
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from deployments.program import exit_code
from timestep.errors import TimestepError, UsageError

if TYPE_CHECKING:
    from kubernetes_asyncio.client import CoreV1Api, V1Secret

MAKER = ("app.kubernetes.io/managed-by", "timestep-secrets")  # the label of what was made here
ATTEMPTS = 5  # where others write the same Secret at the same time
SECONDS = 30.0  # for one answer of the Kubernetes API
# Of the names, this is what no flow run needs: it stays out of the namespace of jobs.
KEPT_BACK = ("api-key",)

Values = dict[str, str]


def _token() -> str:
    return secrets.token_urlsafe(32)


def _database(host: str, values: Mapping[str, str]) -> Values:
    """The database's password, and its URL; which follows the password, and the host where that has changed."""
    password = values.get("password") or _token()
    return {"password": password, "url": f"postgresql://timestep:{password}@{host}:5432/postgres"}


def _key(host: str, values: Mapping[str, str]) -> Values:
    return {"key": values.get("key") or f"ts-{_token()}"}


def _login(host: str, values: Mapping[str, str]) -> Values:
    return {"auth": values.get("auth") or f"timestep:{_token()}"}


# By name: what a Secret is to hold, given the database's host and what it holds.
KINDS: dict[str, Callable[[str, Mapping[str, str]], Values]] = {
    "database": _database,
    "service-key": _key,
    "prefect-auth": _login,
    "api-key": _key,
}


class Secrets:
    """The Secrets of one namespace. Every method raises TimestepError with one line that says what is in the way."""

    def __init__(self, api: "CoreV1Api", namespace: str) -> None:
        self._api, self.namespace = api, namespace

    async def complete(self, name: str, wanted: Callable[[Mapping[str, str]], Values]) -> tuple[Values, str]:
        """Have the Secret hold what is wanted, given what it holds; returns its values, and what was done.

        Whoever does so at the same time ends with the same values: the first one's.
        """
        for _ in range(ATTEMPTS):
            there = await self._read(name)
            held = _decoded(there) if there is not None else {}
            values = wanted(held)
            if there is not None and held.items() >= values.items():
                return held, "kept"
            written = self._create(name, values) if there is None else self._add(name, there, values)
            if await written:
                return {**held, **values}, "made" if there is None else "completed"
            # Somebody else was first: what they wrote counts.
        raise UsageError(f"Secret '{name}' of namespace '{self.namespace}' is written by others all the time.")

    async def forget(self, name: str) -> str:
        """Delete the Secret, unless somebody else made it; returns what was done."""
        there = await self._read(name)
        if there is None:
            return "not there"
        key, value = MAKER
        if (there.metadata.labels or {}).get(key) != value:
            return "kept: it was not made by this"
        asked = self._api.delete_namespaced_secret(name, self.namespace)
        await self._asked("delete", name, asked, HTTPStatus.NOT_FOUND)
        return "deleted"

    async def _read(self, name: str) -> "V1Secret | None":
        asked = self._api.read_namespaced_secret(name, self.namespace)
        found: V1Secret | None = await self._asked("get", name, asked, HTTPStatus.NOT_FOUND)
        return found

    async def _create(self, name: str, values: Values) -> bool:
        from kubernetes_asyncio.client import V1ObjectMeta, V1Secret

        metadata = V1ObjectMeta(name=name, labels=dict([MAKER]))
        secret = V1Secret(metadata=metadata, type="Opaque", string_data=values)
        asked = self._api.create_namespaced_secret(self.namespace, secret)
        return await self._asked("create", name, asked, HTTPStatus.CONFLICT) is not None

    async def _add(self, name: str, there: "V1Secret", values: Values) -> bool:
        # With the version that was read: the server refuses where somebody else has written since.
        change = {"metadata": {"resourceVersion": there.metadata.resource_version}, "stringData": values}
        asked = self._api.patch_namespaced_secret(name, self.namespace, change)
        return await self._asked("patch", name, asked, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT) is not None

    async def _asked(self, verb: str, name: str, asking: Awaitable[Any], *expected: int) -> Any:
        """The answer, or None where its status is one of the expected."""
        from aiohttp import ClientError
        from kubernetes_asyncio.client import ApiException

        try:
            async with asyncio.timeout(SECONDS):
                return await asking
        except ApiException as error:
            if error.status in expected:
                return None
            raise UsageError(self._refused(verb, name, error)) from None
        except (ClientError, OSError) as error:
            said = str(error) or f"nothing came within {SECONDS:g} s"
            raise TimestepError(f"The Kubernetes API does not answer: {said}") from None

    def _refused(self, verb: str, name: str, error: Any) -> str:
        what = f"Secret '{name}' of namespace '{self.namespace}'"
        match error.status:
            case HTTPStatus.UNAUTHORIZED:
                return "The Kubernetes API does not know this token. The pod needs its service account's token mounted."
            case HTTPStatus.FORBIDDEN:
                return f"May not {verb} {what}: give the service account the verb '{verb}' on secrets there."
            case HTTPStatus.NOT_FOUND:
                return f"Namespace '{self.namespace}' is missing. Create it first."
        return f"The Kubernetes API can't {verb} {what} ({error.status}): {_said(error)}"


def _decoded(secret: "V1Secret") -> Values:
    return {name: base64.b64decode(value).decode() for name, value in (secret.data or {}).items()}


def _said(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)


@asynccontextmanager
async def kubernetes() -> AsyncIterator["CoreV1Api"]:
    """The cluster's API: with the pod's token inside a cluster, else as kubectl would. UsageError: there is none."""
    from kubernetes_asyncio import client, config

    configuration = client.Configuration()
    try:
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            await config.load_kube_config(client_configuration=configuration)
    except config.ConfigException as error:
        said = " ".join(str(error).split())
        raise UsageError(f"No cluster is known here: {said} Run this in a pod, or set KUBECONFIG.") from None
    async with client.ApiClient(configuration) as made:
        yield client.CoreV1Api(made)


async def run(arguments: argparse.Namespace) -> None:
    """Make the Secrets that are named, or forget them; one line for each says what was done."""
    host = arguments.database_host or f"{arguments.prefix}-database"
    names = list(dict.fromkeys(arguments.names))
    async with kubernetes() as api:
        own = Secrets(api, arguments.namespace)
        others = [Secrets(api, arguments.also_namespace)] if _is_other(arguments) else []
        for name in names:
            secret = f"{arguments.prefix}-{name}"
            copies = [] if name in KEPT_BACK else others
            if arguments.forget:
                for place in (own, *copies):
                    _say(place, secret, await place.forget(secret))
                continue
            values, done = await own.complete(secret, partial(KINDS[name], host))
            _say(own, secret, done)
            for place in copies:
                _, done = await place.complete(secret, partial(_copied, values))
                _say(place, secret, done)


def _copied(values: Values, _held: Mapping[str, str]) -> Values:
    return values


def _is_other(arguments: argparse.Namespace) -> bool:
    return arguments.also_namespace not in (None, "", arguments.namespace)


def _say(place: Secrets, name: str, done: str) -> None:
    print(f"Secret '{name}' of namespace '{place.namespace}': {done}.", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code; see the module."""
    parser = argparse.ArgumentParser(
        prog="secrets", description="Make the Secrets of a service that are missing, or forget them."
    )
    parser.add_argument("--prefix", required=True, help="what the Secrets' names begin with")
    parser.add_argument("--namespace", required=True, help="the service's namespace")
    parser.add_argument("--also-namespace", help="a namespace of flow runs, which gets copies")
    parser.add_argument("--database-host", help="where the bundled database answers; default: PREFIX-database")
    parser.add_argument("--forget", action="store_true", help="delete them instead")
    parser.add_argument("names", nargs="+", choices=KINDS, metavar="NAME", help=", ".join(KINDS))
    return exit_code(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
