"""The command line: `perception ask`, `perception evaluate`, `perception info`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from perception.model import PerceptionModel

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Perception tokens in vision-language models.")
console = Console()

Model = Annotated[
    str | None, typer.Option("--model", "-m", help="Folder or hub name of a model; default: the shipped aurora-tiny.")
]


def _load(model: str | None) -> PerceptionModel:
    from transformers.utils import logging

    from perception.model import PerceptionModel
    from perception.shipped import shipped

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what it warns of when weights do not fit is an error of ours, with the remedy
    return PerceptionModel.from_pretrained(model if model is not None else shipped("aurora-tiny"))


@app.command()
def ask(
    image: Annotated[Path, typer.Argument(help="An image file.")],
    question: Annotated[str, typer.Argument(help='Such as "How many red cubes are there?"')],
    model: Model = None,
    mode: Annotated[str, typer.Option(help="chain draws first, direct answers at once, auto chooses.")] = "auto",
    draw: Annotated[Path | None, typer.Option(help="Save a picture of what the model drew here (PNG).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Ask a question about an image."""
    from perception.model import load_image

    if draw is not None and not draw.absolute().parent.is_dir():
        raise ValueError(f"{draw.parent} is not a folder; make it, or draw elsewhere")
    loaded_image = load_image(image)
    perception = _load(model)
    answer = perception.ask(loaded_image, question, mode)
    if as_json:
        spans = [{"modality": s.modality, "codes": list(s.codes)} for s in answer.spans]
        print(json.dumps({"answer": answer.value, "text": answer.text, "spans": spans}))
    else:
        for span in answer.spans:
            number = {"depth": len(span.codes), "boxes": len(span.codes) // 4, "points": len(span.codes) // 2}
            word = {"depth": "a depth map, codes", "boxes": "boxes", "points": "points"}[span.modality]
            console.print(f"drew {word}: {number[span.modality]}", style="dim")
        console.print(f"said: {answer.text}", style="dim", markup=False)
        said = "no answer could be read" if answer.value is None else str(answer.value)
        console.print(said, style="bold", markup=False, highlight=False)
    if draw is not None:
        from perception.evaluation.report import drawn_answer

        drawn_answer(perception, loaded_image, answer).save(draw)
        Console(stderr=True).print(f"picture: {draw}", style="dim", markup=False, soft_wrap=True)


@app.command()
def evaluate(
    model: Model = None,
    look: Annotated[str, typer.Option(help="standard or shifted.")] = "standard",
    mode: Annotated[str, typer.Option(help="chain or direct.")] = "chain",
    num_count: Annotated[int, typer.Option(help="Counting questions.", min=1)] = 200,
    num_depth: Annotated[int, typer.Option(help="Depth questions for each of 2 to 5 points.", min=1)] = 60,
) -> None:
    """Score a model on held-out scenes, with 95 % bootstrap intervals."""
    from perception.evaluation.bootstrap import bootstrap_interval
    from perception.evaluation.scenes import evaluate_items, scene_items

    perception = _load(model)
    items = scene_items(look, num_count, num_depth)
    outcomes = evaluate_items(perception, items, mode)
    table = Table("task", "n", "accuracy, %", title=f"{look} look, {mode}", title_justify="left")
    for group in dict.fromkeys(item.group for item in items):
        interval = bootstrap_interval([float(o.correct) for o in outcomes if o.group == group])
        table.add_row(group, str(interval.count), str(interval))
    console.print(table)


@app.command()
def info(model: Model = None) -> None:
    """Say what a model is: its class, size, and perception vocabulary."""
    perception = _load(model)
    vocabulary = perception.vocabulary
    table = Table(show_header=False)
    table.add_row("model", type(perception.model).__name__)
    table.add_row("parameters", f"{sum(p.numel() for p in perception.model.parameters()):,}")
    table.add_row("depth codes", f"{vocabulary.depth_codes} on a grid of {vocabulary.depth_grid}")
    table.add_row("location bins", str(vocabulary.num_locations))
    table.add_row("perception tokens", str(len(vocabulary.tokens)))
    table.add_row("depth tokenizer", "yes" if perception.depth_tokenizer is not None else "none")
    console.print(table)


def main() -> None:
    """Runs the command line; an error a user can mend is one line and exit code 1."""
    try:
        app()
    except (ValueError, OSError) as error:
        said = " ".join(str(error).split())
        Console(stderr=True).print(f"error: {said}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
