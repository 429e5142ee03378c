"""LangChain's standard tests of chat models, through langchain-openai."""

from typing import Any

from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestChatModel(ChatModelIntegrationTests):
    asked: str

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # The limit is for real models, of which a small one talks until its context is full.
        asked = {"model": self.asked, "max_tokens": 100, "temperature": 0, "max_retries": 0, "timeout": 120}
        return asked | {"stream_usage": True}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return self.asked
