"""Images in all the forms in which people drop them on a page."""

import io

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


def encode(image, format="PNG", **options):
    """Return the content of an image file."""
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


def turned(image, orientation, format="JPEG", **options):
    """Return a file whose EXIF orientation turns the stored pixels."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, format, exif=exif, **options)


def image_files():
    """Return 24 image files by name: mixed sizes and formats, turned, transparent, gray, narrow, tiny."""
    flower, temple = (Image.fromarray(photo) for photo in reversed(load_sample_images().images))
    ramp = np.linspace(0, 255, 160 * 120).reshape(120, 160)
    alpha = Image.fromarray(ramp.astype(np.uint8)).resize(flower.size)
    transparent = flower.copy()
    transparent.putalpha(alpha)
    cut_out = flower.copy()
    cut_out.putalpha(alpha.point(lambda value: 255 * (value > 128)))
    palette = flower.resize((300, 200)).quantize(64)
    files = {
        "flower.jpg": encode(flower, "JPEG", quality=90),
        "temple.jpg": encode(temple, "JPEG", quality=75),
        "sharp_colors.jpg": encode(flower, "JPEG", quality=95, subsampling=0),
        "progressive.jpg": encode(temple, "JPEG", quality=80, progressive=True),
        "gray.jpg": encode(flower.convert("L"), "JPEG", quality=90),
        "temple.png": encode(temple),
        "gray.png": encode(temple.convert("L")),
        "gray_16_bits.png": encode(Image.fromarray((ramp * 257).astype(np.uint16))),
        "palette.png": encode(palette),
        "palette_transparent.png": encode(palette, transparency=3),
        "transparent.png": encode(transparent),
        "cut_out.png": encode(cut_out),
        "gray_transparent.png": encode(transparent.convert("LA")),
        "flower.webp": encode(flower, "WEBP", lossless=True),
        "turned.webp": turned(flower, 6, "WEBP", lossless=True),
        "turned.png": turned(flower.resize((200, 133)), 8, "PNG"),
        "wide.png": encode(flower.crop((0, 100, 640, 140))),
        "narrow.png": encode(flower.crop((100, 0, 108, 427))),
        "tiny.png": encode(flower.resize((5, 4))),
        "pixel.png": encode(Image.new("RGB", (1, 1), (200, 100, 50))),
        "animation.gif": encode(palette, "GIF", save_all=True, append_images=[palette.rotate(90)]),
    }
    files |= {
        f"turned_{i}.jpg": turned(temple.resize((321, 214)), i, quality=90) for i in (2, 3, 4, 5, 6, 7, 8)
    }
    return files
