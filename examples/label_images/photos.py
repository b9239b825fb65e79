"""Write photos without labels, from scikit-image: `python examples/label_images/photos.py FOLDER`.

FOLDER/photos will hold three pictures, and FOLDER/left and FOLDER/right a rectified stereo pair.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image


def main(folder: Path) -> None:
    from skimage import data

    left, right, _ = data.stereo_motorcycle()
    pictures = {f"photos/{name}": getattr(data, name)() for name in ("astronaut", "chelsea", "coffee")}
    for name, pixels in {**pictures, "left/motorcycle": left, "right/motorcycle": right}.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    print(f"written: {folder}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("name a folder: python examples/label_images/photos.py FOLDER")
    main(Path(sys.argv[1]))
