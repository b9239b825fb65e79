"""Adapters saved by themselves, cards written from runs, and pushing to the hub."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import save_family
from tiny_records import ALL_KINDS, write_questions
from typer.testing import CliRunner

from perception import cli, push_to_hub
from perception.model.perception_model import PerceptionModel
from train import finetune
from train.data.records import SourcesConfig
from train.finetune import FinetuneConfig
from train.loop.config import LoopConfig
from train.models.adapters import LoraSettings
from train.models.card import describe_data
from vqvae import VQVAE, VQVAEConfig

pytest.importorskip("peft")
pytest.importorskip("accelerate")


def config_for(world: Path, out: Path, **changes: Any) -> FinetuneConfig:
    """One step of LoRA and new rows, saved as an adapter."""
    loop = LoopConfig(
        steps=1, learning_rate=3e-2, weight_decay=0.0, precision="fp32", num_workers=0, find_unused_parameters=True
    )
    settings: dict[str, Any] = {
        "base": str(world / "llava"), "depth_tokenizer": str(world / "depth"), "num_locations": 10,
        "data": SourcesConfig(own=(str(world / "questions.csv"),)), "out": str(out / "adapter"),
        "run_dir": str(out / "run"), "curriculum": ALL_KINDS, "batch_size": 4, "loop": loop,
        "lora": LoraSettings(4, 8), "train_rows": "new", "save": "adapter",
    }  # fmt: skip
    return FinetuneConfig(**(settings | changes))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    save_family("llava", folder / "llava")
    (folder / "llava" / "README.md").write_text("---\nlicense: llama2\n---\n\nA base.\n")
    torch.manual_seed(0)
    depth = VQVAEConfig(image_size=16, downsample=8, codebook_size=8, codebook_dim=4, channels=8)
    VQVAE(depth).save_pretrained(folder / "depth")
    write_questions(folder)
    return folder


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, with its adapter and, from the same checkpoint, the whole model."""
    out = tmp_path_factory.mktemp("trained")
    config = config_for(world, out)
    finetune.train(config)
    finetune.export(replace(config, save="model", export="checkpoint-1", out=str(out / "model")))
    return out


def copy(trained: Path, to: Path) -> Path:
    return Path(shutil.copytree(trained / "adapter", to / "adapter"))


# Adapters


@pytest.mark.parametrize(
    ("family", "rows"), [("llava", "new"), ("llava", "all"), ("qwen2_vl", "new"), ("qwen2_vl", "all")]
)
def test_an_adapter_on_its_base_is_the_whole_model(
    world: Path, trained: Path, tmp_path: Path, family: str, rows: str
) -> None:
    """Every weight is equal, with tied embeddings (Qwen2-VL) and untied ones; what is written holds no base."""
    out = trained
    if (family, rows) != ("llava", "new"):
        out = tmp_path
        save_family(family, tmp_path / family, tied=family != "llava")
        config = config_for(world, tmp_path, base=str(tmp_path / family), train_rows=rows)
        finetune.train(config)
        finetune.export(replace(config, save="model", export="checkpoint-1", out=str(tmp_path / "model")))
    one, whole = (PerceptionModel.from_pretrained(out / name) for name in ("adapter", "model"))
    mine, theirs = one.model.state_dict(), whole.model.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)
    assert one.vocabulary == whole.vocabulary and one.vocabulary.ids == whole.vocabulary.ids
    assert one.depth_tokenizer is not None and one.stop_ids == whole.stop_ids
    question = "How many cups are there?"
    assert one.ask(world / "0.png", question, max_new_tokens=20) == whole.ask(
        world / "0.png", question, max_new_tokens=20
    )
    held = load_file(out / "adapter" / "adapter_model.safetensors")
    assert not any("vision_tower" in name and "merger" not in name for name in held)
    assert any("lora_A" in name for name in held)
    if rows == "new":
        assert not any(name.endswith("embed_tokens.weight") for name in held), "the old rows stay in the base"


