"""The command line `perception`: ask, evaluate, ablate, info, push-to-hub, tokenize, join, detokenize,
export-tokenizer, import-tokenizer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from perception.evaluation.span_ablation import ChainQuestion
    from perception.interleave.reasoner import Reasoner, Reasoning
    from perception.model.perception_model import PerceptionModel
    from vqvae import VQVAE

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Perception tokens in vision-language models.")
console = Console()


def _print_version(wanted: bool) -> None:
    if wanted:
        print(version("perception-tokens"))
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _refuse_given(context: typer.Context, names: Sequence[str], belong: str) -> None:
    """Raise ValueError for options that were given and would be ignored. `belong` says what they go with."""
    sources = {name: context.get_parameter_source(name) for name in names}
    given = ["--" + name.replace("_", "-") for name, source in sources.items() if source and source.name != "DEFAULT"]
    if given:
        raise ValueError(f"{' and '.join(given)} {'go' if len(given) > 1 else 'goes'} with {belong}")


def _named(model: str | None) -> str | None:
    """A model's name; an empty one, as an unset variable of a shell gives, is not the default."""
    if model is not None and not model.strip():
        raise ValueError("--model is empty; name a model, or leave --model out for the default")
    return model


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        callback=_named,
        help="Folder or hub name of a model or adapter, or the name of one that ships; default: aurora-tiny, in mode "
        "interleaved chart-tiny.",
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps, ...; default: the best device there is.")
]
Dtype = Annotated[str, typer.Option("--dtype", help="Type of the weights: float32, float16 or bfloat16.")]


def _load(model: str | None, device: str | None = None, dtype: str = "float32") -> PerceptionModel:
    from transformers.utils import logging

    from perception.model.devices import find_device, find_dtype
    from perception.model.perception_model import PerceptionModel
    from perception.model.shipped import shipped

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # weights that do not fit, which it warns of, are an error here
    where = (find_device(device), find_dtype(dtype))
    return PerceptionModel.from_pretrained(model or shipped("aurora-tiny"), *where)


def _load_reasoner(model: str | None, device: str | None, dtype: str) -> Reasoner:
    from perception.interleave.reasoner import Reasoner
    from perception.model.devices import find_device, find_dtype
    from perception.model.shipped import shipped

    return Reasoner.from_pretrained(model or shipped("chart-tiny"), find_device(device), find_dtype(dtype))


