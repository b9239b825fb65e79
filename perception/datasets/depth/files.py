"""Read depth maps from the file formats in which data sets publish them.

These are `.npy`, `.npz`, grey PNG and TIFF, PGM, PFM (Middlebury), EXR (renderers), HDF5, and MATLAB (NYUv2's labelled
file).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageSequence, UnidentifiedImageError
from torch import Tensor

from perception.datasets.depth.code_files import is_code_file
from perception.datasets.listing import files_beneath
from perception.model.images import ImageError, has_deep_colours
from vqvae import VQVAEConfig
from vqvae.normalisation import depth_ranges

Meaning = Literal["depth", "inverse"]
MEANINGS: tuple[str, ...] = get_args(Meaning)
MILLIMETRES = 0.001
PRESETS: dict[str, tuple[float, float | None]] = {
    "nyu": (1 / 1000, None),
    "scannet": (1 / 1000, None),
    "7-scenes": (1 / 1000, 65535),
    "tum": (1 / 5000, None),
    "icl-nuim": (1 / 5000, None),
    "matterport3d": (1 / 4000, None),
    "kitti": (1 / 256, None),
    "vkitti": (1 / 100, None),
    "taskonomy": (1 / 512, 65535),
}
"""Metres per unit of the whole numbers of known data sets, and the value of their holes where it is not 0"""
_KEYS = ("depth", "depths", "Z", "Y", "R")
"""Usual names of a depth array, tried in order if a file holds several arrays and no key is given"""
_FARTHEST = 0.001
"""Least relative nearness, as a share of the map's largest without wild pixels, so that its inverse is finite"""
_RANGE = VQVAEConfig(normalisation="relative")
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I", "F")
"""Pillow's modes of more than 8 bits"""
_PLAUSIBLE = (0.1, 10.0)
"""Farthest depth in metres that 16-bit millimetres, the unit of indoor depth cameras, usually hold"""


@dataclass(frozen=True)
class DepthFormat:
    """How the numbers in a depth file are to be understood."""

    meaning: Meaning = "depth"
    """depth: larger is farther. inverse: disparity or inverse depth, larger is nearer. Without a scale these are
    relative nearness, as depth networks write it, and 0 is the farthest; with one they are measured disparity, and 0 is
    a hole"""
    scale: float | None = None
    """metres per unit; None for the preset's, else 0.001 in pictures of whole numbers (16 to 64 bits) and 1 elsewhere.
    For inverse values (the only ones that 8-bit pictures can hold) depth = scale / value"""
    key: str | None = None
    """name of the array to read, if a file holds several"""
    invalid: float | None = None
    """stored value that marks holes, such as 65535; NaN, negative values and, in depth, 0 are holes in any case"""
    max_depth: float | None = None
    """depth in metres beyond which pixels are holes; not for relative nearness"""
    preset: str | None = None
    """data set that gives the scale of whole numbers (pictures or arrays), and the value of their holes: nyu, scannet,
    7-scenes, tum, icl-nuim, matterport3d, kitti, vkitti or taskonomy. Floats are taken for metres with it too"""

    def __post_init__(self) -> None:
        if self.meaning not in MEANINGS:
            raise ValueError(f"unknown meaning {self.meaning!r}; known: {', '.join(MEANINGS)}")
        for name in ("scale", "max_depth"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"unknown preset {self.preset!r}; known: {', '.join(PRESETS)}")
        if self.preset is not None and (self.scale is not None or self.meaning == "inverse"):
            given = f"scale {self.scale}" if self.scale is not None else "meaning 'inverse'"
            raise ValueError(
                f"preset {self.preset!r} gives a scale of depth, and so does not go with {given}; drop one"
            )
        if self.max_depth is not None and not self.is_metric:
            raise ValueError(
                f"max_depth {self.max_depth:g} is in metres, and meaning 'inverse' without a scale gives none; give "
                "the scale, or drop max_depth"
            )

    @property
    def is_metric(self) -> bool:
        """True if depth is read in metres; false for relative nearness, whose depth is 1 / value."""
        return self.meaning == "depth" or self.scale is not None


class NotDepth(ValueError):
    """Error for a file that can be read but holds something else than depth; the message follows the file's name."""


