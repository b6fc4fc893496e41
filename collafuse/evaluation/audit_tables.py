"""An audit in tables and in plain language."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.noise import Cut
from .accounting import DELTA, Guarantee, release_guarantee
from .attacks.attributes import MOST_ATTRIBUTES
from .attacks.exposure import MOST_ATTACKED, NOT_ASKED, Exposure, measured_sigma
from .attacks.finding import SHOWN_Z
from .attacks.reconstruction import Reconstruction
from .attacks.reidentification import COPIES
from .model_tables import INTERVALS, membership_table, memorisation_table, remembering
from .tables import Cell, Table

if TYPE_CHECKING:
    from .audit import Audit, SiteAudit

LARGE_EPSILON = 10.0
"""A formal guarantee above this rules out nothing that a person would call private."""
BY_SERVER, BY_CLIENT = "server's denoiser", "client's denoiser"
"""Estimates of an image by a model of the run; the server does not have the client's."""


def tables(audit: Audit) -> list[Table]:
    """Every figure of an audit."""
    found = [_promises(audit), _reidentification(audit), _reconstruction(audit), _attributes(audit)]
    asked = {site.exposure.name: (site.nearest, site.repeated) for site in audit.sites}
    found += [membership_table(audit.membership, audit.notes), memorisation_table(asked), _guarantees(audit)]
    return [table for table in found if table.rows]


def alarms(audit: Audit) -> list[str]:
    """Broken promises, and models that remember: what should not happen at any cut."""
    found = [f"{f.subject}: {f.says}" for site in audit.sites for f in site.promises if f.alarm]
    found += remembering(audit.membership, {site.exposure.name: site.nearest for site in audit.sites})
    for site in audit.sites:
        if site.repeated is not None and site.repeated.alarm:
            found.append(
                f"{site.exposure.name}: a delivered intermediate repeats the noise of a stored release (correlation "
                f"{site.repeated.correlation:.2f}): the server memorises releases."
            )
    return found


def verdict(site: SiteAudit) -> str:
    """What the cut of one site does not protect, in plain language."""
    exposure = site.exposure
    share, many = site.reidentified[1], site.reidentified[COPIES[-1]]
    does_not, perhaps, holds = list[str](), list[str](), list[str]()

    def place(alarm: bool, beyond: bool) -> list[str]:
        """Where a figure is said: what chance seldom does is neither protected nor not."""
        return does_not if alarm else perhaps if beyond else holds

    place(share.alarm, share.interval[0] > share.chance).append(
        f"which image it is: who holds a release and {site.gallery} candidates picks the right one in "
        f"{share.value:.0%} of cases (guessing: {share.chance:.1%})"
    )
    if site.reconstructions:
        best, by_server, by_client = _looks(site)
        beyond = best.gain_db > SHOWN_Z * best.gain_error
        place(best.alarm, beyond).append(
            by_server
            if best.alarm or beyond
            else "what an image looks like: no estimate of the server comes nearer than guessing"
        )
        does_not += by_client
    does_not += _sent_beside(exposure)
    for one in sorted(site.inferences, key=lambda i: i.chance - i.accuracy)[:3]:
        place(one.alarm, one.accuracy > one.chance + SHOWN_Z * one.chance_error).append(
            f"what its pixels show ({one.what}): read in {one.accuracy:.0%} of cases (guessing: {one.chance:.0%}, from "
            f"clean images: {one.clean:.0%})"
        )
    guarantee = _guarantee(site)
    formal = (
        f"Formally one release at this cut is ({guarantee.epsilon:.3g}, {DELTA:g})-private: "
        + ("so large that it rules out nothing. " if guarantee.epsilon > LARGE_EPSILON else "")
        + f"Had a fresh copy been sent at every step, as in the reference (about {COPIES[-1]}), {many.value:.0%} "
        "of images would be recognised."
    )
    parts = [f"{exposure.name}, cut at {Cut(exposure.sigma).describe()}."]
    if exposure.whole is not None:
        parts.append(f"Of {exposure.different} images {len(exposure.images)} were attacked.")
    if does_not:
        parts.append(f"Not protected: {'; '.join(does_not)}.")
    if perhaps:
        parts.append(f"Perhaps not protected, since chance alone seldom does as well: {'; '.join(perhaps)}.")
    if not does_not and not perhaps:
        parts.append("No attack here beats guessing.")
    elif holds:
        parts.append(f"No better than guessing: {'; '.join(holds)}.")
    return " ".join([*parts, formal])


