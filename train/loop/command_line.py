"""Command lines from frozen dataclasses and YAML.

`parse_config(Config, argv)` fills a dataclass from, in rising order: its defaults, a YAML file (`--config FILE`),
flags (`--field value`, nested `--loop.steps 100`). A field's help is the string right beneath it, or its
`metadata={"help": ...}`. What is not a field is refused with the list of what is.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import itertools
import shlex
import sys
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union

import yaml

Config = TypeVar("Config")
_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class ConfigError(ValueError):
    """A setting that is unknown or of the wrong type; the message names it and what would do."""


def parse_config(
    config_class: type[Config], argv: Sequence[str] | None = None, default_yaml: str | Path | None = None
) -> Config:
    """The configuration of a command line (`sys.argv` when `argv` is None).

    `default_yaml` is read where `--config` is not given. Bad settings end the program with status 2 and a message;
    `--help` prints every field with its type, default and meaning.
    """
    parser = _Parser(config_class)
    options, rest = parser.parse_known_args(sys.argv[1:] if argv is None else list(argv))
    if rest:
        parser.error(_unknown("argument", rest[0], parser.flags))
    flags = {name: value for name, value in vars(options).items() if name != "config"}
    file = options.config or default_yaml
    try:
        return build_config(config_class, read_yaml(file) if file else {}, flags)
    except (ConfigError, ValueError, TypeError) as error:
        parser.error(str(error))


def build_config(
    config_class: type[Config], values: Mapping[str, Any], flags: Mapping[str, Any] | None = None
) -> Config:
    """A config of nested `values` (as YAML gives them) and flat `flags` ({"loop.steps": "100"}), which win.

    Raises:
        ConfigError: for unknown keys, wrong types and missing values.
        ValueError: whatever the config's own checks refuse.
    """
    merged = _nested_copy(values)
    for name, value in (flags or {}).items():
        *parents, last = name.split(".")
        node = merged
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return _build(config_class, merged, "", dataclasses.MISSING)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"loop.steps": 100, ...} of a config: plain values, tuples as lists, so that JSON holds it."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{item.name}.")
        else:
            flat[prefix + item.name] = _plain(value)
    return flat


def fingerprint(config: Any, free: Sequence[str]) -> dict[str, Any]:
    """The settings of a recipe that decide what is trained: all but `free`, and but its loop's, which `fit` knows."""
    return {name: v for name, v in flatten(config).items() if name not in free and not name.startswith("loop.")}


