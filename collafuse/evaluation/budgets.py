"""One cut of one site that sends statistics: what a release of each budget is worth there, and what a device pays.

A client is trained for the cut once. In front of it stands a server for each budget that is tried, and one of exact
statistics, which add up what all sites would send: simulated from their images, with noise that the seed repeats. The
server of the run itself, with what its sites did send, is among them.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..core.errors import DataError, RefusedError
from ..core.mechanism import Budget
from ..core.moments import default_coefficients
from ..core.statistics import Statement, Statistics
from ..learning.gaussian import TrainedGaussians
from ..learning.seeds import keyed_seed
from ..learning.weights import TrainedModel
from ..nodes.runfolder import NodeFolder
from ..nodes.server import Server
from ..nodes.sites import Site
from ..nodes.statistics import gaussians_of, sites_of
from ..nodes.summary import summarise
from .accounting import most_found
from .attacks.membership import FALSE_ALARMS
from .trial import AS_WELL, Trial, ratio_bounds
from .whole_run import WholeRun

EPSILONS = (1.0, 8.0, 32.0)
"""Budgets that are tried where none are named, beside the run's own and none."""


@dataclass(frozen=True)
class BudgetFigures:
    """One budget at one cut of one site. Fréchet distances are means over SETS sets with the held-out ones' labels.

    epsilon, delta: None where no noise is added; as_sent: whether these are the statistics that the run's sites sent.
    found: of the images that were counted the largest share that anyone can tell who accuses 1 % of others wrongly, 1
    where nothing is promised. frechet and its spread: None where no such release would be made, and ``refused`` says
    why. times_low to times_high: how many times the distance of exact statistics that is, see :func:`ratio_bounds`,
    None where there are none. floor: of real images; nfe and ms: per image on this machine.
    """

    client: str
    sigma: float
    epsilon: float | None
    delta: float | None
    as_sent: bool
    found: float
    frechet: float | None
    frechet_spread: float | None
    times_low: float | None
    times_high: float | None
    refused: str
    floor: float
    nfe: int
    ms: float

    @property
    def measured(self) -> dict[str, float]:
        """What stands against a limit, as :class:`.demands.Figures` says."""
        return {
            "guarantee": math.inf if self.epsilon is None else self.epsilon,
            "time": self.ms,
            "quality": math.inf if self.frechet is None else self.frechet,
        }

    @property
    def costs_nothing(self) -> bool:
        """Whether pictures are surely as good as of exact statistics."""
        return self.times_high is not None and self.times_high <= AS_WELL

    @property
    def costs(self) -> bool:
        """Whether pictures are surely worse than of exact statistics."""
        return self.times_low is not None and self.times_low > 1 and not self.costs_nothing


@dataclass(frozen=True)
class Sent:
    """Statistics of all sites, with noise for one budget or none: what a server adds up, or why there is none."""

    epsilon: float | None
    model: TrainedGaussians | None
    sites: Mapping[str, Site]
    refused: str = ""


def simulated(run: WholeRun, epsilon: float | None, seed: int) -> Sent:
    """What the server would add up had all sites sent statistics of this budget."""
    given: dict[str, list[Statistics]] = {}
    try:
        for name in run.sites:
            given[name] = [site_statistics(run, name, epsilon, seed)]
    except (DataError, RefusedError) as error:
        return Sent(epsilon, None, {}, f"{name}: {error}")
    sites = sites_of(run.config, given)
    lost = {
        name: sorted(set(run.server.site(name).label_names or ()) - set(site.label_names or ()))
        for name, site in sites.items()
    }
    if any(lost.values()):
        said = "; ".join(f"{name} would send no {', '.join(labels)}" for name, labels in lost.items() if labels)
        return Sent(epsilon, None, {}, f"{said}, of which the noise leaves too few images.")
    return Sent(epsilon, gaussians_of(given, sites), sites)


