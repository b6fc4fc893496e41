"""What a table of several runs says of who read the images, of their labels, of where each run cuts, and of where each
is evaluated while it samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..config import Config
from ..config.settings import SPLIT
from ..data.imageset import ImageSet
from .arms import levels_of, sampling_schedule, takes_over_above
from .classifier import Classifier


def reading_of(classifier: Classifier | None, held_out: ImageSet) -> str:
    """Who reads labels, and how well it reads these."""
    if classifier is None:
        return "No label tells the images apart, so that none is read."
    how = (
        f"It reads {classifier.accuracy(held_out):.1%} of the held-out images."
        if held_out.labels.any()
        else "How well it reads is not known, since no held-out image has a label."
    )
    return f"Labels are read by a classifier trained on half of the sites' training images. {how}"


def mix_of_labels(unmixed: Sequence[str], keeping: Sequence[str], classified: bool, untold: Sequence[str] = ()) -> str:
    """What the floor is, and whether all sides have one mix of labels. unmixed: sites whose floor lacks one; keeping:
    sites that keep theirs; classified: whether a classifier learned from training images too; untold: sites for which
    some arm does not show all that they hold."""
    unseen = ", which the classifier did not see" if classified else ""
    said = (
        f"The floor is as many real training images{unseen}: no arm can be expected to do better. Where each image has "
        "one label, all sides have the held-out images' mix of labels."
    )
    if unmixed:
        said += (
            f" Not so of {', '.join(unmixed)}, whose floor has too few images of a label: there real images have the "
            "labels that they have and a generator deals them out evenly, so that it may look worse than it is."
        )
    if keeping:
        said += (
            f" Not so of what is generated for {', '.join(keeping)}, which keeps its labels: none is asked for, so "
            "that images show what they happen to, and may look worse than they are."
        )
    if untold:
        said += (
            f" Not so of what is generated for {', '.join(untold)}, of whose labels the server was not told all: "
            "images show the others, and may look worse than they are."
        )
    return said


def cuts_of(config: Config) -> str:
    """Where each client cuts, and where it takes over if that is another level."""
    if config.method not in SPLIT:
        return f"none, since {config.method} has one model of the whole noise range"
    said = []
    for name in config.clients:
        (cut, _), later = levels_of(config, name), takes_over_above(config, name)
        said.append(f"{name} {cut:.3g}" + (f" (takes over at {later:.3g})" if later is not None else ""))
    return f"sigma {', '.join(said)}"


def other_levels(configs: Mapping[str, Config]) -> list[str]:
    """What is to be said of runs beside the main one, "", whose images are evaluated at other levels than its own."""
    walked = {name: [sampling_schedule(config, one) for one in configs[""].clients] for name, config in configs.items()}
    others = [name for name, schedules in walked.items() if schedules != walked[""]]
    if not others:
        return []
    return [
        f"{', '.join(others)}: sampled along other levels, or by another sampler, than this run, which can change "
        "figures by as much as a method does. To compare methods, give them one cut, handover and sampler."
    ]
