"""``make demo``: the service comes up, one step thinks, the same step learns, and thinks again.

Every part is real: PostgreSQL, the Prefect server and its worker, a language model, its fine-tuning.
KEEP=1 leaves the service up, to look around in the Prefect UI.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from timestep.settings import Settings

HERE = Path(__file__).resolve().parent
QUESTION = "What is 17*23?"
TRAINING = ["--epochs", "1", "--learning-rate", "3e-4", "--context-length", "768", "--validation-split", "0.15"]


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
    home = Settings().home / "demo"
    shown = " ".join(f"'{a}'" if " " in a else a for a in arguments)
    print(f"\n$ timestep {shown}", flush=True)
    environment = os.environ | {"TIMESTEP_TOOLCHAIN": str(Settings().toolchain_dir)}
    done = subprocess.run(
        [sys.executable, "-m", "timestep", *arguments, "--home", str(home)],
        env=environment,
        text=True,
        check=True,
        stdout=subprocess.PIPE if capture else None,
    )
    return done.stdout or ""


def ask() -> dict[str, Any]:
    """One inference step, its tools offered."""
    output: dict[str, Any] = json.loads(timestep("step", QUESTION, "--json", capture=True))
    for call in output["tool_calls"]:
        print(f"→ {call['name']}({call['arguments']}) = {call['output']}")
    print(f"{output['model']}: {output['output']}")
    return output


def main() -> None:
    """The demo."""
    started = time.monotonic()
    ports = {"--port": port(8000), "--prefect-port": port(4200)}
    timestep("up", "--detach", *(part for pair in ports.items() for part in pair))
    try:
        before = ask()
        trained = json.loads(
            timestep("train", "--dataset", str(HERE / "conversations.jsonl"), *TRAINING, "--json", capture=True)
        )
        after = ask()
        learned = trained["training"]
        ui = f"http://127.0.0.1:{ports['--prefect-port']}"
        print(f"\nBefore: {before['output']}\nAfter:  {after['output']}\n")
        print(f"{learned['model_version']}, promoted: {learned['promoted']}, losses: {learned['losses']}")
        for name in ("perplexity", "tool_call_accuracy"):
            print(f"{name}: {learned[f'{name}_before']} -> {learned[f'{name}_after']}")
        for output in (before, trained, after):
            print(f"{output['mode']:<10} {ui}/runs/flow-run/{output['step_id']}")
        print(f"{time.monotonic() - started:.0f} s in all")
    finally:
        if os.environ.get("KEEP"):
            print(f"Left running; stop it: timestep down --home {Settings().home / 'demo'}")
        else:
            timestep("down")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
