"""A client: it owns its clean images, releases each of them once (``releasing``), and trains the low-noise denoiser."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import ClientSettings
from ..core import rows
from ..core.conditioning import guided
from ..core.noise import SIGMA_MIN, client_sigmas
from ..core.pictures import Pixels, contact_sheet, side_by_side, to_uint8
from ..core.samplers import STEPS, History, run
from ..data.dealing import group_numbers
from ..learning import weights
from ..learning.autoguidance import AutoGuided
from ..learning.denoiser import Denoiser
from ..learning.examples import TrainingData
from ..learning.observer import Observer
from ..learning.seeds import keyed_seed
from ..learning.training import Trainer, fresh_denoiser
from .metrics import check_trackers
from .releasing import Releaser
from .runfolder import NodeFolder
from .watching import NodeObserver

SHEET_IMAGES = 16


class Client(Releaser):
    """One site. Everything it sees is its own: its data, its settings, its folder."""

    def training_data(self) -> TrainingData:
        """Its clean images with their labels and text, trained from SIGMA_MIN up to where it takes over."""
        images = self.site.train
        return TrainingData(
            images=images.pixels if isinstance(images.pixels, rows.FileRows) else torch.from_numpy(images.pixels),
            conditions=torch.from_numpy(images.conditions()),
            sigma_floor=torch.zeros(len(images)),
            sigma_high=self.settings.handover_sigma,
            horizontal_flip=self.config.data.horizontal_flip,
            groups=torch.from_numpy(group_numbers(images)),
        )

    def train(
        self,
        folder: NodeFolder,
        device: torch.device,
        observer: Observer,
        *,
        resume: bool = False,
        overwrite: bool = False,
        init: weights.TrainedModel | None = None,
        trackers: Sequence[str] = (),
    ) -> weights.TrainedModel:
        """Train the low-noise denoiser and write its weights; returns them as its sampler evaluates them. ``init`` is a
        server's model to start from.

        ``overwrite`` removes an older training, once nothing is left to refuse.
        """
        data, settings, autoguidance = self.training_data(), self.settings.training, self.settings.sampler.autoguidance
        if (warning := self._blank_warning()) is not None:
            observer.note(f"warning: {warning}")
        space, shape = self.site.train.space, self.config.data.image_shape
        denoiser = fresh_denoiser(self.settings.network, shape, space, data, settings, self.name)
        if init is not None:
            weights.warm_start(denoiser, init)

        def ready(step: int) -> None:
            folder.check_start(step, resume=resume)
            trainer.early_weights.check(step, autoguidance)
            # Not before a resume is accepted: the configuration must stay that of the weights that lie there.
            folder.write_config(self.config.for_client(self.name))
            folder.write_split(self.site)

        check_trackers(trackers)
        if overwrite:
            folder.clear()
        watching = NodeObserver(folder.path, observer, trackers, lambda d: self.sample_sheet(d, device))
        try:
            start = f"weights {init.id}" if init is not None else "fresh"
            trainer = Trainer(denoiser, data, settings, folder.path, device, watching, start)
            trained = trainer.run(resume, ready)
        finally:
            watching.close()
        done = (SIGMA_MIN, data.sigma_high, trainer.step_kept)
        weights.save(folder.weights, weights.TrainedModel(trained, "client", *done, early=trainer.early))
        return weights.load_trained(folder.weights, "client", autoguidance, observer)

    def _blank_warning(self) -> str | None:
        """What to say where devices are sent images without a condition and none is trained; None where all is well."""
        images, settings = self.site.train, self.settings
        kept = [
            ("labels", settings.share_labels or not images.label_names),
            ("text", settings.share_text or not images.text),
        ]
        named = " and ".join(name for name, shared in kept if not shared)
        if not named or settings.training.label_dropout > 0:
            return None
        return (
            f"{self.name} keeps its {named} from the server, so images are finished without unless a device chooses "
            f"them, and clients.{self.name}.training.label_dropout=0 never trains that; set it above 0, such as 0.1."
        )

    def sample_sheet(self, denoiser: Denoiser, device: torch.device) -> Pixels:
        """Some of its own images, noised to where it takes over, beside what the denoiser makes of them."""
        count = len(self.site.train)
        images = self.site.train.take(np.linspace(0, count - 1, min(SHEET_IMAGES, count)).astype(np.int64))
        generator = torch.Generator().manual_seed(keyed_seed(self.settings.training.seed, "sheet"))
        noise = torch.randn(images.pixels.shape, generator=generator)
        x = torch.from_numpy(images.x0()) + self.settings.handover_sigma * noise
        finished = finish(denoiser, x, self.settings.handover_sigma, images.conditions(), self.settings, device)
        clean = np.asarray(images.pixels).transpose(0, 2, 3, 1)
        return contact_sheet(side_by_side(clean, to_uint8(x.numpy()), to_uint8(finished.numpy())))


def load_client(folder: NodeFolder, settings: ClientSettings) -> weights.TrainedModel:
    """A trained client as its sampler evaluates it. Raises FileFormatError when it is not trained or damaged, and
    MismatchError where it is to be guided by an earlier version and has none."""
    return weights.load_sampling(folder.weights, "client", settings.sampler.autoguidance)


@torch.inference_mode()
def finish(
    denoiser: Denoiser | AutoGuided,
    x: Tensor,
    sigma: float,
    conditions: NDArray[np.float32],
    settings: ClientSettings,
    device: torch.device,
    history: History | None = None,
) -> Tensor:
    """The client's half of the sampler in torch: x [N, C, H, W] at sigma to images in [-1, 1], on the CPU.

    history: the server's last step, where it travelled; a multistep sampler goes on from it, as on a device.
    """
    sampler, state = settings.sampler, None
    if history is not None and sampler.name == "dpmpp_2m":
        state = History(torch.from_numpy(history.x0_hat).to(device), history.sigma)
    denoise = guided(denoiser.to(device), torch.from_numpy(conditions).to(device), sampler.guidance)
    sigmas = client_sigmas(sigma, sampler.steps, sampler.sigma_low)
    return run(STEPS[sampler.name], denoise, x.to(device), sigmas, state)[0].cpu()


def finish_all(
    denoiser: Denoiser | AutoGuided,
    x: NDArray[np.floating],
    sigma: float,
    conditions: NDArray[np.float32],
    settings: ClientSettings,
    device: torch.device,
    batch_size: int = 256,
    history: History | None = None,
) -> Pixels:
    """As :func:`finish`, a batch at a time: x [N, C, H, W] at sigma to uint8 [N, H, W, C]."""
    parts = []
    for start in range(0, len(x), batch_size):
        of = slice(start, start + batch_size)
        before = None if history is None else History(history.x0_hat[of], history.sigma)
        some = torch.from_numpy(x[of]).float()
        parts.append(finish(denoiser, some, sigma, conditions[of], settings, device, before))
    return to_uint8(torch.cat(parts).numpy())