@pytest.mark.parametrize("stored", [torch.float16, torch.float32])
def test_a_whole_model_is_not_rounded_to_the_bits_of_its_training(
    world: Path, tmp_path: Path, stored: torch.dtype
) -> None:
    """LLaVA-1.5 is float16, and bfloat16 would take three bits of each weight, of the old rows and the tower too."""
    base = tmp_path / "base"
    save_family("llava", base)
    weights = {name: value.to(stored) for name, value in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    config = config_for(world, tmp_path, base=str(base), base_precision="bf16")
    finetune.train(config)
    finetune.export(replace(config, save="model", export="checkpoint-1", out=str(tmp_path / "model")))
    one, whole = (PerceptionModel.from_pretrained(tmp_path / name) for name in ("adapter", "model"))
    mine, theirs = one.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(mine[name].to(stored), theirs[name].to(stored)) for name in mine)
    written = load_file(tmp_path / "model" / "model.safetensors")
    assert {value.dtype for value in written.values()} == {stored}
    still = [name for name in weights if "vision_tower" in name or "embed_tokens" in name]
    assert len(still) > 2 and all(torch.equal(written[name][: len(weights[name])], weights[name]) for name in still)


def test_an_adapter_weighs_ends_as_its_base_does(world: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "llava", tmp_path / "base")
    settings = json.loads((tmp_path / "base" / "config.json").read_text()) | {"weighs_ends": True}
    (tmp_path / "base" / "config.json").write_text(json.dumps(settings))
    finetune.train(config_for(world, tmp_path, base=str(tmp_path / "base")))
    assert PerceptionModel.from_pretrained(tmp_path / "adapter").grammar.weighs_ends
    older = copy(trained, tmp_path / "older") / "perception_adapter.json"
    about = json.loads(older.read_text())
    assert about.pop("weighs_ends") is False
    older.write_text(json.dumps(about))
    assert not PerceptionModel.from_pretrained(older.parent).grammar.weighs_ends


def test_an_adapter_is_loaded_in_the_asked_precision(trained: Path) -> None:
    model = PerceptionModel.from_pretrained(trained / "adapter", dtype=torch.float16)
    assert {p.dtype for p in model.model.parameters()} == {torch.float16}


def test_an_adapter_finds_a_base_that_was_moved(world: Path, trained: Path, tmp_path: Path) -> None:
    folder = copy(trained, tmp_path)
    about = json.loads((folder / "perception_adapter.json").read_text())
    (folder / "perception_adapter.json").write_text(json.dumps(about | {"base": str(tmp_path / "gone")}))
    with pytest.raises(
        ValueError, match=r"adapter for .*gone, which was not found .*from_pretrained\(adapter, base=FOLDER\)"
    ):
        PerceptionModel.from_pretrained(folder)
    assert PerceptionModel.from_pretrained(folder, base=world / "llava").vocabulary.num_locations == 10


def test_another_base_is_refused(world: Path, trained: Path, tmp_path: Path) -> None:
    """One of the same shapes, too."""
    shutil.copytree(world / "llava", tmp_path / "other")
    path = tmp_path / "other" / "model.safetensors"
    weights = load_file(path)
    changed = weights[min(weights)].flatten()
    changed[0] += 1
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"adapter for .*llava, and .*other has other weights .*base=FOLDER"):
        PerceptionModel.from_pretrained(trained / "adapter", base=tmp_path / "other")
    with pytest.raises(ValueError, match=r"base goes with an adapter, and .*model is a whole model"):
        PerceptionModel.from_pretrained(trained / "model", base=tmp_path / "other")


def test_another_vocabulary_is_refused(trained: Path, tmp_path: Path) -> None:
    folder = copy(trained, tmp_path)
    file = folder / "perception_vocabulary.json"
    values = json.loads(file.read_text())
    moved = values["ids"] | {"<DEPTH_0>": values["ids"]["<DEPTH_1>"], "<DEPTH_1>": values["ids"]["<DEPTH_0>"]}
    file.write_text(json.dumps(values | {"ids": moved}))
    with pytest.raises(
        ValueError, match=r"perception_vocabulary.json does not fit the base: <DEPTH_0> is id \d+ there and \d+"
    ):
        PerceptionModel.from_pretrained(folder)


