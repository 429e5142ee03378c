"""``make demo``: the service comes up, one step thinks, the same step learns, and thinks again.

Every part is real: PostgreSQL, the Prefect server and its worker, a language model, its fine-tuning.
KEEP=1 leaves the service up, to look around in the Prefect UI.
"""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from timestep.settings import Settings

HERE = Path(__file__).resolve().parent
HOME = Settings().home / "demo"
QUESTIONS = ("What is 17*23?", "How much is 45+46?", "What is 31 times 12?")
TRAINING = ["--epochs", "1", "--learning-rate", "2.5e-4", "--context-length", "768", "--validation-split", "0.12"]


def port(wanted: int) -> str:
    """The port wanted, or a free one where somebody listens on it."""
    with socket.socket() as sock:
        if sock.connect_ex(("127.0.0.1", wanted)) != 0:
            return str(wanted)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return str(sock.getsockname()[1])


def timestep(*arguments: str, capture: bool = False) -> str:
    """Run the command line on the demo's home, showing the command first."""
    print(f"\n$ timestep {shlex.join(arguments)}", flush=True)
    environment = os.environ | {"TIMESTEP_TOOLCHAIN": str(Settings().toolchain_dir)}
    done = subprocess.run(
        [sys.executable, "-m", "timestep", *arguments, "--home", str(HOME)],
        env=environment,
        text=True,
        check=True,
        stdout=subprocess.PIPE if capture else None,
    )
    return done.stdout or ""


def ask(question: str) -> dict[str, Any]:
    """One inference step, the calculator offered; a small model may fail, and then that is its answer."""
    try:
        text = timestep("step", question, "--agent", "clerk", "--max-turns", "4", "--json", capture=True)
    except subprocess.CalledProcessError:
        return {"output": "(the step failed)", "tool_calls": [], "model": "", "step_id": ""}
    output: dict[str, Any] = json.loads(text)
    for call in output["tool_calls"]:
        print(f"→ {call['name']}({call['arguments']}) = {call['output']}")
    print(f"{output['model']}: {output['output']}")
    return output


def shown(output: dict[str, Any]) -> str:
    """A step's answer on one line, and how it came to it."""
    answer = " ".join(str(output["output"]).split())
    used = ", by the calculator" if output["tool_calls"] else ""
    return f"{answer[:90]}{used}"


def main() -> None:
    """The demo."""
    started = time.monotonic()
    if not (HOME / "run" / "service.json").exists():
        shutil.rmtree(HOME, ignore_errors=True)  # what an earlier demo learnt would answer "before"
    ports = {"--port": port(8000), "--prefect-port": port(4200)}
    timestep("up", "--detach", "--agents", str(HERE / "clerk.py"), *(part for pair in ports.items() for part in pair))
    try:
        before = [ask(question) for question in QUESTIONS]
        data = ["--dataset", str(HERE / "conversations.jsonl")]
        trained = json.loads(timestep("train", "--agent", "clerk", *data, *TRAINING, "--json", capture=True))
        after = [ask(question) for question in QUESTIONS]
        learned = trained["training"]
        print()
        for question, first, second in zip(QUESTIONS, before, after, strict=True):
            print(f"{question}\n  before: {shown(first)}\n  after:  {shown(second)}")
        print(f"\n{learned['model_version']}, promoted: {learned['promoted']}, losses: {learned['losses']}")
        for name in ("perplexity", "tool_call_accuracy"):
            print(f"held-out {name}: {learned[f'{name}_before']:.2f} -> {learned[f'{name}_after']:.2f}")
        ui = f"http://127.0.0.1:{ports['--prefect-port']}"
        for what, output in (("thought", before[0]), ("learnt", trained), ("thought again", after[0])):
            print(f"{what:<14} {ui}/runs/flow-run/{output['step_id']}")
        print(f"{time.monotonic() - started:.0f} s in all")
    finally:
        if os.environ.get("KEEP"):
            print(f"Left running; stop it: timestep down --home {HOME}")
        else:
            timestep("down")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
