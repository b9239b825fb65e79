"""Reports: self-contained HTML pages with tables, what the models drew, and their answers."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from perception.chains import Answer
from perception.evaluation.comparison import HEADER, Comparison, accuracy_rows
from perception.evaluation.scenes import Item, ScoredAnswer, depth_tokenizer_of
from perception.model.images import load_image
from perception.model.perception_model import PerceptionModel
from perception.tokenizers import TOKENIZERS, DepthTokenizer, MaskTokenizer
from perception.vocabulary.names import Span
from vqvae.files import write_whole

_SIDE, _LARGE = 240, 480
"""Heights of pictures in pixels: of small ones, whose pixels stay sharp, and of those with more pixels than that"""
_WIDEST = 10 * _LARGE
"""Largest width of a picture in pixels: several side by side still fit into a JPEG or WebP file"""
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: 1.5rem; }
figure { margin: 0; } figure img { width: 100%; image-rendering: pixelated; border-radius: 6px; }
figcaption { font-size: .9rem; } .right { color: #188038; } .wrong { color: #c5221f; }
@media (prefers-color-scheme: dark) { .right { color: #81c995; } .wrong { color: #f28b82; } }
"""


@dataclass(frozen=True)
class CaptionedImage:
    """A picture with its caption (HTML)."""

    image: Image.Image
    caption: str


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Put pictures side by side, each scaled to 240 pixels in height, or to 480 where the first has more than 240, or
    to less where it would be very wide."""
    height = _height_for(images[0])
    scaled = [_scaled(image, height) for image in images]
    sheet = Image.new("RGB", (sum(i.width for i in scaled) + 6 * (len(scaled) - 1), height), "white")
    left = 0
    for image in scaled:
        sheet.paste(image, (left, 0))
        left += image.width + 6
    return sheet


def _height_for(image: Image.Image) -> int:
    height = _LARGE if image.height > _SIDE else _SIDE
    return max(1, min(height, _WIDEST * image.height // image.width))


def _scaled(image: Image.Image, height: int) -> Image.Image:
    method = Image.Resampling.NEAREST if image.height <= _SIDE else Image.Resampling.LANCZOS
    return image.resize((max(1, round(image.width * height / image.height)), height), method)


def _mark(value: object, answer: object) -> str:
    name = "right" if value == answer else "wrong"
    return f'<span class="{name}">{html.escape(str(value))} ({name})</span>'


def spans_to_draw(spans: Sequence[Span]) -> list[Span]:
    """Spans of an answer with all points joined into one span at the end.

    A depth chain names its points one by one; they are lettered together and drawn over the depth map.
    """
    points = tuple(code for span in spans if span.modality == "points" for code in span.codes)
    others = [span for span in spans if span.modality != "points"]
    return [*others, Span("points", points)] if points else others


def drawn_masks(model: PerceptionModel, image: Image.Image, spans: Sequence[Span]) -> Image.Image:
    """Draw mask spans on an image. Raises ValueError where the model has no mask tokenizer to decode them with."""
    if model.mask_tokenizer is None:
        raise ValueError("the model has no mask tokenizer, so its masks cannot be drawn; add its mask_tokenizer folder")
    tokenizer = MaskTokenizer(model.mask_tokenizer, model.vocabulary.num_locations)
    return tokenizer.draw([tokenizer.decode(span.codes, (image.height, image.width)) for span in spans], image)


def drawn_answer(model: PerceptionModel, image: Image.Image, answer: Answer) -> Image.Image:
    """Draw every span of an answer beside the image, all masks in one picture; points are drawn on the depth map where
    there is one."""
    pictures = [image]
    under = _scaled(image, _height_for(image))
    for span in spans_to_draw(answer.spans):
        if span.modality == "depth":
            nearness = DepthTokenizer(depth_tokenizer_of(model)).decode(span.codes)
            pictures.append(DepthTokenizer.draw(nearness, under))
        elif span.modality != "masks":
            tokenizer = TOKENIZERS[span.modality](model.vocabulary.num_locations)
            on_map = span.modality == "points" and len(pictures) > 1
            drawn = tokenizer.draw(tokenizer.decode(span.codes), pictures.pop() if on_map else under)
            pictures.append(drawn)
    if masks := [span for span in answer.spans if span.modality == "masks"]:
        pictures.append(drawn_masks(model, under, masks))
    return side_by_side(pictures)


def example_figure(model: PerceptionModel, item: Item, chain: ScoredAnswer, direct: ScoredAnswer) -> CaptionedImage:
    """The image, what the model drew, and the answers with and without drawing."""
    caption = (
        f"<b>{html.escape(item.question)}</b><br>answer: {html.escape(str(item.answer))}<br>"
        f"drawing first: {_mark(chain.answer.value, item.answer)}<br>"
        f"directly: {_mark(direct.answer.value, item.answer)}<br><small>{html.escape(chain.answer.text)}</small>"
    )
    return CaptionedImage(drawn_answer(model, load_image(item.image), chain.answer), caption)


def example_figures(
    model: PerceptionModel,
    items: Sequence[Item],
    chain: Sequence[ScoredAnswer],
    direct: Sequence[ScoredAnswer],
    each: int = 3,
) -> list[CaptionedImage]:
    """Figures of the first `each` items of every group, whatever their answers."""
    figures, seen = [], dict.fromkeys((item.group for item in items), 0)
    for item, drawn, at_once in zip(items, chain, direct, strict=True):
        if seen[item.group] < each:
            seen[item.group] += 1
            figures.append(example_figure(model, item, drawn, at_once))
    return figures


def html_table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def comparison_html(comparison: Comparison) -> str:
    """Tables of the comparison on one style."""
    text = f"<h2>The {html.escape(comparison.style)} style</h2>" + html_table(HEADER, accuracy_rows(comparison))
    columns = list(next(iter(comparison.interventions.values())))
    if len(columns) > 1:
        body = [(name, *(cells[c] for c in columns)) for name, cells in comparison.interventions.items()]
        text += "<h3>Accuracy when the chain's span is replaced</h3>" + html_table(("task", *columns), body)
    if comparison.drawn_map_order:
        body = [(g, f"{100 * v:.1f}") for g, v in comparison.drawn_map_order.items()]
        text += "<h3>Drawn maps that are nearest at the right point, %</h3>" + html_table(("points", "share"), body)
    return text


def _figure_html(figure: CaptionedImage) -> str:
    buffer = io.BytesIO()
    figure.image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    alt = html.escape(html.unescape(figure.caption.split("</b>")[0].removeprefix("<b>")))
    picture = f'<img alt="{alt}" src="data:image/png;base64,{data}">'
    return f"<figure>{picture}<figcaption>{figure.caption}</figcaption></figure>"


def write_report(path: str | Path, title: str, intro: str, sections: Sequence[str | Sequence[CaptionedImage]]) -> Path:
    """Write a page. A section is HTML text or a list of captioned images."""
    parts = [
        s if isinstance(s, str) else '<div class="cards">' + "".join(_figure_html(f) for f in s) + "</div>"
        for s in sections
    ]
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><main><h1>{html.escape(title)}</h1><p>{intro}</p>{''.join(parts)}</main></body></html>"
    )
    write_whole(path, page)
    return Path(path)
