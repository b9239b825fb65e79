"""A client for language models behind an OpenAI-style HTTP endpoint."""

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
"""Bytes of a response that are read at most"""

Ask = Callable[[str, bool], str]
"""(prompt, whether an earlier reply to it was unusable) -> reply. Raises KeywordError."""


class KeywordError(ValueError):
    """A row gets no keywords: the language model cannot be reached, or its reply is unusable."""

    def __init__(self, message: str, final: bool = False) -> None:
        super().__init__(message)
        self.final = final
        """True if asking again cannot help"""


@dataclass(frozen=True)
class EndpointSettings:
    """Address of a language model, and how often it is tried."""

    url: str = ""
    """base URL of an OpenAI-style endpoint, such as http://localhost:8000/v1"""
    model: str = ""
    """name of the model at the endpoint"""
    key_variable: str = "OPENAI_API_KEY"
    """environment variable that holds the key; if it is not set, no key is sent"""
    timeout: float = 60.0
    """seconds to wait for a response"""
    retries: int = 3
    """number of tries after the first one fails"""
    backoff: float = 1.0
    """seconds before the first retry; doubled before each further one"""

    def __post_init__(self) -> None:
        if self.timeout <= 0 or self.retries < 0 or self.backoff < 0:
            raise ValueError(
                f"timeout must be above 0, retries and backoff at least 0; got {self.timeout}, {self.retries}, "
                f"{self.backoff}"
            )


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirects, so that the key is not sent to another address."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        return None


def endpoint(settings: EndpointSettings, max_tokens: int) -> Ask:
    """Return a function that asks an endpoint and retries failures that may be temporary.

    Raises:
        ValueError: if the address or the model is not given.
    """
    if not settings.url.startswith(("http://", "https://")) or not settings.model:
        raise ValueError(
            "keywords from an endpoint need a URL that begins with http and a model's name: --language.endpoint.url "
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
        raise KeywordError(f"{address} does not answer ({said}, tried {attempt + 1} times)", final=True)

    return ask


def _content(body: bytes, address: str) -> str:
    """The text of a chat completion. Raises KeywordError if the body holds none."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise KeywordError(f"{address} returned no chat completion, got {body[:120]!r}") from None
    if not isinstance(content, str):
        raise KeywordError(f"{address} returned a message without text, got {content!r:.120}")
    return content
