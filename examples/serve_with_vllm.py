"""Ask a fine-tuned model that vLLM serves, with its spans constrained by the grammar.

    vllm serve runs/own/model --structured-outputs-config.backend guidance
    python examples/serve_with_vllm.py runs/own/model IMAGE "How many cups are there?" --draw answer.png

Any server with OpenAI's interface and llguidance reads the same request. Others refuse vLLM's own settings, as
`transformers serve` does; --plain leaves them out, and then no grammar constrains the spans:

    transformers serve runs/own/model
    python examples/serve_with_vllm.py runs/own/model IMAGE "How many cups are there?" --plain --draw answer.png

`PerceptionVocabulary.parse_text` reads the spans back from the answer's tokens; with --draw their boxes, points, depth
maps and masks are drawn, the last two by the tokenizers in the model's folder. No weights of the model are loaded here.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoProcessor

from perception.chains import ChainRoom, prompt_for
from perception.evaluation.report import side_by_side
from perception.grammar.automaton import SpanGrammar
from perception.model.image_inputs import placeholder_ids
from perception.model.images import load_image
from perception.tokenizers import TOKENIZERS, DepthTokenizer, MaskTokenizer
from perception.vocabulary.names import PerceptionVocabulary, Span
from vqvae import VQVAE


def grammar_of(folder: str, question: str) -> str:
    """The grammar of a model's answers to a question, from its folder: its tokenizer and configuration."""
    from transformers import AutoConfig

    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    vocabulary = PerceptionVocabulary.load(folder)
    config = AutoConfig.from_pretrained(folder)
    grammar = SpanGrammar(
        vocabulary, tokenizer.eos_token_id, vocab_size=len(tokenizer), banned_ids=placeholder_ids(config)
    )
    return grammar.to_lark(ChainRoom.of(tokenizer, vocabulary).limits(question))


def request(folder: str, image: Path, question: str, max_tokens: int = 512, constrained: bool = True) -> dict[str, Any]:
    """The body of a chat completion, which asks to draw first where a chain fits the question.

    The picture is sent as this package sees it: upright, in RGB. `constrained` adds vLLM's settings: the grammar, and
    `skip_special_tokens` off, since spans are special tokens.
    """
    png, asked = io.BytesIO(), prompt_for(question, "auto", PerceptionVocabulary.load(folder).modalities)[0]
    load_image(image).save(png, "PNG")
    shown = base64.b64encode(png.getvalue()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{shown}"}},
        {"type": "text", "text": asked},
    ]
    body = {
        "model": folder,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": max_tokens,
    }
    if not constrained:
        return body
    return body | {"skip_special_tokens": False, "structured_outputs": {"grammar": grammar_of(folder, asked)}}


def ask(url: str, body: dict[str, Any]) -> str:
    """Send a request and return the answer's text.

    Raises:
        ValueError: if no server answers, or it refuses the request (with its reason), or the answer was cut off.
    """
    call = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(call) as reply:
            choice = json.load(reply)["choices"][0]
            text, end = choice["message"]["content"], choice.get("finish_reason")
    except urllib.error.HTTPError as error:
        raise ValueError(f"{url} refused the request ({error.code}): {_reason(error)}") from error
    except (OSError, HTTPException, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{url} gave no answer of a server with OpenAI's interface ({error}); start one with `vllm serve "
            f"{body['model']}`, or give its --url"
        ) from error
    if end == "length":
        raise ValueError(f"the answer was cut off after {body['max_tokens']} tokens; give more as --max-new-tokens")
    if not isinstance(text, str):
        raise ValueError(f"{url} gave an answer without text; start the server without a parser of tools or reasoning")
    return text


def _reason(error: urllib.error.HTTPError) -> str:
    """What a server says about a request that it refuses: its message, else the beginning of the page."""
    said = error.read().decode(errors="replace")
    try:
        found = json.loads(said)
        found = found.get("error", found)
        return str(found["message"] if "message" in found else found["detail"])  # FastAPI has the latter
    except (ValueError, AttributeError, LookupError, TypeError):
        return said.strip()[:500] or str(error.reason)


def drawn(folder: str, image: Path, parts: Sequence[str | Span]) -> Image.Image:
    """The picture, and beside it what each span of an answer draws."""
    vocabulary, picture = PerceptionVocabulary.load(folder), load_image(image)
    shown, tokenizers = [picture], Path(folder).absolute()
    for span in (part for part in parts if isinstance(part, Span)):
        if span.modality == "depth":
            tokenizer = DepthTokenizer(VQVAE.from_pretrained(tokenizers / "depth_tokenizer"))
            shown.append(DepthTokenizer.draw(tokenizer.decode(span.codes), picture))
        elif span.modality == "masks":
            masks = MaskTokenizer(VQVAE.from_pretrained(tokenizers / "mask_tokenizer"), vocabulary.num_locations)
            shown.append(masks.draw([masks.decode(span.codes, (picture.height, picture.width))], picture))
        else:
            places = TOKENIZERS[span.modality](vocabulary.num_locations)
            shown.append(places.draw(places.decode(span.codes), picture))
    return side_by_side(shown)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of the model, as it was given to `vllm serve`")
    parser.add_argument("image", type=Path)
    parser.add_argument("question")
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="most tokens of the answer")
    parser.add_argument("--plain", action="store_true", help="leave vLLM's settings out, for `transformers serve`")
    parser.add_argument("--draw", type=Path, help="PNG for the picture and what the answer drew")
    given = parser.parse_args(argv)
    try:
        body = request(given.model, given.image, given.question, given.max_new_tokens, not given.plain)
        parts = PerceptionVocabulary.load(given.model).parse_text(ask(given.url, body))
        for part in parts:
            print(part)
        if given.draw is not None:
            drawn(given.model, given.image, parts).save(given.draw)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
