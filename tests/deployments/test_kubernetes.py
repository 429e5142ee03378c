"""What the worker of a cluster knows of itself."""

import base64
import json
from pathlib import Path

import pytest

from deployments.kubernetes import service_account


def _token(claims: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJSUzI1NiJ9.{body}.c2lnbmF0dXJl"


def test_jobs_belong_to_the_workers_account_so_that_they_go_with_the_release(tmp_path: Path) -> None:
    token = tmp_path / "token"
    account = {"name": "timestep-worker", "uid": "6b9c2d0e-1f5a-4c1d-9e0f-000000000001"}
    token.write_text(_token({"kubernetes.io": {"namespace": "here", "serviceaccount": account, "pod": {"name": "x"}}}))
    found = service_account(token)
    assert found is not None and found.namespace == "here"
    assert found.reference == {"apiVersion": "v1", "kind": "ServiceAccount", **account}


@pytest.mark.parametrize("text", [None, "", "opaque", "a.b.c", _token({"sub": "x"}), _token({"kubernetes.io": {}})])
def test_without_such_a_token_they_belong_to_nobody(tmp_path: Path, text: str | None) -> None:
    token = tmp_path / "token"
    if text is not None:
        token.write_text(text)
    assert service_account(token) is None
