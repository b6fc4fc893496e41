"""What a run's models give away of the images they were trained on: attacks that need no release."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edge_client.finisher import Finisher

from ..core.conditioning import Conditions
from ..core.errors import CollaFuseError, MismatchError
from ..core.noise import Cut
from ..data.imageset import ImageSet, x0_of
from ..learning.seeds import keyed_seed
from .attacks.membership import Denoise, Membership, levels_between, scores, together, told_apart
from .attacks.memorisation import Nearest, Repeated, nearest_images, repeated_noise
from .measured import some
from .whole_run import WholeRun, asked, conditions_of

MOST_MEMBERS = 500
FEWEST_OTHERS = 20
"""A site with fewer held-out images is not asked about membership."""
GENERATED = 256
LOWEST_ASKED = 0.02
"""The lowest level at which a client's denoiser is asked about members: 2.5 of 255 grey levels."""
HIGHEST_ASKED = 5.0


def memorised(
    run: WholeRun, name: str, images: ImageSet, held_out: ImageSet, seed: int, z: NDArray[np.floating] | None = None
) -> tuple[Nearest | None, Repeated | None]:
    """What the client's finished images, and the server's intermediates, repeat; None for what cannot be asked.

    z: the stored release of the images [N, C, H, W], row by row, where there is one.
    """
    if name not in run.models:
        return None, None
    delivered, finished = run.generate(name, GENERATED, seed)
    nearest, mirrored = None, run.config.data.horizontal_flip
    if len(held_out) >= FEWEST_OTHERS and len(images) > 1:
        generated = x0_of(finished.transpose(0, 3, 1, 2))
        nearest = nearest_images(generated, images.x0(), held_out.x0(), groups_of(images, held_out), mirrored)
    return nearest, None if z is None else repeated_noise(delivered, z, images.x0(), mirrored)


def memberships(run: WholeRun, seed: int, note: Callable[[str], None]) -> dict[str, Membership]:
    """How each model tells training images from held-out ones: the server's network, where it has one, each client's
    weights, and each bundle that lies in the run folder. ``note`` hears of what was not asked."""
    asked_about = [name for name, site in run.sites.items() if len(site.held_out) >= FEWEST_OTHERS]
    for name in (name for name in run.sites if name not in asked_about):
        note(f"{name} holds out fewer than {FEWEST_OTHERS} images, too few to ask about membership.")
    found: dict[str, Membership] = {}
    server = run.server_model
    if asked_about and server is not None:
        parts = []
        for name in asked_about:
            lowest = Cut(run.releases[name][0].sigma_cut).lowest_trained
            levels = levels_between(lowest, max(HIGHEST_ASKED, 2 * lowest))
            parts.append(attacked(run, name, asked(server, run.device), partial(run.told, name), levels, seed))
        found["server"] = together(parts)
    for name in (name for name in asked_about if name in run.models):
        model = run.models[name]
        levels = levels_between(LOWEST_ASKED, model.sigma_high)
        knows = partial(conditions_of, space=model.space)
        found[f"client {name}"] = attacked(run, name, asked(model, run.device), knows, levels, seed)
    for path in sorted(run.folder.path.glob("[!.]*.onnx")):  # a hidden file is one that was never finished
        try:
            finisher = Finisher.load(path)
            info = finisher.bundle.info
            if info.client in asked_about:
                _check_same_shape(info.image_shape, info.client, run.sites[info.client].train.image_shape)
                levels = levels_between(max(LOWEST_ASKED, info.sigma_min), info.sigma_max)
                knows = partial(conditions_of, space=info.space)
                found[f"bundle {path.name}"] = attacked(run, info.client, finisher.model, knows, levels, seed)
                if "autoguidance" in info.provenance:
                    note(
                        f"{path.name} holds two networks and was asked for what they make together (autoguidance); who "
                        f"takes it apart asks the trained one alone, as client {info.client} was."
                    )
        except CollaFuseError as error:
            note(f"{path.name} was not asked: {error}")
    return found


def _check_same_shape(found: tuple[int, int, int], client: str, expected: tuple[int, int, int]) -> None:
    """Raise MismatchError for a bundle of another run, which makes other images."""
    if found != expected:
        raise MismatchError(f"it makes images of {list(found)}, and those of {client} are {list(expected)}.")


def attacked(
    run: WholeRun,
    name: str,
    denoise: Denoise,
    knows: Callable[[ImageSet], Conditions],
    levels: list[float],
    seed: int,
) -> Membership:
    """How a site's training images are told from its held-out ones, under the same noise whichever model is asked.

    knows: what the model is told of images.
    """
    rng = np.random.default_rng(keyed_seed(seed, "membership", name))
    members, others = (part.take(some(len(part), MOST_MEMBERS, rng)) for part in run.sites[name].parts)
    both = np.concatenate([members.x0(), others.x0()])
    conditions = np.concatenate([knows(part) for part in (members, others)])
    found = scores(denoise, both, conditions, levels, rng)
    return told_apart(found[: len(members)], found[len(members) :], groups_of(members, others))


def groups_of(members: ImageSet, others: ImageSet) -> NDArray[np.str_] | None:
    """What each image belongs to, the others after the members; None where images belong to nothing."""
    if members.groups is None or others.groups is None:
        return None
    return np.concatenate([members.groups, others.groups])
