"""LangChain's standard tests of embedding models, through langchain-openai."""

from typing import Any

from langchain_openai import OpenAIEmbeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests


class TestEmbeddingsModel(EmbeddingsIntegrationTests):
    asked_to_embed: str

    @property
    def embeddings_class(self) -> type[OpenAIEmbeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        # Else LangChain makes tokens of the texts itself, with a tokeniser that it downloads.
        return {"model": self.asked_to_embed, "check_embedding_ctx_length": False, "max_retries": 0}
