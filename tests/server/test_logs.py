"""What the server logs holds no key, whoever logs it."""

import subprocess
import sys

from tests.conftest import ROOT, environment
from tests.server.guarded import PROVIDER_KEY, SERVICE_KEY, secrets_in


def test_a_bug_and_whatever_it_quotes_is_logged_without_keys() -> None:
    code = f"""
import logging
from timestep.server.logs import log_discreetly
from timestep.settings import Settings
log_discreetly(Settings(service_key="{SERVICE_KEY}", providers='{{"lab": {{"base_url": "http://x/v1", \
"api_key": "{PROVIDER_KEY}"}}}}', database_url="postgresql://me:p%40ss-word@box/x"))
try:
    raise ValueError({{"headers": {{"authorization": "Bearer ts-of-a-client-222222222222"}}}})
except ValueError:
    logging.getLogger("uvicorn.error").exception("failed with %s and %s", "{SERVICE_KEY}", ["{PROVIDER_KEY}"])
for text in ("Authorization: Basic dXNlcjpwdw==", "postgresql://me:p%40ss-word@box", "p@ss-word", "s3://b?secret=abc123"):
    logging.getLogger("httpx").warning(text)
logging.getLogger("timestep.x").info("sk-proj-3333333333333333 it was 'api_key': 'abcdef-4'")
"""
    own = {name: value for name, value in environment().items() if name != "OPENAI_API_KEY"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=own, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    shown = ("ts-of-a-client", "dXNlcjpwdw", "p%40ss-word", "p@ss-word", "abc123", "sk-proj-333", "abcdef-4")
    assert done.stderr.count("[hidden]") >= 9 and "ValueError" in done.stderr and "postgresql://" in done.stderr
    assert not secrets_in(done.stderr, *shown)
