"""Seeds by their place: run folders of years ago depend on them."""

from collafuse.learning.seeds import keyed_seed


def test_keyed_seeds_are_fixed_forever_and_tell_places_apart():
    assert keyed_seed(0, "step", 1) == 1052031682935541021
    assert len({keyed_seed(s, kind, n) for s in range(5) for kind in ("step", "epoch") for n in range(20)}) == 200
