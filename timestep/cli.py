"""The command line, thin: it parses, calls the library, prints. Errors of ours are one line, exit 1."""

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from timestep.errors import TimestepError, UsageError

# Prefect, the Agents SDK and llama.cpp take seconds to import: each command imports what it needs.

app = typer.Typer(
    name="timestep",
    help="Durable workflows for agents that think and learn.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# Of progress, where stderr is a log and not a terminal.
SECONDS_BETWEEN_LINES = 15.0

Home = Annotated[Path | None, typer.Option(help="Folder that holds everything.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print the result alone, as JSON, on stdout.")]
Agent = Annotated[str, typer.Option(help="Name of a registered agent.")]
Files = dict[tuple[str, ...], Path]
Model = Annotated[str | None, typer.Option(help="Instead of the agent's own: local/NAME[@VERSION] or a provider's.")]


def main() -> NoReturn:
    """Entry point: maps the error tree to one line and an exit code (1, or 2 for usage)."""
    try:
        app(standalone_mode=True)
    except TimestepError as error:
        print(f"timestep: {error}", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


def _version(shown: bool) -> None:
    if shown:
        from importlib.metadata import version

        print(f"timestep {version('timestep')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Durable workflows for agents that think and learn."""


@app.command()
def up(
    port: Annotated[int | None, typer.Option(help="Port of the HTTP API.  [default: 8000]")] = None,
    prefect_port: Annotated[int | None, typer.Option(help="Port of the Prefect UI.  [default: 4200]")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    home: Home = None,
    agents: Annotated[list[Path] | None, typer.Option(help="Python file of agents; repeatable.")] = None,
    model: Annotated[str | None, typer.Option(help="Base model: a built-in name, a GGUF path or URL.")] = None,
    database_url: Annotated[str | None, typer.Option(help="PostgreSQL server, instead of the embedded one.")] = None,
    storage_url: Annotated[str | None, typer.Option(help="Object storage, such as s3://bucket?endpoint=….")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return when everything is ready.")] = False,
) -> None:
    """Start the whole service on this machine."""
    from deployments.local import up as start_service

    settings = _settings(
        port=port,
        prefect_port=prefect_port,
        host=host,
        home=home,
        agents=agents or None,
        model=model,
        database_url=database_url,
        storage_url=storage_url,
    )
    raise typer.Exit(_run(start_service(settings, detach=detach)))


@app.command()
def status(home: Home = None, as_json: Json = False) -> None:
    """Say what runs, and where."""
    from deployments.local import status as read_status

    state = read_status(_settings(home=home))
    if state is None:
        raise UsageError("No service runs. Start one: timestep up")
    if as_json:
        print(state.model_dump_json())
        return
    print("ready" if state.ready else "starting")
    for name, url in state.urls.model_dump().items():
        print(f"  {name:<14} {url}")
    for name, child in state.children.items():
        print(f"  {name:<14} pid {child.pid}, {child.restarts} restarts")


@app.command()
def down(home: Home = None) -> None:
    """Stop the service."""
    from deployments.local import down as stop_service

    if not _run(stop_service(_settings(home=home))):
        raise UsageError("No service runs.")
    print("stopped")


@app.command()
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
    """Run one agent step and print its output."""
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


@app.command()
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


@app.command()
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
    settings = _service(home)
    done = _run(_follow(settings, "batch/batch", {"concurrency": concurrency}, {("inputs",): inputs}))
    result = BatchOutput.model_validate(done)
    text = _run(ObjectStore.open(settings.storage).get(result.output)).decode()
    if out is not None:
        out.write_text(text)
    elif not as_json:
        print(text, end="")
    if as_json:
        print(result.model_dump_json())
    print(f"{result.completed} of {result.total} completed, {result.failed} failed", file=sys.stderr)


def _settings(**overrides: object) -> Any:
    from pydantic import ValidationError

    from timestep.settings import load_settings

    try:
        return load_settings(**overrides)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"Setting '{name}' has value '{first['input']}'. {first['msg']}.") from error


def _service(home: Path | None) -> Any:
    """Settings of the service that runs on this home, or those of the environment where none does."""
    from deployments.local import status as read_status

    settings = _settings(home=home)
    state = read_status(settings)
    if state is None:
        return settings
    if not state.ready:
        raise UsageError("The service is still starting. See: timestep status")
    return _settings(home=home, prefect_api_url=state.urls.prefect_api, storage_url=state.storage)


def _step(parameters: dict[str, Any], home: Path | None, as_json: bool, dataset: Path | None = None) -> None:
    from timestep.agents.types import StepOutput

    files: Files = {} if dataset is None else {("training", "dataset"): dataset}
    output = StepOutput.model_validate(_run(_follow(_service(home), "step/step", parameters, files)))
    if as_json:
        print(output.model_dump_json())
    elif output.training is not None:
        print(output.training.model_dump_json(indent=2))
    else:
        print(output.output if isinstance(output.output, str) else json.dumps(output.output))


async def _follow(settings: Any, deployment: str, parameters: dict[str, Any], files: Files) -> Any:
    """Start a run, show its progress on stderr, return its result; Ctrl-C cancels it.

    ``files`` go into storage first, where a worker on any machine finds them: (path of the parameter) -> file.
    """
    from prefect.states import Cancelling
    from rich.console import Console

    from timestep import runs

    for path in files.values():
        if not path.is_file():
            raise UsageError(f"No file '{path}'.")
    console = Console(stderr=True, highlight=False)
    async with runs.connect(settings.prefect_api) as client:
        for keys, path in files.items():
            await _upload(settings, parameters, keys, path)
        run = await runs.start(client, deployment, parameters)
        base = settings.prefect_api.removesuffix("/api")
        console.print(f"{base}/runs/flow-run/{run.id}", style="dim", soft_wrap=True)
        with _Display(console) as display:
            try:
                run = await runs.follow(
                    client, run.id, on_state=display.state, on_task=display.task, on_progress=display.progress
                )
            except asyncio.CancelledError:
                await asyncio.shield(client.set_flow_run_state(run.id, Cancelling()))
                raise
        return await runs.result(run, settings.storage)


async def _upload(settings: Any, parameters: dict[str, Any], keys: tuple[str, ...], path: Path) -> None:
    from storage.store import ObjectStore

    # The name stays in the key, so that what is said of the object is said of the caller's file.
    name = re.sub(r"[^\w.-]", "_", path.name)
    reference = await ObjectStore.open(settings.storage).put_content(path, prefix="uploads", suffix=f"-{name}")
    for key in keys[:-1]:
        parameters = parameters[key]
    parameters[keys[-1]] = reference.key


class _Display:
    """A run's progress on the terminal: its state and a bar that come and go, its tasks that stay."""

    def __init__(self, console: Any) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._console = console
        self._bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), console=console, transient=True
        )
        self._row = self._bar.add_task("starting", total=None)
        self._printed = 0.0

    def __enter__(self) -> "_Display":
        # Only where someone watches: a log gets the tasks' lines.
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def state(self, name: str) -> None:
        self._bar.update(self._row, description=name.lower())

    def progress(self, percent: float, text: str) -> None:
        self._bar.update(self._row, total=100, completed=percent, description=text)
        if not self._console.is_terminal and time.monotonic() - self._printed > SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            self._console.print(f"  {text}", style="dim")

    def task(self, task: Any) -> None:
        seconds = task.total_run_time.total_seconds()
        self._console.print(f"  {task.state.name.lower():<10} {task.name}  {seconds:.1f} s", style="dim")


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        # The shell expects death by the signal, not an exit code that looks like one.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        raise


if __name__ == "__main__":
    main()
