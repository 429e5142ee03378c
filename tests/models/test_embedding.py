"""Embeddings and texts that go on, over HTTP and through the official client."""

import asyncio
import base64
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.conftest import ROOT
from tests.models.conftest import SMOLLM2, Server
from timestep.errors import UsageError
from timestep.models.embedding import Embedders, WordLlama
from timestep.models.files import WORDLLAMA
from timestep.settings import Settings

CAT, KITTEN, TAX = "a cat on the sofa", "a kitten sleeps on the couch", "the tax return is due in April"


@pytest.fixture(scope="module")
def server(serve: Callable[..., Server], tiny_file: Path) -> Server:
    """With a GGUF file's embeddings beside the built-in ones."""
    return serve("timestep.models.server", MODEL="scripted", EMBEDDING_MODEL=str(tiny_file))


@pytest.fixture
def client(server: Server) -> OpenAI:
    return OpenAI(base_url=server.api, api_key="none", max_retries=0)


def vectors(client: OpenAI, texts: Any, **options: Any) -> Any:
    answer = client.embeddings.create(**{"model": WORDLLAMA, "input": texts, **options})
    assert [one.index for one in answer.data] == list(range(len(answer.data)))
    return np.array([one.embedding for one in answer.data])


def test_what_means_the_same_is_near(client: OpenAI) -> None:
    cat, kitten, tax = vectors(client, [CAT, KITTEN, TAX])
    assert cat @ kitten > cat @ tax + 0.2
    assert cat.shape == (256,) and np.isclose(cat @ cat, 1)


def test_it_loads_without_a_network_and_without_a_home(tmp_path: Path) -> None:
    code = "import socket; socket.socket.connect = None\nfrom timestep.models.embedding import WordLlama as W\n"
    code += "model = W(); print(len(model.embed(model.tokenize('a cat'))))"
    variables = {**os.environ, "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "256"
    assert not list(tmp_path.iterdir())


def test_fewer_dimensions_are_the_first_ones_at_length_one(client: OpenAI) -> None:
    (whole,), (short,) = vectors(client, CAT), vectors(client, CAT, dimensions=64)
    assert short.shape == (64,)
    assert np.allclose(short, whole[:64] / np.linalg.norm(whole[:64]), atol=1e-6)


def test_base64_holds_the_same_floats(client: OpenAI) -> None:
    floats = client.embeddings.create(model=WORDLLAMA, input=CAT, encoding_format="float")
    encoded = client.embeddings.create(model=WORDLLAMA, input=CAT, encoding_format="base64")
    packed = base64.b64decode(str(encoded.data[0].embedding))
    assert np.allclose(struct.unpack("<256f", packed), floats.data[0].embedding, atol=1e-7)
    assert floats.usage.prompt_tokens == floats.usage.total_tokens > 4


def test_tokens_are_texts_too(client: OpenAI) -> None:
    (one,) = vectors(client, [263, 6635])
    assert np.allclose(vectors(client, [[263, 6635], [263]])[0], one)
    with pytest.raises(openai.BadRequestError, match="'input' has the token 2000000"):
        vectors(client, [2_000_000])


def test_a_files_embeddings_go_by_its_name(client: OpenAI, tiny_file: Path) -> None:
    assert tiny_file.stem in [model.id for model in client.models.list()]
    assert client.models.retrieve(tiny_file.stem).id == tiny_file.stem
    first, again, other = vectors(client, [CAT, CAT, TAX], model=tiny_file.stem)
    assert first.shape == (64,) and np.isclose(first @ first, 1)
    assert np.allclose(first, again) and not np.allclose(first, other)
    with pytest.raises(openai.BadRequestError, match=r"\d{4} tokens, and this model takes 1024"):
        vectors(client, "word " * 1100, model=tiny_file.stem)


@pytest.mark.parametrize(
    ("change", "status", "why"),
    [
        ({"model": "wordlama"}, 404, "Did you mean 'wordllama-256'?"),
        ({"model": SMOLLM2}, 404, "No model 'smollm2-135m-instruct'"),
        ({"input": ""}, 400, "'input': must have no empty text"),
        ({"input": []}, 400, "'input'"),
        ({"input": [CAT, ""]}, 400, "'input': must have no empty text"),
        ({"input": {"a": 1}}, 400, "'input': must be a text, its tokens, or a list of either"),
        ({"dimensions": 257}, 400, "'dimensions' is 257, and model 'wordllama-256' has 256"),
        ({"encoding_format": "int8"}, 400, "'encoding_format'"),
        ({"extra_body": {"truncate": True}}, 400, "'truncate' is not supported"),
    ],
)
def test_what_can_not_be_meant_is_refused_by_name(
    change: dict[str, Any], status: int, why: str, client: OpenAI
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.embeddings.create(**{"model": WORDLLAMA, "input": CAT, **change})
    assert (caught.value.status_code, why in caught.value.message) == (status, True), caught.value.message


@pytest.mark.parametrize("text", [" ", "\n\t", "\u200b", "\x00"])
def test_a_text_that_can_not_be_seen_has_a_vector(text: str, client: OpenAI, tiny_file: Path) -> None:
    for model in (WORDLLAMA, tiny_file.stem):
        assert np.isfinite(vectors(client, [text, CAT], model=model)).all()


async def test_a_text_without_a_token_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is in models that drop white space."""
    monkeypatch.setattr(WordLlama, "tokenize", lambda _self, text: [1] * len(text.split()))
    embedders = Embedders(Settings(home=tmp_path))
    assert (await embedders.embed(WORDLLAMA, [CAT], None)).tokens == 5
    with pytest.raises(UsageError, match="'input' has a text without a token"):
        await embedders.embed(WORDLLAMA, [CAT, "\u2003"], None)
    embedders.close()


def test_an_embedding_model_does_not_chat(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="makes embeddings"):
        client.chat.completions.create(model=WORDLLAMA, messages=[{"role": "user", "content": CAT}])


async def test_no_text_waits_behind_a_generation(server: Server) -> None:
    client = AsyncOpenAI(base_url=server.api, api_key="none")
    ask: dict[str, Any] = {"model": "scripted", "messages": [{"role": "user", "content": "Please take 60 seconds."}]}
    long = [asyncio.create_task(client.chat.completions.create(**ask)) for _ in range(2)]
    async with httpx.AsyncClient(base_url=server.url) as http:
        while (await http.get("/health")).json()["waiting"] != 1:
            await asyncio.sleep(0.02)
    await client.embeddings.create(model=WORDLLAMA, input=CAT)
    assert not any(task.done() for task in long)
    for task in long:
        task.cancel()
    await client.close()
