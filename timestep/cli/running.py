"""Commands that start flow runs and follow them to their end: step, train, batch."""

import asyncio
import json
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from timestep.cli.options import Agent, Home, Json, Model, run, service_of
from timestep.errors import ConflictError, NotFoundError, UsageError

Files = dict[tuple[str, ...], Path]


def step(
    input: Annotated[str, typer.Argument(help="What the agent should do; '-' reads it from stdin.")] = "",
    agent: Agent = "assistant",
    mode: Annotated[str, typer.Option(help="inference or training.")] = "inference",
    model: Model = None,
    session: Annotated[str | None, typer.Option(help="Steps of one session share their conversation.")] = None,
    max_turns: Annotated[int, typer.Option(min=1, help="Most model calls of the step.")] = 10,
    tool_choice: Annotated[str, typer.Option(help="auto, required or none.")] = "auto",
    temperature: Annotated[float | None, typer.Option(help="0 picks the likeliest token.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer of one model call.")] = None,
    seed: Annotated[int | None, typer.Option(help="Equal seeds give equal samples.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Run one agent step and print its output.

    A step that needs a person says so, and how to decide; this command goes on waiting for it. Ctrl-C cancels a step
    that runs. One that waits for a person is left to wait.
    """
    inference = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed, "tool_choice": tool_choice}
    parameters = {
        "input": sys.stdin.read() if input == "-" else input,
        "agent": agent,
        "mode": mode,
        "session_id": session,
        "model": model,
        "max_turns": max_turns,
        "inference": inference,
    }
    _step(parameters, home, as_json)


def train(
    agent: Agent = "assistant",
    dataset: Annotated[str, typer.Option(help="'traces', or an OpenAI fine-tuning JSONL file.")] = "traces",
    epochs: Annotated[int, typer.Option(min=1)] = 1,
    learning_rate: Annotated[float, typer.Option()] = 3e-5,
    context_length: Annotated[int, typer.Option(min=256, help="Tokens in one window; a multiple of 256.")] = 1024,
    batch: Annotated[int, typer.Option(min=0, help="Tokens in one optimiser step; 0 for one window.")] = 0,
    optimizer: Annotated[str, typer.Option(help="adamw or sgd.")] = "adamw",
    validation_split: Annotated[float, typer.Option(min=0, max=0.9)] = 0.1,
    quantization: Annotated[str | None, typer.Option(help="Type of the served file, such as Q8_0.")] = None,
    promote: Annotated[str, typer.Option(help="never, if_better or always.")] = "if_better",
    skip_bad_lines: Annotated[bool, typer.Option("--skip-bad-lines", help="Train on the good lines.")] = False,
    since_hours: Annotated[float | None, typer.Option(help="Only traces of the last so many hours.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Fine-tune an agent's own model: the same flow, in training mode."""
    training = {
        "dataset": dataset,
        "since_hours": since_hours,
        "skip_bad_lines": skip_bad_lines,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "context_length": context_length,
        "batch": batch,
        "optimizer": optimizer,
        "validation_split": validation_split,
        "quantization": quantization,
        "promote": promote,
    }
    parameters = {"agent": agent, "mode": "training", "training": training}
    _step(parameters, home, as_json, None if dataset == "traces" else Path(dataset))


def batch(
    inputs: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="One step's parameters, or its text, a line.")],
    out: Annotated[Path | None, typer.Option(help="Where the results go.  [default: stdout]")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Steps running at a time.")] = 4,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Run each line of a JSONL file as a step; results in the order of the lines."""
    from storage.store import ObjectStore
    from timestep.agents.types import BatchOutput

    if out is not None and not out.absolute().parent.is_dir():
        raise UsageError(f"No folder '{out.parent}' to write the results to.")
    settings = service_of(home)
    done = run(_follow(settings, "batch/batch", {"concurrency": concurrency}, {("inputs",): inputs}, home))
    result = BatchOutput.model_validate(done)
    text = run(ObjectStore.open(settings.storage).get(result.output)).decode()
    if out is not None:
        out.write_text(text)
    elif not as_json:
        print(text, end="")
    if as_json:
        print(result.model_dump_json())
    print(f"{result.completed} of {result.total} completed, {result.failed} failed", file=sys.stderr)


def _step(parameters: dict[str, Any], home: Path | None, as_json: bool, dataset: Path | None = None) -> None:
    from timestep.agents.types import StepOutput

    files: Files = {} if dataset is None else {("training", "dataset"): dataset}
    output = StepOutput.model_validate(run(_follow(service_of(home), "step/step", parameters, files, home)))
    if as_json:
        print(output.model_dump_json())
    elif output.training is not None:
        print(output.training.model_dump_json(indent=2))
    else:
        print(output.output if isinstance(output.output, str) else json.dumps(output.output))


async def _follow(
    settings: Any, deployment: str, parameters: dict[str, Any], files: Files, home: Path | None = None
) -> Any:
    """Start a run, show its progress on stderr, return its result; Ctrl-C cancels it, unless it waits.

    ``files`` go into storage first, where a worker on any machine finds them: (path of the parameter) -> file.
    """
    from rich.console import Console

    from timestep import runs
    from timestep.cli.display import Display, Waits

    for path in files.values():
        if not path.is_file():
            raise UsageError(f"No file '{path}'.")
    console = Console(stderr=True, highlight=False)
    async with runs.connect(settings.prefect_api, settings.prefect_login) as client:
        for keys, path in files.items():
            await _upload(settings, parameters, keys, path)
        started = await runs.start(client, deployment, parameters)
        console.print(f"{settings.prefect_ui}/runs/flow-run/{started.id}", style="dim", soft_wrap=True)
        with Display(console) as display:
            waits = Waits(client, settings.database_url, started.id, display, home)
            try:
                ended = await runs.follow(
                    client, started.id, on_state=waits.state, on_task=display.task, on_progress=display.progress
                )
            except asyncio.CancelledError:
                await asyncio.shield(_interrupted(client, settings.database_url, started.id))
                raise
            finally:
                await waits.close()
        return await runs.result(ended, settings.storage)


async def _interrupted(client: Any, database_url: str | None, run_id: Any) -> None:
    """Cancel the run, unless it waits: it takes no worker, and whoever decides may be somebody else."""
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Cancelling

    from timestep import steps
    from timestep.database.engine import Database

    with suppress(ConflictError, NotFoundError, ObjectNotFound):  # it ended just now
        state = (await client.read_flow_run(run_id)).state
        if state is not None and state.is_paused():
            return
        if database_url is None:  # nobody here can tell whether a run that crashed has a process
            await client.set_flow_run_state(run_id, Cancelling())
            return
        database = Database(database_url)
        try:
            await steps.cancel(client, database, run_id)
        finally:
            await database.close()


async def _upload(settings: Any, parameters: dict[str, Any], keys: tuple[str, ...], path: Path) -> None:
    from storage.store import ObjectStore

    # The name stays in the key, so that what is said of the object is said of the caller's file.
    name = re.sub(r"[^\w.-]", "_", path.name)
    reference = await ObjectStore.open(settings.storage).put_content(path, prefix="uploads", suffix=f"-{name}")
    for key in keys[:-1]:
        parameters = parameters[key]
    parameters[keys[-1]] = reference.key
