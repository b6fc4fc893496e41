"""What leaves a site, once: its images noised up to the cut, or their statistics.

Nothing here needs torch, so that a site releases as fast as it reads its images.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ..config import ClientSettings, Config
from ..core import release as releases
from ..core import rows
from ..core.atomic import storage_error
from ..core.errors import DataError, FileFormatError
from ..core.moments import default_coefficients
from ..core.noise import system_noise, system_order
from ..core.statistics import Statement, Statistics, to_bytes
from ..core.statistics import read as read_statistics
from ..data.dealing import SiteData
from ..data.imageset import ImageSet
from .ledger import Ledger
from .summary import summarise

BLOCK_VALUES = 1 << 22
"""Pixel values noised at a time: some 200 MB of memory."""


class Releaser:
    """The half of a client that releases. Everything it sees is the site's own: its data, its settings, its ledger."""

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