def depth_files(path: Path, glob: str = "", but: Sequence[Path] = ()) -> list[Path]:
    """The file itself, or all depth files beneath a folder (see `files_beneath`), sorted by name; no files of codes.

    Raises:
        ValueError: if there are none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path} does not exist; give a depth file or a folder of them")
    found = [file for file in files_beneath(path, _READERS, glob, but) if not is_code_file(file)]
    if not found:
        raise ValueError(f"{path} holds no depth file; known endings: {', '.join(sorted(_READERS))}")
    return found


def read_depth(path: Path, meant: DepthFormat = DepthFormat()) -> Iterator[tuple[str, Tensor]]:
    """Yield (suffix, depth (H, W) float32) for every map of a file.

    Larger depth is farther; NaN and values up to 0 are holes. The suffix tells the maps of one file apart: ":0", ":1",
    .. for an array (N, H, W) or a picture of N pages, "" for a file of one map.

    Raises:
        ValueError: naming the file, if it is damaged, has an unknown ending, or holds no depth.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"{path}: unknown ending {path.suffix!r}; known: {', '.join(sorted(_READERS))}. Convert it, for example by "
            "np.save(name, depth)"
        )
    try:
        array, unit = reader(path, meant)
        maps = as_maps(array)  # (N, H, W)
    except NotDepth as error:
        raise ValueError(f"{path} {error}") from error
    except ImportError as error:
        raise ValueError(f"{path} needs the package {error.name}: pip install {error.name}") from error
    except Exception as error:  # a damaged file raises whatever its library's code meets: IndexError, struct.error, ..
        said = str(error) or type(error).__name__
        raise ValueError(f"{path} cannot be read as depth ({said}); fetch or write it again") from error
    for index, values in enumerate(maps):
        yield (f":{index}" if len(maps) > 1 else ""), to_depth(values, unit, meant)


def as_maps(array: NDArray[Any]) -> NDArray[Any]:
    """The maps (N, H, W) of an array (H, W) or (N, H, W), or of one with equal channels last or before (H, W).

    Raises:
        ValueError: for any other array.
    """
    held = f"holds {array.dtype} of shape {array.shape}"
    wanted = "depth must be numbers of shape (H, W), or (N, H, W) for several maps"
    if array.ndim not in (2, 3, 4) or 0 in array.shape or array.dtype.kind not in "fiu":
        raise NotDepth(f"{held}; {wanted}")
    if array.ndim == 2:
        return array[None]
    stacked = array if array.ndim == 4 else array[None]  # (N, H, W, C) or (N, C, H, W)
    if stacked.shape[3] == 1 or (stacked.shape[3] <= 4 < min(stacked.shape[1:3])):
        if (first := _equal(np.moveaxis(stacked, 3, 0))) is not None:
            return first
        raise NotDepth(f"{held}, whose channels differ; {wanted}: keep the channel of depth, array[..., 0] for example")
    if stacked.shape[1] in (1, 3) and (first := _equal(np.moveaxis(stacked, 1, 0))) is not None:
        return first
    if array.ndim == 4:
        raise NotDepth(f"{held}; {wanted}")
    return array


def _equal(channels: NDArray[Any]) -> NDArray[Any] | None:
    """The first of channels (C, ..) if all are equal, else None."""
    first = channels[0]
    is_float = first.dtype.kind == "f"
    return first if all(np.array_equal(first, other, equal_nan=is_float) for other in channels[1:]) else None


def to_depth(values: NDArray[Any], unit: float, meant: DepthFormat) -> Tensor:
    """Convert stored numbers (H, W) to depth (H, W) float32; `unit`, in metres, applies if the format has no scale."""
    scale, invalid = meant.scale, meant.invalid
    if meant.preset is not None and values.dtype.kind in "iu":
        scale, hole = PRESETS[meant.preset]
        invalid = hole if invalid is None else invalid
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and so a hole
        numbers = torch.from_numpy(np.array(values, dtype=np.float32))  # (H, W)
    if invalid is not None:
        numbers[torch.from_numpy(np.asarray(values == invalid))] = torch.nan
    if meant.meaning == "inverse":
        if scale is None:
            numbers = torch.where(numbers >= 0, numbers.clamp_min(_FARTHEST * _most(numbers)), torch.nan)
            scale = 1.0
        depth = torch.where(numbers > 0, scale / numbers, torch.nan)
    else:
        depth = numbers * (unit if scale is None else scale)
    return depth if meant.max_depth is None else torch.where(depth <= meant.max_depth, depth, torch.nan)


