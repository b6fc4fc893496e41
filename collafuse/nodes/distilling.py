"""A site's second client: distilled from its trained one, it finishes in one evaluation."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from ..config import ClientSettings, Config
from ..core.errors import MismatchError
from ..core.noise import SIGMA_MIN
from ..learning import weights
from ..learning.distillation import Distiller, Teacher
from ..learning.observer import Observer
from .client import Client, load_client
from .metrics import check_trackers
from .runfolder import NodeFolder
from .watching import NodeObserver


def distill(
    client: Client,
    teacher_folder: NodeFolder,
    folder: NodeFolder,
    device: torch.device,
    observer: Observer,
    *,
    resume: bool = False,
    overwrite: bool = False,
    trackers: Sequence[str] = (),
) -> weights.TrainedModel:
    """Train a client that finishes in one evaluation on what the trained one of ``teacher_folder`` makes in several.

    ``folder`` gets it, and a configuration of one step and no guidance of either kind, which it has learned.
    ``overwrite`` removes an older one, once nothing is left to refuse. Raises MismatchError where the configuration or
    the data fit another client than the trained one.
    """
    trained = load_client(teacher_folder, client.settings)
    _check_same_task(client, trained)
    _check_blank_known(client, teacher_folder.read_config().client(client.name))
    wanted, sampler = client.settings.distillation, client.settings.sampler
    teacher = Teacher(trained.denoiser, sampler.name, wanted.teacher_steps, sampler.sigma_low, sampler.guidance)
    start = f"distilled from {trained.id} by {sampler.name} in {wanted.teacher_steps} steps: {sampler.sigma_low:g}, "
    start += f"guidance {sampler.guidance:g}"
    settings = client.settings.training.model_copy(update={"steps": wanted.steps})
    once = Client(_in_one_step(client.config, client.name), client.name, client.site)
    student, data = copy.deepcopy(trained.learned).requires_grad_(True), once.training_data()

    def ready(step: int) -> None:
        folder.check_start(step, resume=resume)
        folder.write_config(once.config)

    check_trackers(trackers)
    if overwrite:
        folder.clear()
    watching = NodeObserver(folder.path, observer, trackers, lambda denoiser: once.sample_sheet(denoiser, device))
    try:
        distiller = Distiller(student, teacher, data, settings, folder.path, device, watching, start)
        student = distiller.run(resume, ready)
    finally:
        watching.close()
    model = weights.TrainedModel(student, "client", SIGMA_MIN, trained.sigma_high, distiller.step_kept)
    weights.save(folder.weights, model)
    return weights.load(folder.weights, "client")


def _check_same_task(client: Client, trained: weights.TrainedModel) -> None:
    """Raise MismatchError where the configuration and the data say otherwise than the trained client's weights: its
    student would be taught at levels, or under labels, that the teacher does not know."""
    for name, now, then in (
        ("level where it takes over", client.settings.handover_sigma, trained.sigma_high),
        ("image shape", client.config.data.image_shape, trained.denoiser.image_shape),
        ("labels and text", client.site.train.space, trained.space),
    ):
        if now != then:
            raise MismatchError(
                f"the trained client of {client.name} has another {name}: {then}, here it is {now}; restore what it "
                "was trained with, or train it again first."
            )


def _check_blank_known(client: Client, taught: ClientSettings) -> None:
    """Raise MismatchError where images without a condition would be taught by a teacher that never saw one: a bundle
    of its student would say that they were trained."""
    share = client.settings.training.label_dropout
    if share > 0 and taught.training.label_dropout == 0 and client.site.train.space.width > 1:
        raise MismatchError(
            f"the trained client of {client.name} was trained with label_dropout=0, never without a condition, here it "
            f"is {share:g}; set training.label_dropout to 0, or train it again first."
        )


def _in_one_step(config: Config, name: str) -> Config:
    """What a site writes beside its distilled client."""
    own = config.for_client(name)
    settings = own.client(name)
    sampler = settings.sampler.model_copy(update={"steps": 1, "guidance": 1.0, "autoguidance": 1.0})
    return own.model_copy(update={"clients": {name: settings.model_copy(update={"sampler": sampler})}})
