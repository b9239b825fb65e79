"""Ask a fine-tuned model that vLLM serves, with its spans constrained by the grammar.

    vllm serve runs/own/model --structured-outputs-config.backend guidance
    python examples/serve_with_vllm.py runs/own/model IMAGE "How many cups are there?"

Any server with OpenAI's interface and llguidance reads the same request. `PerceptionVocabulary.parse_text` reads a
depth map back from the answer's tokens, and the depth tokenizer in the model's folder draws it.
"""

from __future__ import annotations

import argparse
import base64
import json
import urllib.request
from pathlib import Path
from typing import Any

from transformers import AutoProcessor

from perception.chains import prompt_for
from perception.grammar.automaton import SpanGrammar
from perception.model.image_inputs import placeholder_ids
from perception.vocabulary.names import PerceptionVocabulary


def grammar_of(folder: str) -> SpanGrammar:
    """The grammar of the answers of the model in a folder. Needs its tokenizer and configuration, not its weights."""
    from transformers import AutoConfig

    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    vocabulary = PerceptionVocabulary.load(folder)
    config = AutoConfig.from_pretrained(folder)
    return SpanGrammar(
        vocabulary, tokenizer.eos_token_id, vocab_size=len(tokenizer), banned_ids=placeholder_ids(config)
    )


def request(folder: str, image: Path, question: str, max_tokens: int = 512) -> dict[str, Any]:
    """The body of a chat completion. Spans are special tokens, so `skip_special_tokens` is off."""
    shown = base64.b64encode(image.read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/{image.suffix[1:]};base64,{shown}"}},
        {"type": "text", "text": prompt_for(question, "chain")[0]},
    ]
    return {
        "model": folder,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": max_tokens,
        "skip_special_tokens": False,
        "structured_outputs": {"grammar": grammar_of(folder).to_lark()},
    }


def ask(url: str, body: dict[str, Any]) -> str:
    """Send a request and return the answer's text."""
    call = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(call) as reply:
        text: str = json.load(reply)["choices"][0]["message"]["content"]
    return text


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of the model, as it was given to `vllm serve`")
    parser.add_argument("image", type=Path)
    parser.add_argument("question")
    parser.add_argument("--url", default="http://localhost:8000")
    given = parser.parse_args(argv)
    text = ask(given.url, request(given.model, given.image, given.question))
    for part in PerceptionVocabulary.load(given.model).parse_text(text):
        print(part)


if __name__ == "__main__":
    main()