def _most(nearness: Tensor) -> float:
    """The largest nearness (H, W) that is no wild pixel (`vqvae.normalisation.depth_ranges`); 0 without a valid one."""
    valid = nearness.isfinite() & (nearness >= 0)
    if not bool(valid.any()):
        return 0.0
    # Where all but a few pixels are 0, these few are the map.
    return float(depth_ranges(nearness[None], valid[None], _RANGE)[0, 1]) or float(nearness[valid].max())


def scale_hint(path: Path, farthest: float, meant: DepthFormat) -> str | None:
    """What to say of a 16-bit picture whose depth, taken for millimetres, reaches `farthest` metres; None if nothing.

    Only pictures that are read by the default scale have such a hint. Others are for files that are named as disparity,
    and for floats, to which a preset does not apply.
    """
    chosen = (meant.scale, meant.preset, meant.invalid, meant.max_depth) != (None,) * 4
    if meant.meaning == "depth" and re.search(r"disp(arity)?$", path.stem, re.IGNORECASE):
        return f"{path} is read as depth, larger is farther; if it holds disparity, declare meaning 'inverse'"
    if meant.preset is not None and _READERS[path.suffix.lower()](path, meant)[0].dtype.kind == "f":
        return (
            f"{path} holds floats, which are taken for metres: preset {meant.preset!r} is for whole numbers; if they "
            "are not metres, give the scale instead"
        )
    if chosen or meant.meaning == "inverse" or path.suffix.lower() not in _PICTURES:
        return None
    values, unit = _READERS[path.suffix.lower()](path, meant)
    if unit != MILLIMETRES or _PLAUSIBLE[0] <= farthest <= _PLAUSIBLE[1]:
        return None
    if int(values.max()) == 65535:
        return f"{path} holds 65535, the largest 16-bit value, as 65.5 m; if it marks holes, give invalid 65535"
    return (
        f"{path} reaches {farthest:.3g} m if its numbers are millimetres; if they are not, give the scale, or a preset "
        f"({', '.join(PRESETS)})"
    )


def _numpy(path: Path, meant: DepthFormat) -> tuple[NDArray[Any], float]:
    return np.load(path, mmap_mode="r", allow_pickle=False), 1.0


def _numpy_archive(path: Path, meant: DepthFormat) -> tuple[NDArray[Any], float]:
    with np.load(path, allow_pickle=False) as archive:
        return archive[_choose(list(archive), meant.key)], 1.0


def _image(path: Path, meant: DepthFormat) -> tuple[NDArray[Any], float]:
    return picture_depth(path, meant)


def picture_depth(source: Path | BinaryIO, meant: DepthFormat) -> tuple[NDArray[Any], float]:
    """Values (H, W), or (N, H, W) of N pages, of a grey picture, and metres per unit.

    Raises:
        ValueError: for a picture with colours, pages of several sizes, too many pixels, or 8 bits that are meant to be
            depth.
    """
    try:
        with Image.open(source) as image:
            pages = [_grey(page, meant) for page in ImageSequence.Iterator(image)]
    except Image.DecompressionBombError as error:
        raise NotDepth(f"is too large a picture ({error}); scale it down with nearest neighbours") from error
    return _stacked(pages)


