"""Published tokenizers, built from their descriptions with random weights and saved in their own layouts."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from perception import cli
from vqvae import VQVAE, VQVAEConfig
from vqvae.published import import_tokenizer

SIDE, CODES = 64, 24


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        convolutions = [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
        self.net = nn.Sequential(*convolutions, nn.ReLU(), nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + x


class Original(nn.Module):
    """AURORA's and AiT's VQVAE: five stride-2 4x4 convolutions, residual blocks, 1x1; the decoder mirrored."""

    def __init__(self, hidden: int = 2, dim: int = 12, blocks: int = 2, stages: int = 5):
        super().__init__()
        widths = [1, *(hidden * 2**n for n in range(stages))]
        down: list[nn.Module] = []
        for a, b in zip(widths, widths[1:], strict=False):
            down += [nn.Conv2d(a, b, 4, stride=2, padding=1), nn.ReLU()]
        wide = widths[-1]
        self.encoder = nn.Sequential(*down, *(Block(wide) for _ in range(blocks)), nn.Conv2d(wide, dim, 1))
        up: list[nn.Module] = [nn.ConvTranspose2d(wide, wide, 4, stride=2, padding=1), nn.ReLU()]
        for a, b in zip(widths[:1:-1], widths[-2:0:-1], strict=False):
            up += [nn.ConvTranspose2d(a, b, 4, stride=2, padding=1), nn.ReLU()]
        blocks_up = [Block(wide) for _ in range(blocks)]
        self.decoder = nn.Sequential(nn.Conv2d(dim, wide, 1), nn.ReLU(), *blocks_up, *up, nn.Conv2d(hidden, 1, 1))
        self._vq_vae = nn.Module()
        for name, shape in (("_embedding", (CODES, dim)), ("_ema_cluster_size", (CODES,)), ("_ema_w", (CODES, dim))):
            self._vq_vae.register_buffer(name, torch.rand(shape))

    def vectors(self, values: Tensor) -> Tensor:
        return self.encoder(values[:, None]).permute(0, 2, 3, 1)  # (B, h, w, D)

    def codes(self, values: Tensor) -> Tensor:
        z = self.vectors(values)
        return (z[..., None, :] - self._vq_vae._embedding).square().sum(-1).argmin(-1)

    def decode(self, codes: Tensor) -> Tensor:
        return self.decoder(self._vq_vae._embedding[codes].permute(0, 3, 1, 2))[:, 0]


def maps(count: int = 6) -> Tensor:
    """Smooth nearness (B, S, S) that fills [0, 1] in every map."""
    torch.manual_seed(1)
    coarse = torch.rand(count, 1, 5, 5)
    fine = nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic")[:, 0]
    low, high = fine.amin((1, 2), keepdim=True), fine.amax((1, 2), keepdim=True)
    return (fine - low) / (high - low)


@pytest.fixture(scope="module")
def original() -> Original:
    """With code vectors among the vectors of maps, so that many codes occur."""
    torch.manual_seed(0)
    made = Original().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2)
        vectors = made.vectors(2 * maps(8) - 1).flatten(0, 2)
        made._vq_vae._embedding.copy_(vectors[torch.randperm(len(vectors))[:CODES]])
    return made


VALUES = {  # what the original takes, from nearness; and depth in our convention of the same map
    "aurora": (lambda n: 2 * n - 1, lambda n: 1 / (0.2 + n)),
    "molmoact": (lambda n: n, lambda n: 1 / (0.2 + n)),
    "ait": (lambda n: 0.5 + 9 * (1 - n), lambda n: 0.5 + 9 * (1 - n)),
}


@pytest.mark.parametrize("name", VALUES)
@torch.no_grad()
def test_codes_and_maps_are_the_original_s(original: Original, tmp_path: Path, name: str) -> None:
    """From a checkpoint of a distributed training, after saving and loading the folder of ours."""
    nearness, (taken, depth) = maps(), VALUES[name]
    weights = OrderedDict((f"module.{key}", value) for key, value in original.state_dict().items())
    torch.save({"hparams": {"image_size": SIDE}, "weights": weights}, tmp_path / "vae-final.pt")
    call = ["import-tokenizer", tmp_path / "vae-final.pt", "--out", tmp_path / "ours", "--normalisation", name]
    result = CliRunner().invoke(cli.app, [*map(str, call), "--image-size", str(SIDE)], catch_exceptions=False)
    assert result.exit_code == 0 and "4 codes per map, of 24, from 64 x 64 pixels" in result.output
    ours = VQVAE.from_pretrained(tmp_path / "ours")
    assert (ours.config.downsample, ours.config.channels, ours.config.codebook_dim) == (32, 32, 12)
    expected = original.codes(taken(nearness))
    assert expected.unique().numel() > 3
    assert torch.equal(ours.encode(depth(nearness)), expected)
    decoded = original.decode(expected)
    as_nearness = {"aurora": (decoded + 1) / 2, "molmoact": decoded, "ait": 1 - decoded / 10}[name]
    assert torch.allclose(ours.decode(expected), as_nearness.clamp(0, 1), atol=1e-5)


@torch.no_grad()
def test_ait_sees_zero_in_holes(original: Original, tmp_path: Path) -> None:
    torch.save(original.state_dict(), tmp_path / "vae.pth")
    ours, depth = import_tokenizer(tmp_path / "vae.pth", "ait", SIDE), 0.5 + 9 * maps(2)
    depth[:, 8:40, 20:50] = 0
    assert torch.equal(ours.encode(depth), original.codes(depth))


def test_published_sizes_are_the_default(tmp_path: Path) -> None:
    """AURORA's own: 1-16-32-64-128-256, two blocks, 512 wide, K 128 and 7.7 M parameters; from safetensors, too."""
    big = Original(16, 512)
    big._vq_vae.register_buffer("_embedding", torch.rand(128, 512))
    big._vq_vae.register_buffer("_ema_w", torch.rand(128, 512))
    big._vq_vae.register_buffer("_ema_cluster_size", torch.rand(128))
    save_file(big.state_dict(), tmp_path / "vae.safetensors")
    for name, size in (("aurora", 320), ("molmoact", 320), ("ait", 480)):
        config = import_tokenizer(tmp_path / "vae.safetensors", name).config
        assert (config.image_size, config.downsample, config.codebook_size) == (size, 32, 128)