def site_statistics(run: WholeRun, name: str, epsilon: float | None, seed: int) -> Statistics:
    """One site's, of each different training image once, as the site would send them. Raises DataError and
    RefusedError where it would send none."""
    client, shape = run.config.client(name), run.config.data.image_shape
    settings, images = client.statistics, run.sites[name].train
    _, first = np.unique(images.digests, axis=0, return_index=True)
    about = Statement(
        shape,
        settings.coefficients or default_coefficients(shape),
        None if epsilon is None else Budget(epsilon, settings.delta),
        None if epsilon is None else settings.clip,
    )
    rng = np.random.default_rng(keyed_seed(seed, "budget", name, f"{epsilon}"))
    return summarise(
        images.take(np.sort(first)),
        about,
        share_labels=client.share_labels,
        simulated=True,
        labels_listed=True,
        noise=rng.standard_normal,
    )


class BudgetCut(Trial):
    """One cut of one site of statistics, while it is measured."""

    def figures(self, others: Sequence[Sent]) -> list[BudgetFigures]:
        """Of what the run's sites sent, and of these that have another budget; by falling epsilon, exact ones first."""
        with tempfile.TemporaryDirectory(prefix="collafuse-plan-") as scratch:
            model = self.train(NodeFolder(Path(scratch) / "client"))
            nfe, ms = self.device_cost(model, Path(scratch) / "client.onnx")
        assert isinstance(self.run.server.model, TrainedGaussians)
        own = Sent(self.settings.statistics.epsilon, self.run.server.model, self.run.server.sites)
        # What was sent stands for its budget only where all sites have one: sites with a label in common share noise.
        one = len({self.config.client(name).statistics.epsilon for name in self.run.sites}) == 1
        several = [own, *(sent for sent in others if not (one and sent.epsilon == own.epsilon))]
        several.sort(key=lambda sent: -math.inf if sent.epsilon is None else -sent.epsilon)
        distances = [self._distances_from(sent, model) for sent in several]
        of_all = zip(several, distances, strict=True)
        exact = next((d for sent, d in of_all if sent.epsilon is None and (one or sent is not own)), None)
        floor = self.floor()
        return [
            self._figures(sent, sent is own, found, exact, floor, nfe, ms)
            for sent, found in zip(several, distances, strict=True)
        ]

    def _distances_from(self, sent: Sent, model: TrainedModel) -> list[float] | None:
        """From the same noise whatever was sent: then what is left of their difference is the statistics'."""
        if sent.model is None:
            return None
        sites = {**sent.sites, self.name: replace(sent.sites[self.name], sigma_cut=self.sigma)}
        server = Server(self.config, sent.model, sites, self.run.device)
        planned = server.plan_like(self.name, self.count, self.reference, in_turn=True)
        delivered = server.deliver(self.name, self.count, planned=planned, seed=self.seed)
        return self.distances(model, delivered.x, delivered)

    def _figures(
        self,
        sent: Sent,
        as_sent: bool,
        distances: list[float] | None,
        exact: list[float] | None,
        floor: float,
        nfe: int,
        ms: float,
    ) -> BudgetFigures:
        budget = None if sent.epsilon is None else Budget(sent.epsilon, self.settings.statistics.delta)
        times = None if distances is None or exact is None else ratio_bounds(distances, exact)
        return BudgetFigures(
            client=self.name,
            sigma=self.sigma,
            epsilon=sent.epsilon,
            delta=None if budget is None else budget.delta,
            as_sent=as_sent,
            found=1.0 if budget is None else most_found(1 / budget.noise_multiplier, FALSE_ALARMS),
            frechet=None if distances is None else float(np.mean(distances)),
            frechet_spread=None if distances is None else float(np.std(distances, ddof=1)),
            times_low=None if times is None else times[0],
            times_high=None if times is None else times[1],
            refused=sent.refused,
            floor=floor,
            nfe=nfe,
            ms=ms,
        )