def _grey(image: Image.Image, meant: DepthFormat) -> NDArray[Any]:
    """Values (H, W) of a picture that is grey, whatever its mode. NaN where it is transparent."""
    if image.mode in _DEEP_MODES:
        return np.array(image)
    try:
        deep = has_deep_colours(image)
    except ImageError as error:
        raise NotDepth(str(error)) from error
    if deep:
        raise NotDepth(
            f"is a picture of mode {image.mode} with 16 bits per channel, of which 8 would be read; save one channel "
            "as 16-bit grey"
        )
    if image.mode == "1":
        raise NotDepth("is a picture of black and white alone, and holds no depth")
    colours = np.array(image.convert("RGBA"))  # (H, W, 4)
    values = _equal(np.moveaxis(colours[..., :3], 2, 0))
    if values is None:
        raise NotDepth(
            f"is a picture of mode {image.mode} with 8 bits per channel and colours that differ, and holds no depth; "
            "save depth as 16-bit grey"
        )
    if meant.meaning == "depth":
        raise NotDepth(
            f"is a picture of mode {image.mode}; its 8 bits can hold relative nearness (brighter is nearer), which "
            "meaning 'inverse' reads, but not depth: save depth as 16-bit grey"
        )
    transparent = colours[..., 3] == 0
    return np.where(transparent, np.float32(np.nan), values) if transparent.any() else values


def _stacked(pages: list[NDArray[Any]]) -> tuple[NDArray[Any], float]:
    """Pages (H, W) as one array (H, W), or (N, H, W) of several, and metres per unit."""
    kinds = dict.fromkeys(f"{page.shape[1]} x {page.shape[0]} {page.dtype}" for page in pages)
    if len(kinds) > 1:
        raise NotDepth(
            f"has {len(pages)} pages that differ in size or kind ({', '.join(kinds)}); write one map per file"
        )
    whole = pages[0].dtype.kind in "iu" and pages[0].dtype != np.uint8
    return pages[0] if len(pages) == 1 else np.stack(pages), MILLIMETRES if whole else 1.0


def _tiff(path: Path, meant: DepthFormat) -> tuple[NDArray[Any], float]:
    """Pillow's reading, or tifffile's of kinds that Pillow does not know, such as float16."""
    try:
        return picture_depth(path, meant)
    except UnidentifiedImageError as error:
        if path.read_bytes()[:2] not in (b"II", b"MM"):
            raise ValueError(f"no TIFF: {error}") from error
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            return _stacked([page.asarray() for page in file.pages])
    except (tifffile.TiffFileError, TypeError) as error:
        raise ValueError(str(error)) from error


def _header(file: BinaryIO, count: int) -> list[bytes]:
    """The next words of a netpbm file's header, without its comments, up to the one space behind the last."""
    words, word = list[bytes](), b""
    while len(words) < count:
        letter = file.read(1)
        if not letter:
            raise ValueError("its header is cut short")
        if letter == b"#":
            file.readline()
        if letter != b"#" and not letter.isspace():
            word += letter
        elif word:
            words.append(word)
            word = b""
    return words


def _pgm(path: Path, meant: DepthFormat) -> tuple[NDArray[Any], float]:
    """Read a grey map of up to 16 bits as its numbers are; Pillow would stretch them to the whole range."""
    with path.open("rb") as file:
        if (kind := file.read(2)) not in (b"P2", b"P5"):
            raise ValueError(f"not a grey PGM: it begins with {kind!r}")
        width, height, most = (int(word) for word in _header(file, 3))
        data = file.read()
    if most < 256 and meant.meaning == "depth":
        raise NotDepth(f"is a picture of {most + 1} greys, too few for depth; save depth as 16-bit grey")
    order = np.uint8 if most < 256 else np.dtype(">u2")
    values = np.array(data.split(), np.uint16) if kind == b"P2" else np.frombuffer(data, order)
    if len(values) != width * height:
        raise ValueError(f"the header announces {width} x {height} values, the file holds {len(values)}")
    return values.reshape(height, width), MILLIMETRES if most > 255 else 1.0


def _pfm(path: Path, meant: DepthFormat) -> tuple[NDArray[Any], float]:
    """Read a map stored from the bottom row up; a negative scale in the header means little-endian."""
    with path.open("rb") as file:
        if (kind := file.read(2)) not in (b"Pf", b"PF"):
            raise ValueError(f"not a PFM: it begins with {kind!r}")
        width, height, scale = (float(word) for word in _header(file, 3))
        data = file.read()
    shape = (int(height), int(width), 1 if kind == b"Pf" else 3)
    if len(data) != 4 * np.prod(shape):
        raise ValueError(f"the header announces {shape[1]} x {shape[0]} values, the file holds {len(data) // 4}")
    return np.frombuffer(data, "<f4" if scale < 0 else ">f4").reshape(shape)[::-1].astype(np.float32), 1.0


