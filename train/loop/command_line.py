"""Command lines from frozen dataclasses and YAML, parsed by tyro.

`parse_config(Config, argv)` fills a dataclass from its defaults, a YAML file (`--config FILE`), and flags (`--field
value`, nested `--loop.steps 100`); later sources override earlier ones. The string below a field is its help text.
Unknown flags and unknown keys of the file are refused, and the error names the nearest known name.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import inspect
import io
import re
import shlex
import sys
import tempfile
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from train.loop.stopping import end_in_one_line

Config = TypeVar("Config")
_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_NONES = {"none": None, "null": None}
_RULES = ConstructorRegistry()
_OF_MODELS = {"config.json", "adapter_config.json", "training.json", "draft_network.safetensors"}
"""A folder with one of these files holds a model, which a new one may replace"""


def parse_config(config_class: type[Config], argv: Sequence[str] | None = None) -> Config:
    """Parse a command line (`sys.argv` if `argv` is None) into a configuration.

    A wrong setting ends the program with status 2 and prints one line that names it. `--help` prints the type, default
    and meaning of every field. If `argv` is None, Ctrl-C, a full disk and a ValueError end it with one line, too.
    """
    if argv is None:
        end_in_one_line()
    program = Path(sys.argv[0]).name
    parser = argparse.ArgumentParser(program, "%(prog)s [--config FILE] [--field value ...]", add_help=False)
    parser.add_argument("--config")
    options, flags = parser.parse_known_args(sys.argv[1:] if argv is None else list(argv))
    known = list(_names(config_class))
    try:
        given = _yaml_settings(options.config) if options.config else {}
        _refuse_unknown("config key", given, known)
        named = [word.removeprefix("--").split("=")[0] for word in flags if word.startswith("--") and word != "--help"]
        _refuse_unknown("flag", [name.replace("-", "_") for name in named], known, "--")
        words = [word for name, value in given.items() for word in _words(name, value)]
        config = _parsed(config_class, [*words, *flags], program)
        check_folders(getattr(config, "out", ""), getattr(config, "run_dir", ""))
        return config
    except ValueError as error:
        parser.exit(2, f"{program}: error: {error}\n")


def check_folders(out: str, run_dir: str) -> None:
    """Check, before anything is done, that a run can write its folders and that its result replaces nothing of others.

    A finished model takes the place of the whole folder `out`, so that folder must be new, empty, or a model's.

    Raises:
        ValueError: for a folder that cannot be written; for an `out` that holds something else, or the run itself.
    """
    for name, folder in (("out", out), ("run_dir", run_dir)):
        if folder:
            place = Path(folder).resolve()
            if place.exists() and not place.is_dir():
                raise ValueError(f"--{name} {folder} is a file; name a folder")
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=place if place.is_dir() else place.parent):
                    pass
            except OSError as error:
                raise ValueError(
                    f"--{name} {folder} cannot be written ({error.strerror}); name another folder"
                ) from None
    if not (out and run_dir):
        return
    place, run = Path(out).resolve(), Path(run_dir).resolve()
    if run.is_relative_to(place):
        raise ValueError(f"--out {out} would take the place of --run_dir {run_dir}; name another folder")
    held = sorted(entry.name for entry in place.iterdir()) if place.is_dir() else []
    if held and not set(held) & _OF_MODELS:
        named = ", ".join(held[:3]) + (", .." if len(held) > 3 else "")
        raise ValueError(f"--out {out} holds {named} and no model, and would be replaced by one; name a new folder")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten a config to {"loop.steps": 100, ...}. Tuples become lists, so that JSON can hold the values."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{item.name}.")
        else:
            flat[prefix + item.name] = list(value) if isinstance(value, tuple) else value
    return flat


def fingerprint(config: Any, free: Sequence[str]) -> dict[str, Any]:
    """Return the settings that decide what is trained: all except `free` and the loop's, which `fit` adds itself."""
    return {name: v for name, v in flatten(config).items() if name not in free and not name.startswith("loop.")}


def command_line(module: str, config: Any) -> str:
    """Return the command `python -m module --field value ...` that builds `config`.

    It lists only what differs from the defaults of the config's class, so every field needs a default.
    """
    defaults = flatten(type(config)())
    changed = {name: value for name, value in flatten(config).items() if value != defaults[name]}
    words = (word for name, value in changed.items() for word in _words(name, value))
    return shlex.join(["python", "-m", module, *words])


def _yaml_settings(path: str) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(Path(path).read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read config file {path}: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"config file {path} must hold `key: value` lines, got a {type(loaded).__name__}")

    def flat(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            nested = isinstance(value, dict)
            yield from flat(value, f"{prefix}{name}.") if nested else [(f"{prefix}{name}", value)]

    return dict(flat(loaded, ""))


def _names(config_class: type, prefix: str = "") -> Iterator[str]:
    kinds = typing.get_type_hints(config_class)
    for item in dataclasses.fields(config_class):
        kind = kinds[item.name]
        nested = dataclasses.is_dataclass(kind)
        yield from _names(typing.cast(type, kind), f"{prefix}{item.name}.") if nested else [prefix + item.name]


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, (list, tuple)):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", str(value)] if not str(value).startswith("-") else [f"--{name}={value}"]


def _refuse_unknown(what: str, names: Iterable[str], known: Sequence[str], dashes: str = "") -> None:
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"unknown {what} {dashes}{name}; did you mean {dashes}{close}? (--help lists all)")


def _parsed(config_class: type[Config], words: Sequence[str], program: str) -> Config:
    """Parse flags with tyro. Raises ValueError with the text of the error box that tyro draws."""
    about = f"{inspect.getdoc(config_class)}\n\n--config FILE reads settings from YAML; flags win over it."
    markers = (tyro.conf.FlagConversionOff, tyro.conf.HelptextFromCommentsOff)
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            return tyro.cli(
                config_class,
                prog=program,
                description=about,
                args=words,
                use_underscores=True,
                config=markers,
                registry=_RULES,
            )
    except SystemExit as stop:
        if stop.code != 2:
            raise
        text = re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯]", " ", said.getvalue())  # remove colours and the box's sides
        message = [*re.split("[─-]{3,}", text), text][1]  # between the line with the title and the next line
        raise ValueError(" ".join(message.split())) from None


@_RULES.primitive_rule
def _spelled(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Read `--on`, `--on true`, `--on no` and `none`, in upper or lower case."""
    if kind.type not in (bool, type(None)):
        return None
    spellings: Mapping[str, bool | None] = _BOOLS if kind.type is bool else _NONES

    def read(words: list[str]) -> bool | None:
        word = words[0].lower() if words else "true"
        if word not in spellings:
            raise ValueError(f"expected one of {', '.join(spellings)}, got {word!r}")
        return spellings[word]

    return PrimitiveConstructorSpec(
        nargs=(0, 1) if kind.type is bool else 1,
        metavar="{true,false}" if kind.type is bool else "none",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, kind.type),
        str_from_instance=lambda value: [str(value).lower()],
    )
