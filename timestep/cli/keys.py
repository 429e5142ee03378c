"""Commands about API keys: keys create, keys list, keys revoke."""

import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from timestep.cli.options import Home, Json, run, settings_of
from timestep.errors import UsageError

keys = typer.Typer(no_args_is_help=True, help="API keys of the HTTP API: create, list, revoke.")


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is called.")] = "default",
    scope: Annotated[
        list[str] | None,
        typer.Option(help="inference, training or admin (both, and all else); repeatable.  [default: inference]"),
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Most requests in a minute.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it: it can't be shown again. From the first one on, the API asks for a key."""
    from timestep.keys import Scope

    asked, known = scope or [Scope.INFERENCE.value], tuple(one.value for one in Scope)
    if unknown := set(asked) - set(known):
        raise UsageError(f"No scope '{unknown.pop()}'. Scopes: {', '.join(known)}.")
    scopes = [Scope(one) for one in asked]
    row, key = run(_with(home, lambda kept: kept.create(name, scopes, requests_per_minute)))
    if as_json:
        print(json.dumps(_shown(row) | {"key": key}))
        return
    print(f"Key '{row.name}' ({row.id}), for {', '.join(row.scopes)}. It is not shown again:", file=sys.stderr)
    print(key)


@keys.command("list")
def list_keys(home: Home = None, as_json: Json = False) -> None:
    """Say which keys there are, by their first characters."""
    rows = run(_with(home, lambda kept: kept.all()))
    if as_json:
        print(json.dumps([_shown(row) for row in rows]))
        return
    for row in rows:
        state = "revoked" if row.revoked_at else "valid"
        rate = f"{row.requests_per_minute}/min" if row.requests_per_minute else ""
        scopes = ",".join(row.scopes)
        print(f"{row.id}  {row.shown}…  {state:<7}  {row.created_at:%Y-%m-%d}  {scopes:<18}  {rate:<8}  {row.name}")
    if not rows:
        print("No key yet. Make one: timestep keys create", file=sys.stderr)


@keys.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its id, its name, or the key itself.")],
    forget: Annotated[
        bool, typer.Option("--forget", help="Delete its record too. With none left, this machine needs no key again.")
    ] = False,
    home: Home = None,
) -> None:
    """End a key, within a second on every server."""
    row = run(_with(home, lambda kept: kept.revoke(key, forget=forget)))
    print(f"{row.id} revoked")


def _shown(row: Any) -> dict[str, Any]:
    """What may be told of a key."""
    return {
        "id": row.id,
        "name": row.name,
        "shown": row.shown,
        "scopes": row.scopes,
        "requests_per_minute": row.requests_per_minute,
        "created_at": row.created_at.isoformat(),
        "revoked_at": row.revoked_at.isoformat() if row.revoked_at else None,
    }


async def _with(home: Path | None, work: Callable[[Any], Awaitable[Any]]) -> Any:
    from deployments.offline import database_of
    from timestep.keys import Keys

    async with database_of(settings_of(home=home)) as database:
        return await work(Keys(database))