def test_an_adapter_on_a_base_with_another_vocabulary_is_refused(trained: Path, tmp_path: Path, world: Path) -> None:
    """Its digest aside, as for an adapter whose file was edited."""
    from perception.model.adapter import base_digest
    from perception.vocabulary.names import PerceptionVocabulary

    base, folder = tmp_path / "base", copy(trained, tmp_path)
    finetune.save(
        replace(config_for(world, tmp_path), save="model", out=str(base)),
        finetune.build_parts(config_for(world, tmp_path, num_locations=11), VQVAE.from_pretrained(world / "depth")),
        {},
    )
    assert PerceptionVocabulary.load(base).num_locations == 11
    about = json.loads((folder / "perception_adapter.json").read_text()) | {"base_digest": base_digest(base)}
    (folder / "perception_adapter.json").write_text(json.dumps(about))
    with pytest.raises(
        ValueError, match="perception_vocabulary.json does not fit the base: the model was extended with"
    ):
        PerceptionModel.from_pretrained(folder, base=base)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("perception_adapter.json", "perception_adapter.json is missing: .* is an adapter of peft without perception"),
        ("adapter_config.json", "not a whole adapter: adapter_config.json missing"),
        ("adapter_model.safetensors", "not a whole adapter: adapter_model.safetensors missing"),
        ("perception_vocabulary.json", "not a whole adapter: perception_vocabulary.json missing"),
    ],
)
def test_a_missing_file_is_named(trained: Path, tmp_path: Path, name: str, said: str) -> None:
    folder = copy(trained, tmp_path)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=said) as caught:
        PerceptionModel.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_broken_weights_are_refused(trained: Path, tmp_path: Path) -> None:
    """Cut short, or without one tensor."""
    folder = copy(trained, tmp_path)
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    weights.pop(next(name for name in weights if "lora_B" in name))
    save_file(weights, path)
    with pytest.raises(
        ValueError, match="adapter_model.safetensors does not match adapter_config.json: 1 tensors missing"
    ):
        PerceptionModel.from_pretrained(folder)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="adapter_model.safetensors is half written"):
        PerceptionModel.from_pretrained(folder)


def test_an_adapter_is_no_base(world: Path, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"is an adapter, and a whole model is needed here; write one: .*save_pretrained"
    ):
        finetune.train(config_for(world, tmp_path, base=str(trained / "adapter")))


@pytest.mark.parametrize("changes", [{"lora": LoraSettings(), "train_rows": "all"}, {"tower_lr_ratio": 0.1}])
def test_what_an_adapter_cannot_hold_is_refused_at_once(world: Path, tmp_path: Path, changes: Any) -> None:
    with pytest.raises(ValueError, match=r"an adapter holds LoRA and no vision tower, .*or save the model"):
        config_for(world, tmp_path, **changes)


def test_a_finished_run_started_again_keeps_its_adapter(world: Path, trained: Path) -> None:
    before = (trained / "adapter" / "training.json").stat().st_mtime_ns
    finetune.train(config_for(world, trained))
    assert (trained / "adapter" / "training.json").stat().st_mtime_ns == before


def test_info_on_an_adapter(trained: Path, world: Path) -> None:
    result = CliRunner().invoke(cli.app, ["info", "--model", str(trained / "adapter")], env={"COLUMNS": "300"})
    said = result.output
    assert result.exit_code == 0 and "adapter for" in said and "llava" in said and "location bins" in said


# Cards


def test_a_card_is_written_from_the_run(trained: Path) -> None:
    record = json.loads((trained / "adapter" / "training.json").read_text())
    card = huggingface_hub.ModelCard.load(trained / "adapter" / "README.md")
    assert card.data.license == "llama2" and card.data.library_name == "peft"
    assert card.data.pipeline_tag == "image-text-to-text"
    for said in (
        "| training steps | 1 |",
        f"| loss at the end, on training data | {record['final_loss']} |",
        f"| records | {record['records']} |",
        "own questions: questions.csv",
        "Nothing was measured on held-out data.",
        "The base's card states llama2",
    ):
        assert said in card.text
    assert str(trained.parent) not in card.text, "no folder of this machine"
    assert huggingface_hub.ModelCard.load(trained / "model" / "README.md").data.library_name == "transformers"