@app.command()
def ask(
    image: Annotated[Path, typer.Argument(help="Image file.")],
    question: Annotated[str, typer.Argument(help='For example "How many red cubes are there?"')],
    model: Model = None,
    mode: Annotated[
        str,
        typer.Option(
            help="chain draws first; direct answers at once; interleaved selects visual tokens at each step; auto "
            "draws first where the question counts or asks for depth, and is interleaved for a model that learned that."
        ),
    ] = "auto",
    point: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y",
            help="A place that a question of depth is about, in [0, 1] of the image's width and height; give it two to "
            "five times. The places become the points A, B, ..",
        ),
    ] = None,
    draw: Annotated[
        Path | None,
        typer.Option("--draw", "--picture", help="PNG for what the model drew or selected."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
    device: Device = None,
    dtype: Dtype = "float32",
    max_new_tokens: Annotated[int | None, typer.Option(help="Most tokens of the answer.", min=1)] = None,
) -> None:
    """Ask a question about an image."""
    from PIL import Image

    from perception.interleave.selector import CONFIG_FILE
    from perception.model.folder import find_folder
    from perception.model.images import load_image

    if mode not in ("chain", "direct", "auto", "interleaved"):
        raise ValueError(f"unknown mode {mode!r}; known modes: chain, direct, auto, interleaved")
    if draw is not None and not draw.absolute().parent.is_dir():
        raise ValueError(f"{draw.parent} is not a folder; make it, or draw elsewhere")
    if draw is not None and (draw.is_dir() or Image.registered_extensions().get(draw.suffix.lower()) not in Image.SAVE):
        raise ValueError(f"--draw {draw} is no name of a picture; end it in .png or .jpg")
    loaded_image = load_image(image)
    room: dict[str, Any] = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    points = [_place(text) for text in point] if point else None
    if mode == "auto" and model is not None and (find_folder(model) / CONFIG_FILE).is_file():
        mode = "interleaved"
        if not as_json:
            console.print("auto chose to select visual tokens at each step", style="dim", markup=False)
    if mode == "interleaved":
        if points:
            raise ValueError(
                "--point goes with questions of depth, and mode interleaved solves problems; leave one out"
            )
        _show_reasoning(_load_reasoner(model, device, dtype).solve(loaded_image, question, **room), draw, as_json)
        return
    perception = _load(model, device, dtype)
    answer = perception.ask(loaded_image, question, mode, points=points, **room)
    if as_json:
        spans = [{"modality": s.modality, "codes": list(s.codes)} for s in answer.spans]
        said = {"answer": answer.value, "text": answer.text, "spans": spans, "mode": answer.mode}
        print(json.dumps(said | {"warning": answer.warning, "confidence": answer.confidence}))
    else:
        if perception.trained_on:
            console.print(f"trained on {perception.trained_on}", style="dim", markup=False, soft_wrap=True)
        from perception.chains import asks_to_draw

        only_drawn = asks_to_draw(question) and answer.value is None and bool(answer.spans)
        if mode == "auto" and not only_drawn:
            chose = {"chain": "draw first", "direct": "answer at once"}[answer.mode]
            console.print(f"auto chose to {chose}", style="dim", markup=False)
        from perception.vocabulary.spans import GROUP_SIZES

        for span in answer.spans:
            words = {"depth": "a depth map, codes", "masks": "a mask, codes"}
            number = len(span.split[1]) // GROUP_SIZES.get(span.modality, 1)
            console.print(f"drew {words.get(span.modality, span.modality)}: {number}", style="dim")
        if answer.text or not only_drawn:
            console.print(f"said: {answer.text}", style="dim", markup=False)
        for warning in filter(None, (answer.warning, answer.doubt)):
            console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
        if not only_drawn:
            value = "no answer could be read" if answer.value is None else str(answer.value)
            console.print(value, style="bold", markup=False, highlight=False)
    if draw is not None:
        from perception.evaluation.report import drawn_answer
        from perception.scenes.markers import lettered

        shown = loaded_image if points is None else lettered(loaded_image, points)
        drawn_answer(perception, shown, answer).save(draw)
        Console(stderr=True).print(f"picture: {draw}", style="dim", markup=False, soft_wrap=True)


def _place(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"--point takes X,Y, such as 0.2,0.9, got {text!r}") from None
    return x, y


def _show_reasoning(reasoning: Reasoning, draw: Path | None, as_json: bool) -> None:
    from perception.interleave.reasoner import draw_reasoning

    if as_json:
        steps = [
            {"text": step.text, "cells": step.cells.astype(int).tolist(), "inserted": step.inserted}
            for step in reasoning.steps
        ]
        found = {"answer": reasoning.value, "text": reasoning.text, "steps": steps}
        print(json.dumps(found | {"visual_tokens": reasoning.visual_tokens}))
    else:
        for number, step in enumerate(reasoning.steps, start=1):
            looked = f"selected {int(step.cells.sum())} of {step.cells.size} visual tokens"
            if step.crops:
                crops = f"{len(step.crops)} crop{'s' if len(step.crops) > 1 else ''}"
                looked += f"; {crops} of the original brought in {step.inserted}"
            console.print(f"{number}. {step.text}  ({looked})", markup=False, highlight=False, soft_wrap=True)
        said = "no answer could be read" if reasoning.value is None else reasoning.value
        console.print(said, style="bold", markup=False, highlight=False)
    if draw is not None:
        draw_reasoning(reasoning).save(draw)
        Console(stderr=True).print(f"picture: {draw}", style="dim", markup=False, soft_wrap=True)


@app.command()
def evaluate(
    context: typer.Context,
    task: Annotated[
        str,
        typer.Argument(
            metavar="[SET]",
            help="scenes, a published set (blink-depth, hardblink, blink-counting, cvbench, seedbench, mathvista, "
            "geoqa, mmstar), or own: a table of your own questions.",
        ),
    ] = "scenes",
    model: Model = None,
    style: Annotated[str, typer.Option(help="standard or shifted.")] = "standard",
    mode: Annotated[str, typer.Option(help="chain, direct, or, on published sets of problems, interleaved.")] = "chain",
    num_count: Annotated[int, typer.Option(help="Counting questions.", min=1)] = 200,
    num_depth: Annotated[int, typer.Option(help="Depth questions for each of 2 to 5 points.", min=1)] = 60,
    data: Annotated[
        Path | None, typer.Option(help="Folder with a downloaded published set; for own, a CSV or JSON file.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the answers of a set and their page.")] = Path("evaluation"),
    limit: Annotated[int | None, typer.Option(help="Questions of a set; default: all.", min=1)] = None,
    batch_size: Annotated[int, typer.Option(help="Questions of a set per batch.", min=1)] = 16,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Most tokens per answer; default: 512 for sets, or what the model's map needs.", min=1),
    ] = None,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Score a model on held-out scenes, a published set, or your own questions, with 95 % bootstrap intervals.

    Published sets are read in their authors' layout, your own as by train.finetune --data.own (docs/evaluate.md). Every
    answer is written to --out as it is made; the same command continues a stopped run.
    """
    if task != "scenes":
        _refuse_given(context, ("style", "num_count", "num_depth"), "rendered scenes; leave it out, or see --limit")
        _evaluate_published(task, data, model, mode, out, limit, batch_size, max_new_tokens, device, dtype)
        return
    _refuse_given(
        context,
        ("data", "limit", "out", "batch_size"),
        "a set; name it (evaluate hardblink --data FOLDER, evaluate own --data questions.csv), or score rendered "
        "scenes without",
    )
    from perception.evaluation.bootstrap import accuracy_interval
    from perception.evaluation.scenes import evaluate_items, scene_items

    perception = _load(model, device, dtype)
    items = scene_items(style, num_count, num_depth)
    room: dict[str, Any] = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    outcomes = evaluate_items(perception, items, mode, **room)
    table = Table("task", "n", "accuracy, %", title=f"{style} style, {mode}", title_justify="left")
    for group in dict.fromkeys(item.group for item in items):
        interval = accuracy_interval([float(o.correct) for o in outcomes if o.group == group])
        table.add_row(group, str(interval.count), str(interval))
    console.print(table)


def _evaluate_published(
    name: str,
    data: Path | None,
    model: str | None,
    mode: str,
    out: Path,
    limit: int | None,
    batch_size: int,
    max_new_tokens: int | None,
    device: str | None,
    dtype: str,
) -> None:
    from perception.datasets.shards import Plan
    from perception.evaluation.published_scores import (
        MODES,
        accuracies,
        answer_published,
        asker,
        mean_of_sources,
        published_room,
        unlike_taught,
        write_page,
    )
    from perception.evaluation.published_sets import SETS, read_published_set
    from perception.model.adapter import weights_digest, weights_files
    from perception.model.folder import find_folder
    from perception.model.shipped import shipped

    if name not in SETS:
        raise ValueError(f"unknown set {name!r}; known: scenes, {', '.join(SETS)}")
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; known modes: {', '.join(MODES)}")
    if data is None:
        raise ValueError(f"{name} needs --data, the folder with the downloaded set, or your own table")
    items = read_published_set(name, data)[:limit]
    answering = (_load_reasoner if mode == "interleaved" else _load)(model, device, dtype)
    stem = out / f"{name}-{mode}"
    room = published_room(answering) if max_new_tokens is None else max_new_tokens
    folder = find_folder(model or shipped("chart-tiny" if mode == "interleaved" else "aurora-tiny"))
    selector = sorted(folder.glob("interleave*.safetensors")) if mode == "interleaved" else []
    weights = weights_digest([*weights_files(folder), *selector])[:16]
    settings = {
        "set": name, "mode": mode, "model": model, "weights": weights, "max_new_tokens": room, "dtype": dtype
    }  # fmt: skip
    Plan(stem.with_suffix(".plan.json"), settings).begin()
    ask = asker(answering, mode, room)
    with _stoppable():
        given = answer_published(items, ask, stem.with_suffix(".jsonl"), batch_size, f"{name} ({mode})")
    table = Table("group", "n", "accuracy, %", title=f"{name}, {mode}", title_justify="left")
    for group, interval in accuracies(items, given).items():
        table.add_row(group, str(interval.count), str(interval))
    if (mean := mean_of_sources(items, given)) is not None:
        table.add_row("the set's own mean, over its sources", str(len(given)), f"{100 * mean:.1f}")
    console.print(table)
    if strange := unlike_taught(answering, items):
        console.print(f"warning: {strange}", style="yellow", markup=False, soft_wrap=True)
    page = write_page(stem.with_suffix(".html"), f"{name}, {mode}", answering, items, given, room)
    console.print(f"answers: {stem.with_suffix('.jsonl')}\npage: {page}", style="dim", markup=False, soft_wrap=True)


@app.command()
def ablate(
    task: Annotated[
        str,
        typer.Argument(
            metavar="[SET]",
            help="scenes (both styles), or a set with counting or depth questions: blink-depth, hardblink, "
            "blink-counting, cvbench, seedbench, own (a table of yours).",
        ),
    ] = "scenes",
    model: Model = None,
    data: Annotated[Path | None, typer.Option(help="Folder with a downloaded published set.")] = None,
    kind: Annotated[Literal["all", "count", "depth"], typer.Option(help="Kind of questions.")] = "all",
    read: Annotated[
        Literal["decoded", "model"],
        typer.Option(help="Who reads the maps: the package decodes them, or the model reads them itself."),
    ] = "decoded",
    questions: Annotated[int, typer.Option(help="Most questions of a kind (on scenes, of each style).", min=2)] = 150,
    seeds: Annotated[int, typer.Option(help="Number of draws of each random replacement.", min=1)] = 3,
    out: Annotated[Path, typer.Option(help="Folder for the results and their page.")] = Path("ablation"),
    batch_size: Annotated[int, typer.Option(help="Questions per batch.", min=1)] = 32,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Test whether a model uses what it draws: replace its spans and see what becomes of its answers.

    This is the Token Replacement Test (docs/evaluate.md): the model's own span, the true one, another image's,
    shuffled, random, a single code, markers only, none; boxes added, removed and moved. Writes SET-READ.json and
    SET-READ.html.
    """
    from perception.evaluation.span_ablation import NAMES, ablate_spans, ablation_table, write_ablation

    kinds: list[str] = list(NAMES) if kind == "all" else [kind]
    asked, perception = _ablation_questions(task, data, partial(_load, model, device, dtype), kinds, questions)
    out.mkdir(parents=True, exist_ok=True)  # before the work, so that a folder that cannot be made costs none
    tests = []
    for name, group in asked.items():
        tests.append(ablate_spans(perception, group, name, read, range(seeds), batch_size))
        console.print(ablation_table(tests[-1]))
    settings = {"model": model or "aurora-tiny", "set": task, "read": read, "seeds": list(range(seeds))}
    for path in write_ablation(out / f"{task}-{read}", perception, tests, settings):
        console.print(str(path), style="dim", markup=False, highlight=False, soft_wrap=True)


def _ablation_questions(
    task: str, data: Path | None, load: Callable[[], PerceptionModel], kinds: list[str], most: int
) -> tuple[dict[str, list[ChainQuestion]], PerceptionModel]:
    """The questions of each test by its name, and the model; what costs no waiting is checked first."""
    from perception.evaluation.published_sets import SETS, read_published_set
    from perception.evaluation.scenes import depth_tokenizer_of, scene_items
    from perception.evaluation.span_ablation import NAMES, published_questions, scene_question

    if task != "scenes":
        if task not in SETS:
            raise ValueError(f"unknown set {task!r}; known: scenes, {', '.join(SETS)}")
        if data is None:
            raise ValueError(f"{task} needs --data, the folder with the downloaded set")
        fitting = published_questions(read_published_set(task, data))
        groups = {f"{NAMES[kind]}, {task}": [q for q in fitting if q.kind == kind][:most] for kind in kinds}
        groups = {name: group for name, group in groups.items() if group}
        if not groups:
            wanted = " or ".join(NAMES[kind] for kind in kinds)
            raise ValueError(f"{task} in {data} has no {wanted} questions that a chain fits; try another set or --kind")
        return groups, load()
    if data is not None:
        raise ValueError("--data goes with a published set; name it, or leave --data out to test on rendered scenes")
    perception = load()
    if "depth" in kinds:
        depth_tokenizer_of(perception)
    groups = {}
    for style in ("standard", "shifted"):
        items = scene_items(style, most if "count" in kinds else 0, -(-most // 3) if "depth" in kinds else 0)
        for kind in kinds:
            # Two points are left out: half of all guesses are right there.
            fits = [item for item in items if item.kind == kind and item.group != "depth-2"]
            chosen = [fits[n * len(fits) // most] for n in range(most)]  # evenly, over the numbers of points
            groups[f"{NAMES[kind]}, {style} style"] = [scene_question(perception, item) for item in chosen]
    return groups, perception


@app.command()
def info(model: Model = None) -> None:
    """Describe a model or an adapter: its class, size, and perception vocabulary."""
    from perception.model.adapter import AdapterBase, is_adapter
    from perception.model.folder import find_folder
    from perception.model.shipped import shipped

    perception, folder = _load(model), find_folder(model or shipped("aurora-tiny"))
    vocabulary = perception.vocabulary
    table = Table(show_header=False)
    if is_adapter(folder):
        table.add_row("adapter for", AdapterBase.load(folder).base)
        table.add_row("adapter's size", f"{(folder / 'adapter_model.safetensors').stat().st_size / 1e6:.1f} MB")
    table.add_row("model", type(perception.model).__name__)
    if perception.trained_on:
        table.add_row("trained on", perception.trained_on)
    table.add_row("parameters", f"{sum(p.numel() for p in perception.model.parameters()):,}")
    if "depth" in vocabulary.modalities:
        table.add_row("depth codes", f"{vocabulary.depth_codes} on a grid of {vocabulary.depth_grid}")
    if {"boxes", "points"} & set(vocabulary.modalities):
        table.add_row("location bins", f"{vocabulary.num_locations}")
    if vocabulary.mask_codes is not None:
        table.add_row("mask codes", f"{vocabulary.mask_codes}, {vocabulary.mask_length} per mask")
    table.add_row("perception tokens", str(len(vocabulary.tokens)))
    table.add_row("depth tokenizer", "yes" if perception.depth_tokenizer is not None else "none")
    console.print(table)


@app.command()
def push_to_hub(
    folder: Annotated[Path, typer.Argument(help="Folder of a model or an adapter that training wrote.")],
    name: Annotated[str, typer.Argument(help="Name on the hub, owner/name; made if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Upload a model or an adapter to the hub, with its card (docs/share.md). Log in first: hf auth login."""
    from perception.model.sharing import push_to_hub as push

    console.print(push(folder, name, private), markup=False, highlight=False, soft_wrap=True)


Tokenizer = Annotated[
    str | None,
    typer.Option("--tokenizer", "-t", help="Folder, hub name, or name of one that ships; default: depth-scenes-100."),
]


def _load_tokenizer(name: str | None) -> VQVAE:
    import torch

    from perception.model.shipped import shipped
    from perception.tokenizers import DepthTokenizer

    model = DepthTokenizer.from_pretrained(name or shipped("depth-scenes-100")).vqvae
    return model.to("cuda") if torch.cuda.is_available() else model


@app.command()
def tokenize(
    source: Annotated[Path, typer.Argument(help="Depth file (npy, png, pfm, exr, mat, ...) or a folder of them.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Codes: .parquet, .npy (with a .json beside it) or .txt.")],
    tokenizer: Tokenizer = None,
    meaning: Annotated[
        Literal["depth", "inverse"],
        typer.Option(
            help="inverse: disparity or inverse depth, larger is nearer; 0 is farthest, or a hole if --scale is given."
        ),
    ] = "depth",
    scale: Annotated[
        float | None,
        typer.Option(
            help="Metres per unit (inverse: depth = scale / value); default: 0.001 in pictures of whole numbers (16 to "
            "64 bits), else 1."
        ),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Name of the array, for files that hold several.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Data set that gives the scale of whole numbers (pictures or arrays), and the value of their holes: "
            "nyu, scannet, 7-scenes, tum, icl-nuim, matterport3d, kitti, vkitti or taskonomy. Floats are metres anyway."
        ),
    ] = None,
    invalid: Annotated[float | None, typer.Option(help="Stored value that marks holes, such as 65535.")] = None,
    max_depth: Annotated[
        float | None, typer.Option(help="Metres beyond which pixels are holes; inverse: only with --scale.")
    ] = None,
    percentile: Annotated[
        float | None,
        typer.Option(
            help="Ends of each map's range: this percentile, and 100 minus it; 0 for min-max. Default: the "
            "tokenizer's, which is min-max without wild pixels."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Maps per batch.", min=1)] = 32,
    shard: Annotated[
        str, typer.Option(help="i/n: run as job i (from 0) of n; the name of OUT gets both numbers. See join.")
    ] = "0/1",
    glob: Annotated[
        str, typer.Option(help='Encode only files that match, such as "*_depth.png" or "left/**/*.png"; default: all.')
    ] = "",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out files without readable depth; OUT.skipped.jsonl lists them.")
    ] = False,
) -> None:
    """Turn depth maps into codes. The same command continues a stopped job."""
    from perception.datasets.depth.files import DepthFormat
    from perception.datasets.depth.jobs import skipped_list
    from perception.datasets.depth.jobs import tokenize as run

    index, count = _shard(shard)
    if count > 1:
        out = out.with_name(f"{out.stem}-{index:05d}-of-{count:05d}{out.suffix}")
    meant = DepthFormat(meaning, scale, key, invalid, max_depth, preset)
    model = _load_tokenizer(tokenizer)
    if percentile is not None:
        model.config = replace(model.config, range_percentile=percentile)
    with _stoppable():
        codes = run(source, out, model, meant, batch_size, (index, count), glob, skip_bad)
    console.print(f"{len(codes.names)} maps of {codes.codes.shape[1]} codes: {out}", markup=False, soft_wrap=True)
    if skipped_list(out).exists():
        said = f"{len(skipped_list(out).read_bytes().splitlines())} skipped: {skipped_list(out)}"
        Console(stderr=True).print(said, style="yellow", markup=False, soft_wrap=True)


@app.command()
def join(
    files: Annotated[list[Path], typer.Argument(help="Files of codes that the shards of one job wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Codes: .parquet, .npy (with a .json beside it) or .txt.")],
) -> None:
    """Join the codes of all shards (tokenize --shard) into the file that one job would have written."""
    from perception.datasets.depth.code_files import join_files

    codes = join_files(files, out)
    console.print(f"{len(codes.names)} maps of {codes.codes.shape[1]} codes: {out}", markup=False, soft_wrap=True)


@app.command()
def detokenize(
    context: typer.Context,
    codes: Annotated[Path, typer.Argument(help="File of codes that `perception tokenize` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the maps.")],
    tokenizer: Tokenizer = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="npy, tiff or exr (depth in metres, or 1 / value of relative nearness), png (16-bit millimetres) or "
            "color (a picture).",
        ),
    ] = "npy",
    batch_size: Annotated[int, typer.Option(help="Maps per batch.", min=1)] = 32,
    diffusion: Annotated[
        str | None,
        typer.Option(help="Folder of a diffusion decoder (sharper, slower), or 'shipped' for depth-scenes-100's own."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Sampling steps of the diffusion decoder.", min=1)] = 2,
    seed: Annotated[int, typer.Option(help="Random seed of the diffusion decoder.")] = 0,
) -> None:
    """Turn codes back into depth maps with their original size and range."""
    from perception.datasets.depth.code_files import DepthCodes
    from perception.datasets.depth.jobs import detokenize as run

    if diffusion is None:
        _refuse_given(context, ("steps", "seed"), "--diffusion, the decoder that takes steps")
    model, decode = _load_tokenizer(tokenizer), None
    if diffusion is not None:
        from functools import partial

        from perception.model.shipped import shipped
        from vqvae.diffusion import DiffusionDecoder

        folder = shipped("depth-scenes-100") / "diffusion" if diffusion == "shipped" else Path(diffusion)
        try:
            decoder = DiffusionDecoder.from_pretrained(folder, model).to(model.codebook.device)
        except ImportError as error:
            raise ValueError(str(error)) from error
        decode = partial(decoder.decode, num_steps=steps, seed=seed)
    with _stoppable("and the same command writes all maps again"):
        written = run(DepthCodes.read(codes), out, model, form, batch_size, decode)
    console.print(f"{len(written)} maps: {out}", markup=False, soft_wrap=True)


@app.command()
def export_tokenizer(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the two programs.")],
    tokenizer: Tokenizer = None,
    form: Annotated[str, typer.Option("--format", help="onnx, or torch (torch.export's .pt2).")] = "onnx",
) -> None:
    """Write a depth tokenizer's encoder and decoder as programs that run without this package (see vqvae.export)."""
    from vqvae.export import export_tokenizer as export

    try:
        written = export(_load_tokenizer(tokenizer), out, form)
    except ImportError as error:
        raise ValueError(str(error)) from error
    console.print(f"{', '.join(path.name for path in written)}: {out}", markup=False, soft_wrap=True)


@app.command()
def import_tokenizer(
    source: Annotated[
        Path,
        typer.Argument(
            help="State dict (.pt, .pth, .safetensors) of AURORA's, AiT's, MolmoAct's or 4M's tokenizer, or the folder "
            "of a diffusers VQModel."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the tokenizer.")],
    normalisation: Annotated[
        str,
        typer.Option(
            help="How the original takes depth, which the file does not say: aurora (nearness per map in [-1, 1]), "
            "molmoact (in [0, 1]), ait (metres up to 10) or 4m (depth, standardised per map)."
        ),
    ],
    image_size: Annotated[
        int | None, typer.Option(help="Side of a map in pixels; default: the published 320, ait 480, 4m 224.", min=1)
    ] = None,
) -> None:
    """Turn a published tokenizer into a folder of ours, with the same codes for the same maps (docs/share.md)."""
    from vqvae.published import import_tokenizer as read

    try:
        model = read(source, normalisation, image_size)
    except ImportError as error:
        raise ValueError(str(error)) from error
    model.save_pretrained(out)
    config = model.config
    side = config.image_size
    said = f"{config.num_codes} codes per map, of {config.codebook_size}, from {side} x {side} pixels: {out}"
    if not config.decodes:
        said += "\nit encodes only: 4M's decoder is a diffusion model, which is not imported"
    console.print(said, markup=False, soft_wrap=True)


@contextmanager
def _stoppable(then: str = "and the same command goes on from there") -> Iterator[None]:
    """End a job that Ctrl-C stops with one line."""
    try:
        yield
    except KeyboardInterrupt:
        Console(stderr=True).print(f"stopped; what is finished is kept, {then}", markup=False, soft_wrap=True)
        raise typer.Exit(130) from None


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit()):
        raise ValueError(f"--shard must read i/n, such as 0/4, got {text!r}")
    return int(index), int(count)


def main() -> None:
    """Run the command line. An error that the user can fix is printed on one line, with exit code 1."""
    try:
        app()
    except (ValueError, OSError) as error:
        said = " ".join(str(error).split())
        Console(stderr=True).print(f"error: {said}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
