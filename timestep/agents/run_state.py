"""A run put aside, to go on in another process: its state in a file, or in our database by session.

What is kept is the SDK's own JSON with one key more, which says what agent and version the state belongs to: the
file can be read by ``RunState.from_string`` as well.
"""

import asyncio
import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol

from agents import Agent, Handoff, RunState, UserError
from agents._run_state_agent_identity import _iter_agent_graph
from sqlalchemy import Select, delete, func, select
from sqlalchemy.dialects.postgresql import insert

from timestep.database.engine import Database
from timestep.database.models import RunStateRow
from timestep.errors import RunStateError, UsageError
from timestep.settings import Settings

Format = Literal["python", "js"]
State = RunState[Any, Agent[Any]]

ABOUT = "$timestep"  # the key that we add


class RunStateStore:
    """One run's state: ``RunStateStore("state.json", agent)``, or ``RunStateStore(agent=…, session_id=…)``.

    By session it is a row of our database on the PostgreSQL server at ``database_url``, by default the setting's
    (TIMESTEP_DATABASE_URL or TIMESTEP_DB_URL); database and tables are made on first use.

    ``version`` is whatever you call your agent's version. A state of another agent or version is refused by name,
    and so is one whose agents have other tools or handoffs by now. The models, instructions and code may change.

    ``format="js"`` keeps the state as the JavaScript SDK's ``RunState.fromString`` reads it, decisions included.

    A context is kept where it is a dictionary. One of another type is given again: ``load(context=…)``.

    Raises:
        UsageError: neither a path nor a session, or both; or no database is named.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        agent: Agent[Any] | None = None,
        *,
        session_id: str | None = None,
        database_url: str | None = None,
        version: str | None = None,
        format: Format = "python",
    ) -> None:
        if agent is None:
            raise UsageError("A run state belongs to an agent. Name it: RunStateStore('state.json', agent).")
        if (path is None) == (session_id is None):
            raise UsageError("A run state lies in a file or by a session: give either a path or a session_id.")
        if format not in ("python", "js"):
            raise UsageError(f"No format '{format}' of run states. Formats: python, js.")
        self._agent, self._version, self._format = agent, version, format
        self._shelf: _Shelf = _Row(session_id, database_url) if session_id is not None else _File(Path(str(path)))

    async def save(self, state: State) -> None:
        """Keep the state, instead of the one before; whole or not at all, whatever happens meanwhile.

        Raises:
            StateTransferError: it has something that the JavaScript SDK has no place for.
            ServiceUnavailableError: the database can't be reached.
        """
        about = _about(self._agent, self._version)
        await self._shelf.write(json.dumps(self._to_json(state) | {ABOUT: about}), about)

    async def load(self, *, context: Any = None, accept_changes: bool = False) -> State | None:
        """The saved state; None where there is none.

        ``context`` replaces the saved one. ``accept_changes`` loads it though tools or handoffs have changed since.

        Raises:
            RunStateError: it is damaged, or belongs to another agent or version.
            StateTransferError: what JavaScript wrote has something that Python has no place for.
            ServiceUnavailableError: the database can't be reached.
        """
        text = await self._shelf.read()
        if text is None:
            return None
        where = self._shelf.name
        try:
            found = json.loads(text)
        except ValueError as error:
            raise RunStateError(where, f"it is damaged, no JSON ({error}).") from error
        if not isinstance(found, dict) or "$schemaVersion" not in found:
            raise RunStateError(where, "it is no run's state.")
        about = found.pop(ABOUT, None)
        if about is not None:  # written by the SDK itself: the agent's name is all there is to go by
            self._check(about, accept_changes)
        return await self._from_json(found, context)

    async def clear(self) -> None:
        """Forget the state, if there is one."""
        await self._shelf.remove()

    def _to_json(self, state: State) -> dict[str, Any]:
        if self._format == "js":
            from timestep.agents.javascript import to_javascript

            return to_javascript(state, self._agent)
        return state.to_json()

    async def _from_json(self, found: dict[str, Any], context: Any) -> State:
        where, is_js = self._shelf.name, "currentAgent" in found
        if is_js != (self._format == "js"):
            raise RunStateError(where, f"it is in the format '{'js' if is_js else 'python'}', not '{self._format}'.")
        if is_js:
            from timestep.agents.javascript import from_javascript

            state = await from_javascript(found, self._agent)
            if context is not None:
                assert state._context is not None
                state._context.context = context
            return state
        try:
            return await RunState.from_json(self._agent, found, context_override=context, strict_context=True)
        except UserError as error:
            raise RunStateError(where, self._why(found, error)) from error
        except Exception as error:  # whatever a part that is missing leads to; the SDK shows no details
            raise RunStateError(where, f"it is damaged, no run can be made of it ({type(error).__name__}).") from error

    def _why(self, found: dict[str, Any], error: UserError) -> str:
        current = found.get("current_agent")
        name = current.get("name") if isinstance(current, dict) else None
        graph = _graph(self._agent)
        if name is not None and name not in graph:
            return f"it is of agent '{name}', which '{self._agent.name}' does not lead to. Agents: {', '.join(graph)}."
        meta = (found.get("context") or {}).get("context_meta") or {}
        if meta.get("requires_deserializer"):
            return f"its context was a '{meta.get('class_path')}', which JSON can't hold. Give it: load(context=…)."
        return f"the SDK refuses it: {error}"

    def _check(self, about: dict[str, Any], accept_changes: bool) -> None:
        where, agent = self._shelf.name, self._agent
        if about.get("agent") != agent.name:
            raise RunStateError(where, f"it belongs to agent '{about.get('agent')}', not to '{agent.name}'.")
        if about.get("version") != self._version:
            versions = (_quoted(about.get("version")), _quoted(self._version))
            raise RunStateError(
                where, f"it belongs to {versions[0]} of agent '{agent.name}'; this store, to {versions[1]}."
            )
        changes = _changes(about.get("graph") or {}, _graph(agent))
        if changes and not accept_changes:
            raise RunStateError(
                where,
                f"the agents are not what they were: {'; '.join(changes)}. Go on with: load(accept_changes=True).",
            )


class _Shelf(Protocol):
    """Where the text lies; ``name`` is for messages."""

    name: str

    async def write(self, text: str, about: dict[str, Any]) -> None: ...

    async def read(self) -> str | None: ...

    async def remove(self) -> None: ...


class _File:
    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    async def write(self, text: str, about: dict[str, Any]) -> None:
        await asyncio.to_thread(self._write, text)

    def _write(self, text: str) -> None:
        path = self._path.resolve()  # a link stays one
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with open(handle, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor, no path
                file.write(text)
                file.flush()
                os.fsync(handle)
            os.replace(temporary, path)  # noqa: PTH105
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)  # noqa: PTH108
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # or the new name may be lost with the power
        finally:
            os.close(folder)

    async def read(self) -> str | None:
        try:
            return await asyncio.to_thread(self._path.read_text, "utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise RunStateError(self.name, f"it is damaged, no text ({error}).") from error

    async def remove(self) -> None:
        await asyncio.to_thread(self._path.unlink, missing_ok=True)


class _Row:
    def __init__(self, session_id: str, url: str | None) -> None:
        url = url or Settings().database_url
        if url is None:
            raise UsageError("No database is named. Set TIMESTEP_DATABASE_URL, or give database_url=….")
        self.name = f"session {session_id}"
        self._session_id, self._url = session_id, url
        self._ready = False

    async def write(self, text: str, about: dict[str, Any]) -> None:
        values = {"agent": about["agent"], "version": about["version"] or about["fingerprint"], "state": text}
        row = insert(RunStateRow).values(session_id=self._session_id, **values)
        values["updated_at"] = func.now()
        await self._execute(row.on_conflict_do_update(index_elements=["session_id"], set_=values))

    async def read(self) -> str | None:
        found = await self._execute(select(RunStateRow.state).where(RunStateRow.session_id == self._session_id))
        return None if found is None else str(found)

    async def remove(self) -> None:
        await self._execute(delete(RunStateRow).where(RunStateRow.session_id == self._session_id))

    async def _execute(self, statement: Any) -> Any:
        # A connection for each call: the store may be used from one event loop after the other.
        database = Database(self._url)
        try:
            if not self._ready:
                await database.create_missing()
                await database.migrate()
                self._ready = True
            async with database.session() as session:
                if isinstance(statement, Select):
                    return await session.scalar(statement)
                await session.execute(statement)
                return None
        finally:
            await database.close()


def _about(agent: Agent[Any], version: str | None) -> dict[str, Any]:
    graph = _graph(agent)
    text = json.dumps(graph, sort_keys=True)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:12]
    return {"agent": agent.name, "version": version, "fingerprint": fingerprint, "graph": graph}


def _graph(agent: Agent[Any]) -> dict[str, dict[str, list[str]]]:
    """Names of the tools and handoffs of every agent that can be reached, by the agent's name."""
    graph: dict[str, dict[str, list[str]]] = {}
    for other in _iter_agent_graph(agent):
        known = graph.setdefault(other.name, {"tools": [], "handoffs": []})
        known["tools"] += [tool.name for tool in other.tools]
        known["tools"] += [f"mcp:{server.name}" for server in other.mcp_servers]
        known["handoffs"] += [to.agent_name if isinstance(to, Handoff) else to.name for to in other.handoffs]
    return {name: {kind: sorted(set(names)) for kind, names in known.items()} for name, known in graph.items()}


def _changes(before: dict[str, dict[str, list[str]]], now: dict[str, dict[str, list[str]]]) -> list[str]:
    """What differs, each as half a sentence."""
    changes = [f"agent '{name}' is gone" for name in before if name not in now]
    changes += [f"agent '{name}' is new" for name in now if name not in before]
    for name in before.keys() & now.keys():
        for kind, one in (("tools", "tool"), ("handoffs", "handoff")):
            lost = [f"{one} '{item}' of '{name}' is gone" for item in before[name][kind] if item not in now[name][kind]]
            found = [f"{one} '{item}' of '{name}' is new" for item in now[name][kind] if item not in before[name][kind]]
            changes += lost + found
    return sorted(changes)


def _quoted(version: str | None) -> str:
    return "no version" if version is None else f"version '{version}'"
