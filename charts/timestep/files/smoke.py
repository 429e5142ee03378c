"""What `helm test` runs: lists and a step that thinks, through the API's Service and with the first API key.

The step is the default agent's, whose model is local: where there is no model server, there is no `INPUT`, and no step.
"""

import os
import sys
import time

import httpx

SECONDS = 300.0


def main() -> int:
    """0 where all was answered and the step came to its end; else 1, and one line says why."""
    headers = {"Authorization": f"Bearer {os.environ['API_KEY']}"}
    with httpx.Client(base_url=os.environ["API_URL"], headers=headers, timeout=60) as client:
        try:
            for path in ("/health", "/v1/models", "/v1/agents"):
                client.get(path).raise_for_status()
                print(f"GET {path}: ok", flush=True)
            if "INPUT" not in os.environ:
                return 0
            started = client.post("/v1/steps", json={"mode": "inference", "input": os.environ["INPUT"]})
            started.raise_for_status()
            return watch(client, started.json()["id"])
        except httpx.HTTPStatusError as error:
            print(f"{error.request.url}: {error.response.status_code} {error.response.text}", file=sys.stderr)
        except httpx.TransportError as error:
            print(f"The API does not answer: {error}", file=sys.stderr)
    return 1


def watch(client: httpx.Client, step: str) -> int:
    """Wait for the step's end; 0 where it succeeded."""
    until = time.monotonic() + SECONDS
    status = "not_started"
    while time.monotonic() < until:
        seen = client.get(f"/v1/steps/{step}").raise_for_status().json()
        status = seen["status"]
        if status == "succeeded":
            print(f"Step {step}: {seen['output']}")
            return 0
        if status in ("failed", "cancelled"):
            print(f"Step {step} {status}: {seen.get('error')}", file=sys.stderr)
            return 1
        time.sleep(1)
    print(f"Step {step} is {status} after {SECONDS:g} s.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