def test_a_card_names_hub_data_whole_and_of_paths_the_last_part(tmp_path: Path) -> None:
    own = (str(tmp_path / "mine.csv"), "secret/mine.jsonl")
    assert describe_data(SourcesConfig(own=own, dataset=("owner/name", str(tmp_path)))) == [
        "own questions: mine.csv, mine.jsonl",
        f"data set: owner/name, {tmp_path.name}",
    ]
    split = ("/data/blood/ImageSets/Main/train.txt", "ImageSets/Main/val.txt", "labels")
    assert describe_data(SourcesConfig(counts=split, counts_images="i")) == [
        "boxes of things: blood/train.txt, val.txt, labels"
    ]


def test_a_card_of_one_s_own_is_kept(world: Path, tmp_path: Path) -> None:
    """And a written one is written anew by the next run into the folder."""
    config = config_for(world, tmp_path)
    parts = finetune.build_parts(config, None if not config.depth_tokenizer else VQVAE.from_pretrained(world / "depth"))
    card = tmp_path / "adapter" / "README.md"
    for steps in (7, 8):
        finetune.save(config, parts, {"steps": steps, "evaluation": {"counts": 0.5}})
        assert f"| training steps | {steps} |" in card.read_text() and "| counts | 0.5 |" in card.read_text()
    card.write_text("# Mine\n")
    finetune.save(config, parts, {"steps": 9})
    assert card.read_text() == "# Mine\n"


# The hub


class Hub:
    """Stands for `HfApi`, and keeps what is uploaded."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def create_repo(self, repo_id: str, **settings: Any) -> Any:
        huggingface_hub.utils.validate_repo_id(repo_id)
        self.calls.append({"repo_id": repo_id, **settings})
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, **settings: Any) -> Any:
        self.calls.append(settings)
        return SimpleNamespace()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    return made


def test_folders_are_pushed(trained: Path, hub: Hub) -> None:
    assert push_to_hub(trained / "model", "me/whole") == "https://huggingface.co/me/whole"
    assert hub.calls[0] == {"repo_id": "me/whole", "private": False, "exist_ok": True}
    assert hub.calls[1]["repo_id"] == "me/whole" and Path(hub.calls[1]["folder_path"]) == trained / "model"


def test_an_adapter_for_a_local_base_is_not_pushed(trained: Path, tmp_path: Path, hub: Hub) -> None:
    """Wherever it lies, and though it is gone."""
    folder = copy(trained, tmp_path)
    about = json.loads((folder / "perception_adapter.json").read_text())
    shipped = Path(__file__).parents[2] / "models" / "tiny-base"
    for base in (about["base"], "/gone/base", "runs/own/model", "./base", "../base", "base", str(shipped)):
        (folder / "perception_adapter.json").write_text(json.dumps(about | {"base": base}))
        with pytest.raises(
            ValueError, match=r"for .*, a folder of this machine that others cannot load; push the base"
        ):
            push_to_hub(folder, "me/adapter")
    assert hub.calls == []
    for base in ("tiny-base", "models/tiny-base", "me/base"):
        (folder / "perception_adapter.json").write_text(json.dumps(about | {"base": base}))
        push_to_hub(folder, "me/adapter")
    hub.calls.clear()
    result = CliRunner().invoke(cli.app, ["push-to-hub", str(folder), "me/adapter", "--private"])
    assert result.exit_code == 0 and result.output.strip() == "https://huggingface.co/me/adapter"
    assert hub.calls[0]["private"] is True and Path(hub.calls[1]["folder_path"]) == folder


def test_what_cannot_be_pushed_is_refused_in_one_line(
    trained: Path, tmp_path: Path, monkeypatch: Any, hub: Hub
) -> None:
    with pytest.raises(ValueError, match="is no name on the hub .*give owner/name"):
        push_to_hub(trained / "model", "no spaces/please")
    with pytest.raises(ValueError, match="is not a finished perception model"):
        push_to_hub(tmp_path, "me/empty")
    monkeypatch.setattr(hub, "create_repo", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no\nroute")))
    with pytest.raises(ValueError, match="could not be pushed to me/x .*no route.*; log in with `hf auth login`"):
        push_to_hub(trained / "model", "me/x")
    shutil.copytree(trained / "model", tmp_path / "bare")
    (tmp_path / "bare" / "README.md").unlink()
    with pytest.raises(ValueError, match="has no README.md; write its card"):
        push_to_hub(tmp_path / "bare", "me/bare")