def _looks(site: SiteAudit) -> tuple[Reconstruction, str, list[str]]:
    """The server's best estimate, and how near it comes; and what the client's bundle in the wrong hands adds to it."""
    best = max((one for one in site.reconstructions if one.name != BY_CLIENT), key=lambda one: one.gain_db)
    nearer = [one for one in site.reconstructions if one.alarm and one.name == BY_CLIENT]
    if best.alarm:
        nearer = [one for one in nearer if one.gain_db > best.gain_db]
    by_client = [
        f"what an image looks like to whoever has the client's bundle too: {one.gain_db:.1f} dB nearer than guessing"
        for one in nearer
    ]
    by_server = (
        f"what an image looks like: the best estimate ({best.name}) is {best.gain_db:.1f} dB nearer to it than "
        f"guessing (PSNR {best.psnr_db:.1f} dB, SSIM {best.ssim:.2f})"
    )
    return best, by_server, by_client


def _sent_beside(exposure: Exposure) -> list[str]:
    """What needs no attack, since it lies in the release in clear, whatever the cut."""
    found = []
    if exposure.labels_shared and exposure.images.label_names:
        found.append("its labels, which are sent as they are (share_labels)")
    if exposure.text_shared:
        found.append("its captions, whose numbers can be read back (share_text)")
    return found


def _guarantee(site: SiteAudit, releases: int = 1) -> Guarantee:
    return release_guarantee(site.exposure.z.shape[1:], site.exposure.sigma, releases)


def _promises(audit: Audit) -> Table:
    rows = []
    for site in audit.sites:
        exposure = site.exposure
        sigma, error = measured_sigma(exposure)
        broken = [f.says for f in site.promises if f.alarm]
        rows.append(
            (
                exposure.name,
                exposure.releases,
                exposure.different,
                len(exposure.z),
                exposure.sigma,
                f"{sigma:.4g} ± {1.96 * error:.2g}",
                "ALARM: " + " ".join(broken) if broken else "kept",
            )
        )
    columns = (
        "client",
        "releases",
        "different images",
        "releases looked at",
        "sigma stated",
        "sigma measured",
        "one copy each, as noisy as stated, noise of its own",
    )
    notes = []
    if parts := [site.exposure.name for site in audit.sites if site.exposure.whole is not None]:
        notes.append(
            f"Of {', '.join(parts)} a part was attacked, here and in every table below: tests look at all pairs, and "
            f"of a site at most {MOST_ATTACKED:,} images, of large images fewer. What is wrong with few images may be "
            "among the rest."
        )
    notes += [f"{s.exposure.name}: {f.says}" for s in audit.sites for f in s.promises if f.attack == NOT_ASKED]
    if not audit.membership:  # then there is no table below which these would stand
        notes += audit.notes
    return Table("What the server received", columns, tuple(rows), tuple(notes))