def command_line(module: str, config: Any) -> str:
    """`python -m module --field value ...` that builds `config`: what differs from its class's defaults (all fields
    need one)."""
    defaults = flatten(type(config)())
    words = ["python", "-m", module]
    for name, value in flatten(config).items():
        if value != defaults[name]:
            words += [f"--{name}", *(shlex.quote(str(v)) for v in (value if isinstance(value, list) else [value]))]
    return " ".join(words)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping of a YAML file.

    Raises:
        ConfigError: when the file is missing, is no YAML or holds no mapping.
    """
    try:
        loaded = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"cannot read config file {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if loaded is not None and not isinstance(loaded, dict):
        raise ConfigError(f"{path} must hold `key: value` lines, got a {type(loaded).__name__}")
    return loaded or {}


def field_help(config_class: type) -> dict[str, str]:
    """Help of each field: `metadata["help"]`, else the string literal beneath the field in the source."""
    helps: dict[str, str] = {}
    for owner in reversed([c for c in config_class.__mro__ if dataclasses.is_dataclass(c)]):
        helps |= _literals_beneath(owner)
    for item in dataclasses.fields(config_class):
        helps.setdefault(item.name, "")
        helps[item.name] = item.metadata.get("help", helps[item.name])
    return helps


def _literals_beneath(config_class: type) -> dict[str, str]:
    helps: dict[str, str] = {}
    try:
        source = textwrap.dedent(inspect.getsource(config_class))
    except (OSError, TypeError):  # made at run time: no source to read
        source = "class _:\n    pass"
    body = typing.cast(ast.ClassDef, ast.parse(source).body[0]).body
    for above, below in itertools.pairwise(body):
        match above, below:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(value=ast.Constant(str(text))):
                helps[name] = " ".join(text.split())
    return helps


class _Parser(argparse.ArgumentParser):
    """One flag a leaf field. Values stay text here; `build_config` converts them as it does YAML's."""

    def __init__(self, config_class: type) -> None:
        super().__init__(
            usage="%(prog)s [--config FILE] [--field value ...]",
            description=textwrap.dedent(inspect.getdoc(config_class) or ""),
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.flags: list[str] = ["--config"]
        self.add_argument("--config", metavar="FILE", default=None, help="YAML file of settings; flags override it")
        self._add_fields(config_class, "", dataclasses.MISSING)

    def _add_fields(self, config_class: type, prefix: str, default: Any) -> None:
        helps = field_help(config_class)
        group = self.add_argument_group(prefix.rstrip(".") or "settings")
        for item in dataclasses.fields(config_class):
            kind = typing.get_type_hints(config_class)[item.name]
            value = _default(item, default)
            if dataclasses.is_dataclass(kind):
                self._add_fields(typing.cast(type, kind), f"{prefix}{item.name}.", value)
                continue
            shown = "required" if value is dataclasses.MISSING else f"default: {_plain(value)}"
            text = f"{helps[item.name]} ({_type_name(kind)}, {shown})".strip()
            items = _sequence_items(kind)
            settings: dict[str, Any] = {"metavar": _type_name(items[0] if items else kind).upper().replace(" ", "-")}
            if kind is bool:
                settings |= {"nargs": "?", "const": "true"}
            elif items:
                settings |= {"nargs": "*"}
            name = prefix + item.name
            group.add_argument(f"--{name}", dest=name, help=text.replace("%", "%%"), **settings)
            self.flags.append(f"--{name}")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _build(config_class: type[Config], values: Mapping[str, Any], prefix: str, default: Any) -> Config:
    items = {item.name: item for item in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    for name in values:
        if name not in items:
            raise ConfigError(_unknown("config key", f"{prefix}{name}", [prefix + known for known in items]))
    hints = typing.get_type_hints(config_class)
    built: dict[str, Any] = {}
    for name, item in items.items():
        kind, current = hints[name], _default(item, default)
        if dataclasses.is_dataclass(kind):
            nested = values.get(name, {})
            if not isinstance(nested, Mapping):
                raise ConfigError(f"{prefix}{name} must hold settings of its own, got {nested!r}")
            built[name] = _build(typing.cast(type, kind), nested, f"{prefix}{name}.", current)
        elif name in values:
            built[name] = convert(values[name], kind, prefix + name)
        elif current is dataclasses.MISSING:
            raise ConfigError(f"{prefix}{name} has no default; give --{prefix}{name} or set it in the config file")
        else:
            built[name] = current
    return config_class(**built)


def convert(value: Any, kind: Any, name: str) -> Any:
    """`value` (text of a flag, or what YAML made of it) as the type `kind`; ConfigError where it does not fit."""
    origin = typing.get_origin(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(value, kind, name)
    if origin is Literal:
        choices = typing.get_args(kind)
        for choice in choices:
            if value == choice or (isinstance(value, str) and value == str(choice)):
                return choice
        raise ConfigError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")
    item_kinds = _sequence_items(kind)
    if item_kinds is not None:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{name} must be a list, got {value!r}")
        if item_kinds[-1] is Ellipsis:
            item_kinds = (item_kinds[0],) * len(value)
        if len(item_kinds) != len(value):
            raise ConfigError(f"{name} must have {len(item_kinds)} values, got {len(value)}: {value!r}")
        return origin(convert(item, k, name) for item, k in zip(value, item_kinds, strict=True))
    return _convert_scalar(value, kind, name)


def _convert_scalar(value: Any, kind: Any, name: str) -> Any:
    wrong = ConfigError(f"{name} must be {_type_name(kind)}, got {value!r}")
    if kind is bool:
        if isinstance(value, str) and value.lower() in _BOOLS:
            return _BOOLS[value.lower()]
        if not isinstance(value, bool):
            raise wrong
        return value
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise wrong
    if kind is int and isinstance(value, float):
        raise wrong
    if kind in (int, float):  # YAML reads 1e-3 as text
        try:
            return kind(value)
        except ValueError:
            raise wrong from None
    if kind in (str, Path):
        return kind(str(value))
    raise TypeError(f"{name}: no command-line form for type {kind}; use a scalar, a tuple, a Literal or a dataclass")


def _convert_union(value: Any, kind: Any, name: str) -> Any:
    options = typing.get_args(kind)
    if type(None) in options and (value is None or (isinstance(value, str) and value.lower() in ("none", "null"))):
        return None
    for option in options:
        if option is not type(None):
            try:
                return convert(value, option, name)
            except ConfigError:
                pass
    raise ConfigError(f"{name} must be {_type_name(kind)}, got {value!r}")


def _sequence_items(kind: Any) -> tuple[Any, ...] | None:
    """Types of a tuple's or list's items, `(X, ...)` for any number of X; None where `kind` is neither."""
    origin, items = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return (items[0], Ellipsis)
    return items if origin is tuple else None


def _default(item: dataclasses.Field[Any], instance: Any) -> Any:
    """Default of a field: the parent's default instance where there is one, else the class's own; MISSING for none."""
    if instance is not dataclasses.MISSING:
        return getattr(instance, item.name)
    if isinstance(item.default_factory, dataclasses._MISSING_TYPE):
        return item.default
    return item.default_factory()


def _type_name(kind: Any) -> str:
    origin = typing.get_origin(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(option) for option in typing.get_args(kind))
    if origin is Literal:
        return "|".join(map(str, typing.get_args(kind)))
    items = _sequence_items(kind)
    if items is not None:
        return "list of " + _type_name(items[0]) if items[-1] is Ellipsis else " ".join(map(_type_name, items))
    return "none" if kind is type(None) else getattr(kind, "__name__", str(kind))


def _unknown(what: str, name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name.split("=")[0], known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"unknown {what} {name!r}; {hint}known: {', '.join(known)}"


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _nested_copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _nested_copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}
