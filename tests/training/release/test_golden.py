"""training/release/golden.py: golden examples that reach each branch of the decode."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from contract.document import ImageSpec
from contract.image import decode
from tests.programs.photos import encode, flip_bit, photo
from training.errors import ExportError
from training.release.golden import MAX_PHOTO_BYTES, golden_images, telling_photos

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


def test_photos_that_are_gone_cost_no_training(tmp_path):
    """Of those that are left, the run keeps the ones that the model is least sure of."""
    paths = [tmp_path / str(number) for number in range(5)]
    for path in paths[1:]:
        path.write_text(path.name)
    probabilities = np.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7]])
    assert telling_photos(paths, probabilities) == [b"3", b"4", b"2"]


def test_large_photos_stay_out_and_examples_are_made_of_them():
    """A contract does not grow by photos of many megabytes, but contains what photos look like, not only drawings."""
    large = encode(photo(800, 600)) + bytes(MAX_PHOTO_BYTES)
    images, drawn = golden_images(SPEC, [large]), golden_images(SPEC)
    assert [each.name for each in images] == ["large-jpeg", "rotated-jpeg", "alpha-png"]
    expected = decode(large, SPEC).pixels.astype(int)
    assert np.abs(images[0].pixels - expected).mean() < 10 < np.abs(drawn[0].pixels - expected).mean()


@pytest.mark.parametrize(
    "photo",
    [
        Image.fromarray(np.linspace(0, 65535, 48 * 64, dtype=np.uint16).reshape(48, 64)),
        Image.merge("RGBA", [Image.new("L", (64, 48), 90)] * 3 + [Image.linear_gradient("L").resize((64, 48))]),
    ],
    ids=["16 bits", "alpha"],
)
def test_examples_show_photos_as_the_model_sees_them(photo):
    """Of 16 bits, not clipped to white; of transparent ones, not what their alpha hides."""
    large, *_, own = golden_images(SPEC, [encode(photo, "PNG")])
    assert own.pixels.std() > 30 and np.abs(large.pixels.astype(int) - own.pixels).mean() < 10


@pytest.mark.parametrize(("height", "width"), [(600, 600), (1600, 1600), (8, 3300)])
def test_examples_are_never_too_large_to_decode(height, width):
    """Neither of a very wide photo, nor for a model of large images."""
    images = golden_images(ImageSpec(height, width), [encode(photo(4000, 100))])
    assert [each.pixels.shape for each in images] == [(1, height, width, 3)] * 4