@pytest.mark.parametrize("channels", [1, 3])
@torch.no_grad()
def test_a_vqmodel_of_diffusers(tmp_path: Path, channels: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    sizes = {"block_out_channels": (8, 8, 16), "norm_num_groups": 4, "num_vq_embeddings": CODES, "sample_size": 32}
    made = diffusers.VQModel(in_channels=channels, out_channels=channels, latent_channels=4, **blocks, **sizes).eval()
    nearness = nn.functional.interpolate(maps()[:, None], (32, 32))[:, 0]
    low, high = nearness.amin((1, 2), keepdim=True), nearness.amax((1, 2), keepdim=True)
    nearness = (nearness - low) / (high - low)
    values = (2 * nearness - 1)[:, None].expand(-1, channels, -1, -1)
    z = made.encode(values).latents
    made.quantize.embedding.weight.copy_(z.permute(0, 2, 3, 1).flatten(0, 2)[torch.randperm(384)[:CODES]])
    made.save_pretrained(tmp_path / "theirs")
    import_tokenizer(tmp_path / "theirs", "aurora").save_pretrained(tmp_path / "ours")
    ours = VQVAE.from_pretrained(tmp_path / "ours")
    _, _, (_, _, expected) = made.quantize(z)
    expected = expected.view(6, 8, 8)
    assert expected.unique().numel() > 8 and torch.equal(ours.encode(1 / (0.2 + nearness)), expected)
    decoded = made.decode(z).sample.mean(1)
    assert torch.allclose(ours.decode(expected), ((decoded + 1) / 2).clamp(0, 1), atol=1e-5)


class Layer(nn.Module):
    """One of 4M's transformer layers, norms first."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (-1, 64)).transpose(1, 2) for part in self.attn.qkv(self.norm1(x)).chunk(3, -1))
        weights = (q @ k.mT / 8).softmax(-1)  # (B, heads, N, N), heads of 64 channels
        x = x + self.attn.proj((weights @ v).transpose(1, 2).flatten(2))
        return x + self.mlp.fc2(nn.functional.gelu(self.mlp.fc1(self.norm2(x))))


class FourM(nn.Module):
    """4M's tokenizer of depth: a vision transformer, an MLP of tanh, unit codes; the diffusion model is left out."""

    def __init__(self, width: int = 128, layers: int = 2, grid: int = 4, dim: int = 32):
        super().__init__()
        self.encoder, self.quantize = nn.Module(), nn.Module()
        self.encoder.pos_emb = nn.Parameter(torch.randn(1, width, grid, grid))
        self.encoder.proj = nn.Conv2d(1, width, 16, 16)
        self.encoder.blocks = nn.Sequential(*(Layer(width) for _ in range(layers)))
        self.encoder.norm_mlp, self.encoder.post_mlp = nn.LayerNorm(width, eps=1e-6), nn.Module()
        self.encoder.post_mlp.fc1, self.encoder.post_mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.quant_proj = nn.Conv2d(width, dim, 1)
        self.quantize._codebook = nn.Module()
        for name, shape in (("initted", (1,)), ("cluster_size", (CODES,)), ("embed", (CODES, dim))):
            self.quantize._codebook.register_buffer(name, torch.rand(shape))
        self.decoder = nn.Conv2d(1, 3, 3)  # stands for the tensors of the diffusion model

    def vectors(self, depth: Tensor) -> Tensor:
        """Vectors (B, h, w, D) of depth (B, S, S), standardised by the pixels without a tenth at either end."""
        values = []
        for one in depth:
            kept = one.flatten().sort().values
            kept = kept[int(0.1 * len(kept)) : int(0.9 * len(kept))]
            values.append((one - kept.mean()) / (kept.var() + 1e-6).sqrt())
        x = self.encoder.proj(torch.stack(values)[:, None])
        places = nn.functional.interpolate(self.encoder.pos_emb, x.shape[-2:], mode="bicubic", align_corners=False)
        y = self.encoder.blocks((x + places).flatten(2).mT)
        y = y + self.encoder.post_mlp.fc2(self.encoder.post_mlp.fc1(self.encoder.norm_mlp(y)).tanh())
        return self.quant_proj(y.mT.unflatten(2, x.shape[-2:])).permute(0, 2, 3, 1)

    def codes(self, depth: Tensor) -> Tensor:
        z, rows = (nn.functional.normalize(v, dim=-1) for v in (self.vectors(depth), self.quantize._codebook.embed))
        return (z @ rows.mT).argmax(-1)


@pytest.fixture(scope="module")
def four_m() -> FourM:
    """With code vectors among those of maps, of any length, so that many codes occur."""
    torch.manual_seed(0)
    made = FourM().eval()
    with torch.no_grad():
        vectors = made.vectors(maps(8)).flatten(0, 2)
        lengths = 0.2 + torch.rand(CODES, 1)
        made.quantize._codebook.embed.copy_(vectors[torch.randperm(len(vectors))[:CODES]] * lengths)
    return made


@pytest.mark.parametrize("side", [64, 128])
@torch.no_grad()
def test_4m_s_codes_are_the_original_s(four_m: FourM, tmp_path: Path, side: int) -> None:
    """At the size that its embedding of places has, and at another, to which the embedding is resized."""
    save_file(four_m.state_dict(), tmp_path / "depth.safetensors")
    call = ["import-tokenizer", tmp_path / "depth.safetensors", "--out", tmp_path / "ours", "--normalisation", "4m"]
    result = CliRunner().invoke(cli.app, [*map(str, call), "--image-size", str(side)], catch_exceptions=False)
    assert f"{(side // 16) ** 2} codes per map, of {CODES}, from {side} x {side} pixels" in result.output
    assert "it encodes only: 4M's decoder is a diffusion model" in result.output
    ours, depth = VQVAE.from_pretrained(tmp_path / "ours"), maps()
    depth = nn.functional.interpolate(depth[:, None], (side, side), mode="bilinear")[:, 0]
    low, high = depth.amin((1, 2), keepdim=True), depth.amax((1, 2), keepdim=True)
    depth = (depth - low) / (high - low)
    expected = four_m.codes(depth)
    assert expected.unique().numel() > CODES // 2
    assert torch.equal(ours.encode(2 + 7 * depth), expected), "in any unit, since maps are standardised"
    with pytest.raises(ValueError, match="no decoder: 4M's is a diffusion model, .* such as depth-scenes-100"):
        ours.decode(expected)


def test_4m_s_published_sizes_are_the_default(tmp_path: Path) -> None:
    """Of the sizes that are published alone, one layer of twelve."""
    big = FourM(768, 1, 14)
    big.quantize._codebook.register_buffer("embed", torch.randn(8192, 32))
    big.quantize._codebook.register_buffer("cluster_size", torch.rand(8192))
    save_file(big.state_dict(), tmp_path / "depth.safetensors")
    config = import_tokenizer(tmp_path / "depth.safetensors", "4m").config
    assert (config.image_size, config.num_codes, config.codebook_size, config.channels) == (224, 196, 8192, 768)


def test_an_encoder_alone_is_exported_alone(four_m: FourM, tmp_path: Path) -> None:
    from vqvae import export

    save_file(four_m.state_dict(), tmp_path / "depth.safetensors")
    ours, depth = import_tokenizer(tmp_path / "depth.safetensors", "4m", 64), 1 + maps(3)
    ((name, (program, _)),) = export._programs(ours).items()
    assert name == "encoder" and torch.equal(program.eval()(depth)[0], ours.encode(depth))


# Bad input


def refused(source: Path, said: str, name: str = "aurora", **settings: Any) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        import_tokenizer(source, name, **settings)
    assert "\n" not in str(caught.value)


def test_bad_files_are_named(original: Original, tmp_path: Path) -> None:
    file, state = tmp_path / "vae.pt", original.state_dict()
    torch.save(state, file)
    refused(file, "unknown normalisation 'metric'; known: aurora, molmoact, ait, 4m", "metric")
    refused(file, r"image_size \(100\) must be a multiple of downsample \(32\)", image_size=100)
    refused(tmp_path / "gone.pt", "gone.pt does not exist; give a .pt, .pth or .safetensors file")
    file.write_bytes(file.read_bytes()[:-500])
    refused(file, "vae.pt is cut short or no file of weights")
    torch.save({"epoch": 3}, file)
    refused(file, "vae.pt holds no state dict, got dict")
    refused(tmp_path, "has no readable config.json")
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    refused(tmp_path, r"must hold a VQModel of diffusers: .* got AutoencoderKL, and diff")


class Harmful:
    def __reduce__(self) -> Any:
        return print, ("run",)


def test_what_is_more_than_tensors_is_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weights": Harmful()}, tmp_path / "vae.pt")
    refused(tmp_path / "vae.pt", "vae.pt holds more than tensors .*save its state dict alone")
    assert "run" not in capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"encoder.10.net.1.running_mean": torch.zeros(32)},
            r"unknown architecture: 1 tensors differ .*net.1.running_mean",
        ),
        (
            {"encoder.0.weight": torch.zeros(2, 3, 4, 4)},
            r"encoder.layers.0.weight \(\(2, 3, 4, 4\), expected \(2, 1, 4, 4\)\)",
        ),
        ({"_vq_vae._embedding": None}, "and none of a codebook _vq_vae._embedding behind convolutions"),
    ],
)
def test_unknown_shapes_are_refused(original: Original, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    state = {name: value for name, value in (original.state_dict() | change).items() if value is not None}
    torch.save(state, tmp_path / "vae.pt")
    refused(tmp_path / "vae.pt", said)


def test_4m_s_and_others_are_not_taken_for_each_other(original: Original, four_m: FourM, tmp_path: Path) -> None:
    torch.save(original.state_dict(), tmp_path / "vae.pt")
    refused(tmp_path / "vae.pt", "vae.pt is no tokenizer of 4M's for depth: .* and not encoder.pos_emb", "4m")
    file, state = tmp_path / "4m.safetensors", four_m.state_dict()
    save_file(state, file)
    refused(file, "is a tokenizer of 4M's, which standardises depth; give the normalisation 4m")
    refused(file, r"image_size \(100\) must be a multiple of downsample \(16\)", "4m", image_size=100)
    save_file(state | {"encoder.proj.weight": torch.zeros(128, 3, 16, 16)}, file)  # of RGB
    refused(file, r"encoder.patches.weight \(\(128, 3, 16, 16\), expected \(128, 1, 16, 16\)\)", "4m")


def test_old_configs_are_read_and_bad_new_ones_refused(tmp_path: Path) -> None:
    for settings, said in (
        ({"network": "resnet"}, "unknown network 'resnet'; known: wide, convolutional, vqmodel"),
        ({"value_range": (0, 1)}, "go with published networks"),
        ({"network": "convolutional", "value_range": (1, 1)}, "value_range must be two different numbers"),
        ({"network": "convolutional", "nested": True}, "has a plain codebook"),
    ):
        with pytest.raises(ValueError, match=said):
            VQVAEConfig(**settings)  # type: ignore[arg-type]
    VQVAE(VQVAEConfig(image_size=16, channels=8, num_res_blocks=0)).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({n: v for n, v in values.items() if n not in ("network", "value_range", "vqmodel")})
    )
    assert VQVAE.from_pretrained(tmp_path).config.network == "wide"
    assert load_file(tmp_path / "model.safetensors").keys() == VQVAE.from_pretrained(tmp_path).state_dict().keys()