def _reidentification(audit: Audit) -> Table:
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            site.exposure.name,
            site.exposure.sigma,
            site.gallery,
            *(site.reidentified[k].shown() for k in COPIES),
            f"{site.reidentified[1].chance:.2%}",
        )
        for site in audit.sites
    )
    columns = (
        "client",
        "cut (sigma)",
        "gallery",
        *("one release", f"{COPIES[1]} copies", f"{COPIES[2]} copies"),
        "guessing",
    )
    notes = [
        f"Matched filter, the strongest attack on white noise where the image is in the gallery; top-1. {INTERVALS}",
        f"k fresh copies equal one release at sigma / sqrt(k); the reference's default run sends about {COPIES[2]}.",
    ]
    if simulated := [site.exposure.name for site in audit.sites if not site.from_stored]:
        notes.append(f"Of {', '.join(simulated)} a release was simulated: its stored one is in another order.")
    return Table("Re-identification: which image is this release of?", columns, rows, tuple(notes))


def _reconstruction(audit: Audit) -> Table:
    rows = tuple(
        (
            site.exposure.name,
            site.exposure.sigma,
            one.name,
            f"{one.psnr_db:.2f}",
            f"{one.ssim:.3f}",
            None if one.similarity is None else f"{one.similarity:.3f}",
            f"{one.gain_db:+.2f} ± {1.96 * one.gain_error:.2f}",
        )
        for site in audit.sites
        for one in site.reconstructions
    )
    columns = (
        "client",
        "cut (sigma)",
        "estimate by",
        "PSNR (dB)",
        "SSIM",
        "feature similarity",
        "PSNR above guessing",
    )
    notes = (
        "The Wiener filter knows mean and covariance of other images of the site, per label where labels are shared.",
        "A server has its own denoiser; the client's is what a bundle in the wrong hands adds. Both are told what the "
        "site shares, labels and text.",
        "Guessing: the mean image, per label where labels are shared; for a denoiser, which is told more, also what it "
        "makes of another image's release told of this one: the smaller gain counts.",
        "Feature similarity: cosine, by a classifier trained on half of the sites' images. See reconstruction.png too.",
    )
    return Table("Reconstruction: what does the image look like?", columns, rows, notes)


def _attributes(audit: Audit) -> Table:
    rows = tuple(
        (
            site.exposure.name,
            site.exposure.sigma,
            i.what,
            i.classes,
            i.count,
            i.shown(),
            f"{i.clean:.1%}",
            f"{i.chance:.1%}",
        )
        for site in audit.sites
        for i in site.inferences
    )
    columns = ("client", "cut (sigma)", "what", "classes", "images", "from releases", "from clean images", "guessing")
    notes = (
        "Balanced accuracy of an attacker who knows half of the site's images and their labels, on the other half. "
        f"{INTERVALS} Of a site's attributes the first {MOST_ATTRIBUTES} are asked about.",
        *_shared_anyway(audit),
    )
    return Table("Attribute inference: what does a release tell?", columns, rows, notes)


def _shared_anyway(audit: Audit) -> list[str]:
    names = [s.exposure.name for s in audit.sites if s.exposure.labels_shared and s.inferences]
    if not names:
        return []
    return [
        f"{', '.join(names)}: labels are sent beside the pixels, so the server knows them without any attack; the "
        "figures say what it would know if they were kept (share_labels: false)."
    ]


def _guarantees(audit: Audit) -> Table:
    rows = []
    for site in audit.sites:
        for copies in (COPIES[0], COPIES[-1]):
            g = _guarantee(site, copies)
            rows.append((site.exposure.name, g.sigma, copies, g.sensitivity, g.mu, g.epsilon, g.rho))
    columns = (
        "client",
        "cut (sigma)",
        "releases",
        "sensitivity",
        "mu",
        f"epsilon (delta {DELTA:g})",
        "rho (Rényi: order x rho)",
    )
    notes = (
        "The Gaussian mechanism on pixels in [-1, 1], one image replaced by another. At useful cuts in pixel space "
        "these figures are large: they do not promise privacy. What protects in practice is what the attacks above "
        "fail at, and only against attackers as strong as these. Labels and text that are sent beside the pixels have "
        "no guarantee.",
    )
    return Table("Formal guarantee of a release", columns, tuple(rows), notes)
