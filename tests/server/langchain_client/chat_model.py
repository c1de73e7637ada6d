"""LangChain's own integration tests of chat models, run by `test_langchain.py` in an environment of their own."""

import os
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestServer(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "base_url": os.environ["AICC_TEST_SERVER"],
            "api_key": "none",
            "model": os.environ["AICC_TEST_MODEL"],
            "temperature": 0,
            "max_tokens": 200,
            "frequency_penalty": 1.5,  # so small a model repeats itself else
            "stream_usage": True,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def enable_vcr_tests(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return os.environ["AICC_TEST_OTHER_MODEL"]
