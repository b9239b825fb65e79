"""Asks a language model behind an OpenAI-style HTTP endpoint."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_MOST_BYTES = 1 << 20
"""of an answer"""

Ask = Callable[[str, bool], str]
"""(prompt, whether the same was asked before and the reply was of no use) -> reply. Raises KeywordError."""


class KeywordError(ValueError):
    """No keywords for a row: the language model cannot be reached, or answers something else."""

    def __init__(self, message: str, final: bool = False) -> None:
        super().__init__(message)
        self.final = final
        """Whether asking once more is of no use"""


@dataclass(frozen=True)
class EndpointSettings:
    """Where a language model is asked."""

    url: str = ""
    """base of an OpenAI-style endpoint, http://localhost:8000/v1"""
    model: str = ""
    """name of the model there"""
    key_variable: str = "OPENAI_API_KEY"
    """environment variable that holds the key; none is sent where it is not set"""
    timeout: float = 60.0
    """seconds that the endpoint may be silent"""
    retries: int = 3
    """after a first failure"""
    backoff: float = 1.0
    """seconds before the first retry; twice as many before each next one"""

    def __post_init__(self) -> None:
        if self.timeout <= 0 or self.retries < 0 or self.backoff < 0:
            raise ValueError(
                f"timeout must be above 0, retries and backoff at least 0; got {self.timeout}, {self.retries}, "
                f"{self.backoff}"
            )


class _Stay(urllib.request.HTTPRedirectHandler):
    """A key is not carried on to another address."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        return None


def endpoint(settings: EndpointSettings, max_tokens: int) -> Ask:
    """Asks an endpoint; what may be a passing failure is tried again.

    Raises:
        ValueError: where address or model are not given.
    """
    if not settings.url.startswith(("http://", "https://")) or not settings.model:
        raise ValueError(
            "keywords by endpoint need an address that begins with http and a model's name: --language.endpoint.url "
            f"URL --language.endpoint.model NAME; got {settings.url!r} and {settings.model!r}"
        )
    opener = urllib.request.build_opener(_Stay)
    address = settings.url.rstrip("/") + "/chat/completions"

    def ask(prompt: str, again: bool) -> str:
        body = {
            "model": settings.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0.7 if again else 0.0,
            "max_tokens": max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(settings.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        for attempt in range(settings.retries + 1):
            if attempt:
                time.sleep(settings.backoff * 2 ** (attempt - 1))
            try:
                with opener.open(request, timeout=settings.timeout) as answer:
                    return _content(answer.read(_MOST_BYTES), address)
            except urllib.error.HTTPError as error:
                said = f"HTTP {error.code}"
                if error.code != 429 and error.code < 500:
                    break
            except (OSError, http.client.HTTPException) as error:  # URLError and TimeoutError are OSErrors
                said = str(error) or type(error).__name__
        raise KeywordError(f"{address} does not answer ({said}, asked {attempt + 1} times)", final=True)

    return ask


def _content(body: bytes, address: str) -> str:
    """What the model says in the body of an answer. Raises KeywordError where that is not in it."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise KeywordError(f"{address} answers no chat completion, got {body[:120]!r}") from None
    if not isinstance(content, str):
        raise KeywordError(f"{address} answers a message without text, got {content!r:.120}")
    return content
