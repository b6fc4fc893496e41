"""What stands at two sites: groups, equal images, near-duplicates; and what only looks as if it did."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from collafuse.data import overlaps as module
from collafuse.data.imageset import ImageSet, digests_of
from collafuse.data.overlaps import Overlap, describe, difference_hash, shrunk
from tests.tiny import image_set

SIDE = 32


def overlaps(sites: dict[str, ImageSet]) -> list[Overlap]:
    """Of sites with one part each."""
    return module.overlaps({name: [images] for name, images in sites.items()})


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    """Smooth random colour pictures, as different from each other as photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return [Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for one in coarse]


def held(images: list[Image.Image], prefix: str = "i") -> ImageSet:
    pixels = np.stack([np.asarray(image).transpose(2, 0, 1) for image in images])
    sources = np.asarray([f"{prefix}{row}" for row in range(len(pixels))])
    return ImageSet(pixels, np.zeros((len(pixels), 0), np.uint8), (), digests_of(pixels), sources)


def as_jpeg(image: Image.Image, quality: int = 85) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


CHANGES = {
    "compressed anew": as_jpeg,
    "made smaller and larger again": lambda i: i.resize((20, 20)).resize((SIDE, SIDE), Image.Resampling.BICUBIC),
    "a little brighter": lambda i: i.point(lambda level: min(255, level + 4)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_at_another_site_is_found(change):
    originals = pictures(40)
    copies = [CHANGES[change](originals[7]), CHANGES[change](originals[31])]
    found = overlaps({"a": held(originals), "b": held([*pictures(40, seed=1), *copies], "j")})
    assert found == [Overlap("near", ("a", "i7"), ("b", "j40")), Overlap("near", ("a", "i31"), ("b", "j41"))]


def test_different_pictures_are_no_near_duplicates():
    assert overlaps({name: held(pictures(500, seed)) for seed, name in enumerate("abc")}) == []


def test_a_copy_at_the_same_site_is_its_own_affair():
    originals = pictures(20)
    assert overlaps({"a": held([*originals, as_jpeg(originals[0]), originals[1]]), "b": held(pictures(20, 1))}) == []


def test_equal_images_are_found_once_at_each_other_site_whatever_their_size():
    images = image_set(6)
    found = overlaps({"a": images, "b": images.take(np.array([2, 2])), "c": images.take(np.array([2, 5]))})
    assert [(one.kind, one.first, one.second) for one in found] == [
        ("equal", ("a", "image 2"), ("b", "image 0")),
        ("equal", ("a", "image 2"), ("c", "image 0")),
        ("equal", ("a", "image 5"), ("c", "image 1")),
    ]


def test_what_one_site_trains_on_and_another_holds_out_is_found():
    images = image_set(6)
    some = [images.take(np.array(rows, dtype=np.int64)) for rows in ([0, 1], [2], [2, 3], [])]
    a, b = some[:2], some[2:]
    assert module.overlaps({"a": a, "b": b}) == [Overlap("equal", ("a", "image 0"), ("b", "image 0"))]


def test_an_equal_image_is_not_reported_as_a_near_one_again():
    originals = pictures(5)
    found = overlaps({"a": held(originals), "b": held([originals[3]], "j")})
    assert found == [Overlap("equal", ("a", "i3"), ("b", "j0"))]


def test_flat_images_are_alike_only_in_the_same_colour():
    flat = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("black", "white", "grey")]
    found = overlaps({"a": held(flat[:2]), "b": held([flat[2]], "j")})
    assert found == []


def test_small_images_are_compared_exactly_only():
    images = image_set(400, side=8)
    changed = replace(images, digests=np.flip(images.digests, axis=1))  # the same pictures under other digests
    assert overlaps({"a": images, "b": changed}) == []


def test_a_group_at_two_sites_is_found():
    a, b = image_set(4), image_set(4, seed=1)
    a, b = (
        replace(a, groups=np.array(["p1", "p2", "p2", "p3"])),
        replace(b, groups=np.array(["p4", "p2", "p4", "p3"])),
    )
    assert overlaps({"a": a, "b": b}) == [
        Overlap("group", ("a", "p2"), ("b", "p2")),
        Overlap("group", ("a", "p3"), ("b", "p3")),
    ]


def test_shrinking_takes_the_mean_of_equal_parts():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 16, 18), dtype=np.uint8)
    means = pixels.astype(np.float64).mean(axis=1).reshape(3, 8, 2, 9, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(shrunk(pixels), means, rtol=1e-5)
    uneven = shrunk(np.full((1, 1, 19, 31), 77, dtype=np.uint8))
    assert uneven.shape == (1, 8, 9) and (uneven == 77).all()


def test_the_hash_says_which_level_lies_below_its_right_neighbour():
    rising = np.tile(np.arange(9, dtype=np.float32), (1, 8, 1))
    assert difference_hash(rising)[0] == 2**64 - 1 and difference_hash(rising[:, :, ::-1])[0] == 0
    one = np.zeros((1, 8, 9), dtype=np.float32)
    one[0, 2, 3] = 1
    assert int(difference_hash(one)[0]).bit_count() == 1


def test_the_warning_counts_each_kind_and_names_one():
    found = [
        Overlap("group", ("a", "p2"), ("b", "p2")),
        Overlap("near", ("a", "x.png"), ("b", "y.png")),
        Overlap("near", ("a", "z.png"), ("b", "y.png")),
    ]
    assert describe(found) == (
        "warning: 1 groups stand at two sites, such as p2 at a and b; 2 near-duplicates stand at two sites, such as "
        "x.png at a, y.png at b."
    )
    assert describe([]) is None
