"""LangChain's standard tests of chat models over the Responses API, through langchain-openai."""

from typing import Any

from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestResponsesModel(ChatModelIntegrationTests):
    asked: str
    settings: dict[str, Any]

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**self.settings, "model": self.asked, "use_responses_api": True}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return self.asked
