"""Whatever stands in a configuration, it is refused by name or resolved, and a resolved one reads back as itself."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from collafuse.config import from_mapping
from collafuse.config.loading import yaml_package
from collafuse.core.errors import ConfigError

NODE = {
    "network": {"channels": 8, "multipliers": [1], "blocks": 1, "attention": [4], "dropout": 0.1},
    "training": {"steps": 6, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 2, "seed": 1},
    "sampler": {"name": "dpmpp_2m", "steps": 4},
}
WHOLE: dict[str, Any] = {
    "name": "any",
    "data": {"dataset": "digits", "held_out": 0.2, "seed": 3},
    "server": NODE,
    "client": {**NODE, "share_labels": True},
    "clients": {
        "north": {"labels": ["0", "1"], "cut": {"sigma": 0.5}},
        "east": {"cut": {"t": 0.4, "schedule": "cosine"}},
    },
}


def places(values: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Where something stands, sections included."""
    found = []
    for key, value in values.items():
        found.append((*above, key))
        if isinstance(value, dict):
            found += places(value, (*above, key))
    return found


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["euler", "auto"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)


@given(st.lists(st.tuples(st.sampled_from(places(WHOLE)), VALUES), min_size=1, max_size=3))
def test_any_value_at_any_place_is_refused_or_resolved(changes):
    values = copy.deepcopy(WHOLE)
    for place, value in changes:
        section: Any = values
        for key in place[:-1]:
            section = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section[place[-1]] = value
    try:
        config = from_mapping(values)
    except ConfigError as error:
        assert str(error).endswith(".") or ":" in str(error)
        return
    assert from_mapping(yaml_package().safe_load(config.to_yaml())) == config


@given(st.dictionaries(st.text(max_size=12), VALUES, max_size=5))
def test_any_mapping_is_refused(values):
    try:
        from_mapping(values)
    except ConfigError:
        return
    raise AssertionError(f"{values} has neither data nor clients")
