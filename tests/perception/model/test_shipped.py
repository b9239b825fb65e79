"""What ships is found by its name: in a checkout, and in an installed package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from perception import cli
from perception.model.adapter import base_digest
from perception.model.folder import find_folder
from perception.model.shipped import find_shipped, shipped, shipped_name
from perception.tokenizers import DepthTokenizer

ROOT = Path(__file__).resolve().parents[3]


def test_a_checkout_finds_what_ships_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("aurora-tiny", "models/aurora-tiny"):
        assert find_folder(name) == ROOT / "models" / "aurora-tiny"
    assert find_folder("tokenizers/depth-scenes-100") == ROOT / "tokenizers" / "depth-scenes-100"
    assert find_shipped("tokenizers/aurora-tiny") is None and find_shipped("owner/aurora-tiny") is None
    assert shipped_name(ROOT / "models" / "tiny-base") == "tiny-base" and shipped_name(tmp_path) is None
    assert DepthTokenizer.from_pretrained("depth-scenes-100").num_codes == 100


def test_every_model_of_the_checkout_has_a_name() -> None:
    for kind in ("models", "tokenizers"):
        for folder in (ROOT / kind).iterdir():
            assert shipped(folder.name) == folder


def test_the_model_for_photographs_is_read_without_a_warning() -> None:
    code = (
        "from perception import PerceptionModel; print(PerceptionModel.from_pretrained('photo-tiny').taught_things[-1])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (found.stdout, found.stderr) == ("zebra\n", "")


def test_a_folder_of_one_s_own_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "aurora-tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_folder("aurora-tiny") == Path("aurora-tiny")


def test_unknown_names_are_answered_with_the_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"nothing called 'aurora' ships .*it has: depth-scenes-100, .*aurora-tiny"):
        shipped("aurora")
    with pytest.raises(
        ValueError, match="aurora does not exist; give the folder of a model, the name of one that ships"
    ):
        find_folder("aurora")
    result = CliRunner().invoke(cli.app, ["info", "--model", "aurora"])
    assert result.exit_code == 1 and "the name of one that ships" in str(result.exception)


def test_an_installed_package_finds_what_ships(tmp_path: Path) -> None:
    """Everything, where pyproject.toml puts it in a wheel; with a folder `models` of somebody else's beside it."""
    site = tmp_path / "site-packages"
    ignored = shutil.ignore_patterns("__pycache__")
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["only-include"] == ["vqvae", "perception", *wheel["sources"]]
    for package in ("perception", "vqvae"):
        shutil.copytree(ROOT / package, site / package, ignore=ignored)
    for kind, place in wheel["sources"].items():
        (site / place).symlink_to(ROOT / kind)
    (site / "models" / "aurora-tiny").mkdir(parents=True)
    (site / "models" / "aurora-tiny" / "config.json").write_text("{}")
    code = (
        "import json, sys; from perception import DepthTokenizer, MaskTokenizer, shipped;"
        "from perception.model.folder import find_folder; names = sys.argv[1:];"
        "assert DepthTokenizer.from_pretrained('depth-scenes-100').num_codes == 100;"
        "assert MaskTokenizer.from_pretrained('masks-scenes-16').num_codes == 20;"
        "print(json.dumps([[str(find_folder(name)), str(shipped(name.split('/')[-1]))] for name in names]))"
    )
    environment = os.environ | {"PYTHONPATH": str(site)}
    ships = [folder for kind in ("models", "tokenizers") for folder in (ROOT / kind).iterdir()]
    names = [*(folder.name for folder in ships), *(f"{folder.parent.name}/{folder.name}" for folder in ships)]
    command = [sys.executable, "-c", code, *names]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    inside = [str(site / "perception" / f"_{folder.parent.name}" / folder.name) for folder in ships]
    assert json.loads(done.stdout) == [[path] * 2 for path in 2 * inside]


def test_a_base_s_digest_is_of_its_own_weights(tmp_path: Path) -> None:
    """Whatever stands beside them, and however they are spread over files."""
    weights = {"a": torch.arange(6.0), "b": torch.ones(2)}
    save_file(weights, tmp_path / "model.safetensors")
    digest = base_digest(tmp_path)
    for name in ("draft_network.safetensors", "interleave.safetensors"):
        save_file({"c": torch.zeros(3)}, tmp_path / name)
    assert base_digest(tmp_path) == digest
    (tmp_path / "model.safetensors").unlink()
    for name, tensor in weights.items():
        save_file({name: tensor}, tmp_path / f"model-{name}.safetensors")
    listed = {name: f"model-{name}.safetensors" for name in weights}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    assert base_digest(tmp_path) == digest
