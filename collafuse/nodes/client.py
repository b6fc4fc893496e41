"""A client: it owns its clean images, releases each of them once, and trains the low-noise denoiser."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import ClientSettings, Config
from ..core import release as releases
from ..core import rows
from ..core.atomic import storage_error
from ..core.conditioning import guided
from ..core.errors import DataError, FileFormatError
from ..core.moments import default_coefficients
from ..core.noise import SIGMA_MIN, client_sigmas, system_noise, system_order
from ..core.pictures import Pixels, contact_sheet, side_by_side, to_uint8
from ..core.samplers import STEPS, History, run
from ..core.statistics import Statement, Statistics, to_bytes
from ..core.statistics import read as read_statistics
from ..data.dealing import SiteData
from ..data.imageset import ImageSet
from ..learning import weights
from ..learning.denoiser import Denoiser
from ..learning.examples import TrainingData
from ..learning.observer import Observer
from ..learning.seeds import keyed_seed
from ..learning.training import Trainer, fresh_denoiser
from .ledger import Ledger
from .metrics import check_trackers
from .runfolder import NodeFolder
from .summary import summarise
from .watching import NodeObserver

SHEET_IMAGES = 16
BLOCK_VALUES = 1 << 22
"""Pixel values noised at a time: some 200 MB of memory."""


class Client:
    """One site. Everything it sees is its own: its data, its settings, its folder."""

    def __init__(self, config: Config, name: str, site: SiteData) -> None:
        self.config = config
        self.name = name
        self.site = site
        self.settings: ClientSettings = config.client(name)

    def release(
        self,
        path: Path,
        ledger: Ledger,
        *,
        simulated: bool,
        new_only: bool = False,
        spend_again: bool = False,
        overwrite: bool = False,
        advance: Callable[[int], None] = lambda count: None,
    ) -> releases.Release:
        """Noise each training image once, with the operating system's randomness, and write the release file.

        The ledger records every image first. Images that are equal pixel by pixel are released once. Rows stand in a
        random order: files are read label by label, and slices of one patient one after the other, which is nobody
        else's business. Those of a simulation stay in the order of the images, so that an audit knows which is of
        which. A release that was interrupted after it was recorded is completed instead of drawn again. ``new_only``
        leaves out what was released before. ``advance`` hears of each block of images that was noised. Raises
        RefusedError when an image was released before, unless ``new_only`` or ``spend_again``, or when nothing is new.
        """
        if ledger.recover(path, overwrite=overwrite):
            return releases.read(path)
        images = self._to_release(ledger, new_only=new_only, spend_again=spend_again)
        if not simulated:
            images = images.take(system_order(len(images)))

        def blocks() -> Iterator[NDArray[np.float32]]:
            values = math.prod(images.pixels.shape)
            for block in np.array_split(np.arange(len(images)), math.ceil(values / BLOCK_VALUES)):
                yield images.take(block).x0()
                advance(len(block))

        with _scratch(path, images) as scratch:
            made = releases.make(
                blocks(),
                self.settings.cut.resolve(),
                system_noise,
                labels=images.labels if self.settings.share_labels else None,
                label_names=images.label_names,
                simulated=simulated,
                text=images.text if self.settings.share_text else None,
                scratch=scratch,
            )

        def write(file: IO[bytes]) -> None:
            file.writelines(releases.pieces(made))
            file.flush()
            try:
                releases.read(Path(file.name))
            except FileFormatError as error:  # nothing is spent on a file that no server would read
                reason = str(error).replace(file.name, str(path))
                raise DataError(f"no release was made, since a server would refuse it: {reason}") from error

        ledger.commit(images.digests, made.sigma_cut, path, write, spend_again=spend_again, overwrite=overwrite)
        return made

    def release_statistics(
        self,
        path: Path,
        ledger: Ledger,
        *,
        simulated: bool,
        new_only: bool = False,
        spend_again: bool = False,
        overwrite: bool = False,
        advance: Callable[[int], None] = lambda count: None,
    ) -> Statistics:
        """Write the moments of the training images in place of the images; noised for the site's budget, if it has one.

        The ledger counts each image in it as released, with the rules of :meth:`release`. Labels that the site keeps
        make one Gaussian of all images. Raises RefusedError for a label with fewer than MIN_IMAGES images where no
        noise hides them, for images with several labels or none, since statistics are of one label each, and with a
        budget for labels that the configuration does not list. Then a label whose noised count lies below MIN_IMAGES is
        left out.
        """
        if ledger.recover(path, overwrite=overwrite):
            return read_statistics(path)
        images = self._to_release(ledger, new_only=new_only, spend_again=spend_again)
        settings = self.settings.statistics
        shape = self.config.data.image_shape
        about = Statement(
            shape,
            settings.coefficients or default_coefficients(shape),
            settings.budget,
            settings.clip if settings.budget is not None else None,
        )
        made = summarise(
            images,
            about,
            share_labels=self.settings.share_labels,
            simulated=simulated,
            labels_listed=isinstance(self.settings.labels, tuple),
            advance=advance,
        )
        data = to_bytes(made)
        ledger.commit(
            images.digests,
            0.0,
            path,
            lambda file: file.write(data),
            statistics=True,
            budget=about.budget,
            spend_again=spend_again,
            overwrite=overwrite,
        )
        return made

    def _to_release(self, ledger: Ledger, *, new_only: bool, spend_again: bool) -> ImageSet:
        """The training images to release, each once. Looked up before any noise is drawn, to answer at once; the
        ledger looks again under its lock."""
        images = self.site.train
        _, first = np.unique(images.digests, axis=0, return_index=True)
        images = images.take(np.sort(first))
        if spend_again:
            return images
        spent = ledger.spent(images.digests)
        if spent.all() or (spent.any() and not new_only):
            raise ledger.refusal(int(spent.sum()), len(images))
        return images.take(np.flatnonzero(~spent))

    def shared_digest(self) -> str:
        """A digest of what the site shares of its training images beside their pixels, whatever order they stand in:
        labels and captions, with the encoder that makes numbers of these."""
        images, settings = self.site.train, self.settings
        told = [images.text.space.encoder] if images.text is not None and settings.share_text else []
        for row, digest in enumerate(images.digests):
            labels = [images.label_names[k] for k in np.flatnonzero(images.labels[row])]
            caption = "" if images.captions is None else images.captions[row]
            shared = (sorted(labels) if settings.share_labels else [], caption if settings.share_text else "")
            told.append(json.dumps((digest.tobytes().hex(), *shared)))
        return hashlib.sha256("\n".join(sorted(told)).encode()).hexdigest()

    def training_data(self) -> TrainingData:
        """Its clean images with their labels and text, trained from SIGMA_MIN up to where it takes over."""
        images = self.site.train
        return TrainingData(
            images=images.pixels if isinstance(images.pixels, rows.FileRows) else torch.from_numpy(images.pixels),
            conditions=torch.from_numpy(images.conditions()),
            sigma_floor=torch.zeros(len(images)),
            sigma_high=self.settings.handover_sigma,
            horizontal_flip=self.config.data.horizontal_flip,
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
        """Train the low-noise denoiser and write its weights; ``init`` is a server's model to start from.

        ``overwrite`` removes an older training, once nothing is left to refuse.
        """
        data, settings = self.training_data(), self.settings.training
        if (warning := self._blank_warning()) is not None:
            observer.note(f"warning: {warning}")
        space, shape = self.site.train.space, self.config.data.image_shape
        denoiser = fresh_denoiser(self.settings.network, shape, space, data, settings, self.name)
        if init is not None:
            weights.warm_start(denoiser, init)

        def ready(step: int) -> None:
            folder.check_start(step, resume=resume)
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
        model = weights.TrainedModel(trained, "client", SIGMA_MIN, data.sigma_high, settings.steps)
        weights.save(folder.weights, model)
        return weights.load(folder.weights, "client")

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


@contextmanager
def _scratch(path: Path, images: ImageSet) -> Iterator[IO[bytes] | None]:
    """A file without a name beside ``path``, where a release larger than memory is drawn; None for one that is not.

    It vanishes with the process, however that ends: nothing else may hold a second copy of the noise.
    """
    if 2 * math.prod(images.pixels.shape) <= rows.IN_MEMORY_BYTES:
        yield None
        return
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.absolute().parent) as file:
            yield file
    except OSError as error:
        raise storage_error(path, error) from error


@torch.inference_mode()
def finish(
    denoiser: Denoiser,
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
    denoiser: Denoiser,
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