def test_an_unknown_tokenizer_ends_the_command_in_one_line(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    torch.save({"encoder.blocks.0.attn.qkv.weight": torch.zeros(3)}, tmp_path / "4m.pt")
    call = [
        "perception",
        "import-tokenizer",
        str(tmp_path / "4m.pt"),
        "--out",
        str(tmp_path / "o"),
        "--normalisation",
        "ait",
    ]
    monkeypatch.setattr("sys.argv", call)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.count("\n") == 1 and "4m.pt is of an unknown architecture" in said
    assert not (tmp_path / "o").exists()


def test_an_imported_tokenizer_is_one_of_ours(original: Original, tmp_path: Path) -> None:
    """In `perception tokenize`, and beside a vocabulary."""
    import numpy as np

    torch.save(original.state_dict(), tmp_path / "vae.pt")
    import_tokenizer(tmp_path / "vae.pt", "aurora", SIDE).save_pretrained(tmp_path / "ours")
    (tmp_path / "maps").mkdir()
    np.save(tmp_path / "maps" / "a.npy", (1 / (0.2 + maps(1)[0])).numpy())
    call = [
        "tokenize",
        str(tmp_path / "maps"),
        "--out",
        str(tmp_path / "codes.txt"),
        "--tokenizer",
        str(tmp_path / "ours"),
    ]
    assert CliRunner().invoke(cli.app, call, catch_exceptions=False).exit_code == 0
    assert len((tmp_path / "codes.txt").read_text()) > 0
