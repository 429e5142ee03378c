"""Most requests name a model that is served: with random names nothing behind the name would ever be asked."""

import json
from pathlib import Path
from typing import Any

import schemathesis

TARGET = json.loads(Path("target.json").read_text())


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Every fourth name stays as it was made."""
    if isinstance(body, dict) and isinstance(body.get("model"), str) and len(body["model"]) % 4:
        embeds = context.operation.path.endswith("/embeddings")
        body["model"] = TARGET["embedding_model" if embeds else "model"]
    return body
