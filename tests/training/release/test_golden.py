"""training/release/golden.py: golden examples that reach each branch of the decode."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from contract.document import ImageSpec
from contract.image import decode
from tests.programs.photos import encode, flip_bit, photo
from training.errors import ExportError
from training.release.golden import MAX_PHOTO_BYTES, golden_images

SPEC = ImageSpec(48, 32, aspect="crop")


@pytest.fixture(params=["drawn", "photos"])
def photos(request):
    """No photos, so that examples are drawn, or two."""
    return [] if request.param == "drawn" else [encode(photo(seed=1)), encode(photo(seed=2), "PNG")]


def test_examples_reach_each_branch_of_the_decode(photos):
    """A JPEG of four times the target's sides, a JPEG that must be turned, and a PNG with alpha are there."""
    examples = {each.name: Image.open(BytesIO(each.image)) for each in golden_images(SPEC, photos)}
    large, rotated, layered = (examples[name] for name in ("large-jpeg", "rotated-jpeg", "alpha-png"))
    assert large.format == "JPEG" and large.width >= 4 * SPEC.width and large.height >= 4 * SPEC.height
    assert rotated.format == "JPEG" and rotated.getexif()[0x0112] == 6
    assert layered.format == "PNG" and layered.getchannel("A").getextrema() == (0, 255)


@pytest.mark.parametrize(
    "other",
    [{"filter": "nearest"}, {"aspect": "stretch"}, {"crop": 0.8}, {"aspect": "pad"}, {"orientation": "ignore"}],
)
def test_examples_tell_another_preprocessing(photos, other):
    """A decode that turns or resizes otherwise than the contract says changes the pixels of an example."""
    spec = ImageSpec(**{**vars(SPEC), **other})
    images = golden_images(SPEC, photos)
    assert max(np.abs(each.pixels[0].astype(int) - decode(each.image, spec).pixels).mean() for each in images) > 1


def test_a_corrupt_photo_is_refused():
    """A run's folder may contain a PNG that was trained on with black pixels, before they were refused."""
    with pytest.raises(ExportError, match="Photo 1 for golden examples does not decode"):
        golden_images(SPEC, [encode(photo()), flip_bit(encode(photo(), "PNG"))])


def test_large_photos_stay_out():
    """A contract does not grow by photos of many megabytes; without others, examples are drawn."""
    large = encode(photo()) + bytes(MAX_PHOTO_BYTES)
    assert [each.name for each in golden_images(SPEC, [large])] == ["large-jpeg", "rotated-jpeg", "alpha-png"]


@pytest.mark.parametrize(("height", "width"), [(600, 600), (1600, 1600), (8, 3300)])
def test_examples_are_never_too_large_to_decode(height, width):
    """Neither of a very wide photo, nor for a model of large images."""
    images = golden_images(ImageSpec(height, width), [encode(photo(4000, 100))])
    assert [each.pixels.shape for each in images] == [(1, height, width, 3)] * 4
