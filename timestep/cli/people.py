"""Commands about one step that there is: what it waits for, decisions on it, starting it again, its end."""

import getpass
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from timestep.cli.options import Home, Json, run, service_of
from timestep.errors import UsageError

Step = Annotated[str, typer.Argument(metavar="STEP", help="Id of the step, or its first digits.")]
Call = Annotated[str | None, typer.Option(metavar="ID", help="Which call, where several wait.")]

# Gets the client, the database and the step's id.
Work = Callable[[Any, Any, Any, Any], Awaitable[Any]]
# Decisions on the step whose view it gets.
Choose = Callable[[Any], list[dict[str, Any]]]


def show(step: Step, home: Home = None, as_json: Json = False) -> None:
    """Say where a step stands, what it waits for, and what came of it."""
    from timestep.cli.display import SHORT, asked, plain

    view = run(_with(step, home, _view))
    if as_json:
        print(view.model_dump_json(by_alias=True))
        return
    print(f"{view.id}  {view.agent}, {view.mode.value}: {view.status.value}")
    for call in view.decided:
        verdict = "" if call.decision is None else call.decision.verdict.value
        reason = f" ('{call.decision.text}')" if call.decision is not None and call.decision.text else ""
        said = f"{verdict:<10} {call.agent}: {call.tool}({call.arguments}){reason}, by {call.decided_by}"
        print(f"  {plain(said)}")
    for line in asked(view.pending, view.id[:SHORT], home, longest=1_000_000):
        print(line)
    if view.error:
        print(f"  error      {plain(view.error)}")
    if view.output is not None:
        print(view.output if isinstance(view.output, str) else json.dumps(view.output))


def approve(
    step: Step,
    call: Annotated[
        str | None, typer.Option(metavar="ID", help="This call; without it, every one that waits for an approval now.")
    ] = None,
    reject: Annotated[str | None, typer.Option(metavar="WHY", help="Don't let it run; the model is told why.")] = None,
    always: Annotated[bool, typer.Option("--always", help="The same for every later call of this tool.")] = False,
    home: Home = None,
) -> None:
    """Let calls run that wait for an approval, or reject them."""
    from timestep.agents.record.waiting import Kind, Verdict

    verdict = Verdict.APPROVE if reject is None else Verdict.REJECT

    def approvals(view: Any) -> list[dict[str, Any]]:
        chosen = [one for one in view.pending if one.kind is Kind.APPROVAL]
        if call is None and not chosen:
            raise UsageError(f"No call of step '{step}' waits for an approval. See: timestep show {step}")
        meant = list(map(_as_seen, chosen)) if call is None else [_meant(view, call)]
        return [one | {"verdict": verdict, "text": reject, "always": always} for one in meant]

    _decide(step, home, approvals)


def answer(
    step: Step,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The answer, which the agent's tool returns.")],
    call: Call = None,
    home: Home = None,
) -> None:
    """Answer a step's question."""
    from timestep.agents.record.waiting import Verdict

    _decide(step, home, lambda view: [_meant(view, call) | {"verdict": Verdict.ANSWER, "text": text}])


def settle(
    step: Step,
    call: Call = None,
    run_again: Annotated[bool, typer.Option("--run-again", help="Call it once more.")] = False,
    result: Annotated[str | None, typer.Option(metavar="TEXT", help="It did run, and returned this.")] = None,
    fail: Annotated[str | None, typer.Option(metavar="WHY", help="End the step.")] = None,
    home: Home = None,
) -> None:
    """Say what becomes of a call that a crash cut in the middle, and that may not run again by itself."""
    from timestep.agents.record.waiting import Verdict

    if (run_again, result is not None, fail is not None).count(True) != 1:
        raise UsageError("Say one of --run-again, --result TEXT and --fail WHY.")
    verdict = Verdict.RUN_AGAIN if run_again else Verdict.FAIL if result is None else Verdict.RESULT
    text = fail if result is None else result
    _decide(step, home, lambda view: [_meant(view, call) | {"verdict": verdict, "text": text}])


def resume(
    step: Step,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on although the code asks something else than was recorded.")
    ] = False,
    home: Home = None,
) -> None:
    """Start a step, or a batch, again that failed or was cancelled; what it had finished isn't done again."""

    async def work(client: Any, database: Any, run_id: Any, _: Any) -> None:
        from timestep import steps

        await steps.resume(client, database, run_id, accept_changes=accept_changes)

    run(_with(step, home, work))
    print("started again")


def cancel(step: Step, home: Home = None) -> None:
    """End a step, whether it runs or waits, or a batch with its steps; traces are kept."""

    async def work(client: Any, database: Any, run_id: Any, _: Any) -> None:
        from timestep import steps

        await steps.cancel(client, database, run_id)

    run(_with(step, home, work))
    print("cancelled")


async def _view(client: Any, database: Any, run_id: Any, settings: Any) -> Any:
    from timestep import steps

    return await steps.view(client, database, run_id, settings.storage)


def _meant(view: Any, call: str | None) -> dict[str, Any]:
    """The call that a person named, or the only one that waits; where that isn't plain, the service says so."""
    waiting = [one for one in view.pending if call in (None, one.position, one.call_id)]
    return _as_seen(waiting[0]) if len(waiting) == 1 else {"call": call}


def _as_seen(call: Any) -> dict[str, Any]:
    """The call as it waits now, with what it would do: none that comes in its place is decided unseen."""
    return {"call": call.position, "digest": call.call_digest}


def _decide(step: str, home: Path | None, choose: Choose) -> None:
    """Decide, and say what of the step still waits."""
    from timestep.cli.display import SHORT, asked

    async def work(client: Any, database: Any, run_id: Any, settings: Any) -> Any:
        from timestep import steps

        given = choose(await steps.view(client, database, run_id, settings.storage))
        chosen = [steps.CallDecision(**decision) for decision in given]
        await steps.decide(client, database, run_id, chosen, by=_who())
        return await steps.view(client, database, run_id, settings.storage)

    view = run(_with(step, home, work))
    print(f"{view.id}  {view.status.value}")
    for line in asked(view.pending, view.id[:SHORT], home):
        print(line)


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user without a name, as in containers
        return "command line"


async def _with(step: str, home: Path | None, work: Work) -> Any:
    """Do the work with the service's Prefect client and database, and the id of the step that is meant."""
    from timestep import runs, steps
    from timestep.database.engine import Database

    settings = service_of(home)
    if settings.database_url is None:
        raise UsageError("No service runs on this home, and TIMESTEP_DATABASE_URL names none. Start one: timestep up")
    database = Database(settings.database_url)
    try:
        async with runs.connect(settings.prefect_api, settings.prefect_login) as client:
            return await work(client, database, await steps.find(client, database, step), settings)
    finally:
        await database.close()