def _exr(path: Path, meant: DepthFormat) -> tuple[NDArray[Any], float]:
    import OpenEXR

    with OpenEXR.File(str(path), separate_channels=True) as file:
        channels: dict[str, NDArray[Any]] = {}
        for number, part in enumerate(file.parts):
            before = f"{part.name() or number}." if len(file.parts) > 1 else ""
            channels |= {before + name: channel.pixels for name, channel in part.channels.items()}
    name = _choose(list(channels), meant.key)
    others = [channels.get(name[:-1] + letter) for letter in "GB"] if meant.key is None and name[-1] == "R" else []
    if any(other is not None and not np.array_equal(channels[name], other, equal_nan=True) for other in others):
        raise NotDepth(
            f"holds colours ({', '.join(channels)}) and no depth; if one of them is depth, choose it by its key"
        )
    return channels[name], 1.0


def write_exr(path: Path, depth: NDArray[np.float32]) -> None:
    """Write depth (H, W) as the channel Z. Raises ValueError without OpenEXR."""
    try:
        import OpenEXR
    except ImportError as error:
        raise ValueError("EXR needs the package OpenEXR: pip install 'perception-tokens[readers]'") from error
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, {"Z": np.ascontiguousarray(depth)}) as file:
        file.write(str(path))


def _hdf5(path: Path, meant: DepthFormat) -> tuple[NDArray[Any], float]:
    import h5py

    names: list[str] = []

    def collect(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            names.append(name)

    with h5py.File(path, "r") as file:
        file.visititems(collect)
        array = file[_choose(names, meant.key)][()]
    # MATLAB stores columns first: its (H, W, N) is (N, W, H) in the file.
    return (np.swapaxes(array, -1, -2) if path.suffix.lower() == ".mat" and array.ndim > 1 else array), 1.0


def _matlab(path: Path, meant: DepthFormat) -> tuple[NDArray[Any], float]:
    """MATLAB 7.3 files are HDF5; SciPy reads older ones."""
    with path.open("rb") as file:
        start = file.read(516)
    if b"\x89HDF" in (start[:4], start[512:516]):
        return _hdf5(path, meant)
    from scipy.io import loadmat

    arrays: dict[str, NDArray[Any]] = {}

    def collect(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for inner, item in value.items():
                collect(f"{name}/{inner}" if name else inner, item)
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
            arrays[name] = value

    collect("", loadmat(path, simplify_cells=True))
    array = arrays[_choose(list(arrays), meant.key)]
    return (np.moveaxis(array, -1, 0) if array.ndim == 3 else array), 1.0  # (H, W, N) to (N, H, W)


def _choose(names: list[str], key: str | None) -> str:
    """The array named `key`, else the only array, else the first with a usual name for depth.

    Arrays inside groups or layers, such as "frame/depth" and "ViewLayer.Depth.Z", also go by their last word.
    """
    words = {name: re.split(r"[/.]", name) for name in names}
    if key is not None:
        wanted = [name for name in names if name == key] or [name for name in names if words[name][-1] == key]
    elif len(names) == 1:
        wanted = names
    else:
        usual = ([name for name in names if words[name][-1] in (k, k.capitalize(), k.upper())] for k in _KEYS)
        wanted = next(filter(None, usual), [name for name in names if "depth" in map(str.lower, words[name])])
    if len(wanted) != 1:
        found = f"{len(wanted)} arrays" if wanted else "no array"
        asked = (
            f"{found} called {key!r}" if key is not None else f"several arrays and {len(wanted) or 'none'} called depth"
        )
        raise ValueError(f"{asked}; it holds {', '.join(names) or 'none'}: choose one by its key")
    return wanted[0]


_Reader = Callable[[Path, DepthFormat], tuple[NDArray[Any], float]]
_READERS: dict[str, _Reader] = {
    ".npy": _numpy,
    ".npz": _numpy_archive,
    ".png": _image,
    ".tif": _tiff,
    ".tiff": _tiff,
    ".pgm": _pgm,
    ".pfm": _pfm,
    ".exr": _exr,
    ".mat": _matlab,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
}
_PICTURES = (".png", ".tif", ".tiff", ".pgm")
