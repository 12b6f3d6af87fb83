"""How like images are to those that a model was trained on: in colour, and in content.

Each image is compared with images of home, the calibration half of the validation images: its colours, and the
features that the network finds in it. The distance to the `_NEAREST`th nearest image of home (Sun et al. 2022, arXiv
2204.06507) becomes the share of the images of home that are at least as far from the others. Of several domains at
home, the nearest counts, in units of how far its own images are from each other. The few images of a small domain lie
farther apart than those of a large one, and would all be unlike otherwise.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hemafast.engine.checkpoint import ModelCard
from hemafast.errors import HemafastError
from hemafast.evaluate.intervals import wilson
from hemafast.evaluate.metrics import Labels
from hemafast.files import DIGEST, refuse_overwritten, write_tensors
from hemafast.model import Network
from hemafast.regular import refuse_special
from hemafast.run_folder import LIKENESS
from hemafast.words import counted

ALARM = 0.05
"""Largest likeness of an image that is called unlike: the share of false alarms at home."""
LEAST_IMAGES = 40
"""Fewest images of home that a likeness is fitted on. A share of 5 % of fewer is not known."""
PARTS = ("likeness", "colour", "content")
"""Columns of a likeness: as a whole, and by what it is made of."""

_MATTERS = 0.10  # alarms: twice as many as at home
_MEAN_MATTERS = 0.35  # mean likeness; 0.5 at home
_CHANCE = 0.005  # that a set of images of home is called unlike by one of the two tests
_NEAREST = 5
_AT_ONCE = 1024  # images that are compared with all that are kept; memory grows with them
_MOST = 256  # images of home that are kept
_OF_DOMAIN = 2 * _NEAREST  # fewest that tell how far the images of a domain are from each other
_COLOURS = 6

logger = logging.getLogger("hemafast")

Names = npt.NDArray[np.str_]
Likenesses = npt.NDArray[np.floating[Any]]
"""(images, 3): PARTS of each image, from 0 (unlike) to 1 (typical of home)."""


@dataclass(frozen=True, slots=True, eq=False)
class Likeness:
    """What is kept of the images of home. All tensors are on one device."""

    centre: Tensor
    """float32 (6,): mean colours."""
    whitening: Tensor
    """float32 (6, 6): makes colours uncorrelated, with a spread of 1."""
    colours: Tensor
    """float32 (kept, 6): whitened colours of the images that are kept."""
    features: Tensor
    """float16 (kept, d): their features, of length 1."""
    counts: Tensor
    """int64 (domains,): how many are kept of each domain; they lie one domain behind the other. On the CPU."""
    spreads: Tensor
    """float32 (2, domains): how far images of a domain are from each other, in colour and in content."""
    home: Tensor
    """float32 (3, images), each ascending: how far all images of home are as a whole, in colour, in content."""

    @property
    def images(self) -> int:
        """Number of images of home it was fitted on."""
        return self.home.shape[1]

    @torch.inference_mode()
    def __call__(self, colours: Tensor, features: Tensor) -> Tensor:
        """PARTS, float32 (n, 3), of `colours_of` images and their features (n, d), on the device of both."""
        if features.shape[1] != self.features.shape[1]:
            raise HemafastError(
                f"{LIKENESS} compares {self.features.shape[1]} features, but the network has {features.shape[1]}.",
                f"Delete {LIKENESS}, then run `hemafast evaluate`.",
            )
        with torch.autocast(self.home.device.type, enabled=False):
            distances = self._distances(colours, features)
        every = torch.stack([_farther(distances, self.home[1:]), *distances])
        return (1 + _as_far(every, self.home)) / (1 + self.images)

    def to(self, device: str) -> Likeness:
        """The same on another device."""
        moved = {one.name: getattr(self, one.name).to(device) for one in fields(self) if one.name != "counts"}
        return replace(self, **moved)

    def _distances(self, colours: Tensor, features: Tensor, own: Tensor | None = None) -> Tensor:
        """Distance of each image in colour and in content, (2, n); `own` is its place among the kept, or -1."""
        return (self._from_domains(colours, features, own) / self.spreads[:, None]).min(2).values

    def _from_domains(self, colours: Tensor, features: Tensor, own: Tensor | None) -> Tensor:
        """Distance of each image from each domain, (2, n, domains)."""
        owns = repeat(None) if own is None else torch.split(own, _AT_ONCE)
        parts = zip(torch.split(colours, _AT_ONCE), torch.split(features, _AT_ONCE), owns, strict=False)
        return torch.cat([self._of_part(*part) for part in parts], dim=1)

    def _of_part(self, colours: Tensor, features: Tensor, own: Tensor | None) -> Tensor:
        """The same of a few images, which are compared with all that are kept."""
        colour = torch.cdist((colours - self.centre) @ self.whitening, self.colours)
        content = 1 - _unit(features) @ self.features.float().T
        distances = torch.stack([colour, content])
        if own is not None:  # an image is no neighbour of itself
            rows = torch.nonzero(own >= 0)[:, 0]
            distances[:, rows, own[rows]] = math.inf
        of_domains = torch.split(distances, self.counts.tolist(), dim=2)
        return torch.stack([one.kthvalue(_NEAREST, dim=2).values for one in of_domains], dim=2)


class Watching(nn.Module):
    """A network that notes of each image on the way what `note` makes of its colours and features.

    Noting costs no pass through the backbone. `note` takes float32 (n, 6) and (n, d) and returns (n, anything). How far
    the classifiers in the network disagree is noted too.
    """

    def __init__(self, model: Network, note: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self._note = model, note
        self._notes: list[Tensor] = []
        self._disagreements: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float (n, classes), of uint8 images (n, 3, height, width)."""
        logits, features, disagreement = self.model.discussed(images)
        self._disagreements.append(disagreement)
        self._notes.append(self._note(colours_of(images), features.float()))
        return logits

    def disagreements(self) -> Tensor:
        """Of its classifiers about all images so far, in order, on the CPU; 0 where there is one."""
        return torch.cat(self._disagreements).cpu()

    def noted(self) -> Tensor:
        """The notes of all images so far, in order, on the CPU."""
        return torch.cat(self._notes).cpu()


def colours_of(images: Tensor) -> Tensor:
    """Mean and standard deviation of the optical density of each channel, float32 (n, 6), of uint8 (n, 3, h, w).

    Every second pixel of every second row is taken.
    """
    density = -((images[:, :, ::2, ::2].float() + 1) / 256).log()
    return torch.cat([density.mean((2, 3)), density.std((2, 3))], dim=1)


def joined(colours: Tensor, features: Tensor) -> Tensor:
    """A note that keeps both, (n, 6 + d), for `learn`."""
    return torch.cat([colours, features], dim=1)


def unknown(colours: Tensor, _: Tensor) -> Tensor:
    """A note of images whose likeness is not known: nan for each of PARTS."""
    return colours.new_full((len(colours), len(PARTS)), math.nan)


def learn(notes: Tensor, labels: Labels, domains: Names, home: npt.NDArray[np.bool_]) -> tuple[Likeness, Tensor]:
    """Fit a likeness on the images of `home`.

    Args:
        notes: `joined` of all images, float32 (images, 6 + d).
        labels: (images,), indices of classes.
        domains: (images,), names of domains.
        home: (images,), which of them to learn from; at least LEAST_IMAGES.

    Returns:
        The likeness, and PARTS of all images, float32 (images, 3). Each image of home is compared with the others only.
    """
    colours, features, place = notes[:, :_COLOURS], notes[:, _COLOURS:], torch.tensor(home)
    likeness, at_home = fit_likeness(colours[place], features[place], labels[home], domains[home])
    found = likeness(colours, features).clone()  # out of inference mode, to be written to
    found[place] = at_home
    return likeness, found


def fit_likeness(colours: Tensor, features: Tensor, labels: Labels, domains: Names) -> tuple[Likeness, Tensor]:
    """Learn what images of home look like.

    Args:
        colours: float32 (n, 6), as `colours_of`; at least LEAST_IMAGES of them.
        features: float (n, d).
        labels: (n,), indices of classes. Where not all images can be kept, each class of each domain keeps as many as
            the others.
        domains: (n,), names of domains. Those with few images count as part of the largest one.

    Returns:
        The likeness, and PARTS of the same images, float32 (n, 3), each compared with the others only.
    """
    kept, counts, of_domain = _choose(labels, domains)
    centre = colours.mean(0)
    spread = torch.linalg.eigh(torch.cov(colours.T).double())
    scales = spread.eigenvalues.clamp_min(1e-8).rsqrt()  # a camera without noise has a spread of 0
    whitening = (spread.eigenvectors * scales).float()
    known = (colours[kept] - centre) @ whitening
    ones, home = torch.ones(2, len(counts)), torch.empty(3, len(labels))
    likeness = Likeness(centre, whitening, known, _unit(features[kept]).half(), counts, ones, home)
    own = torch.full((len(labels),), -1)
    own[kept] = torch.arange(len(kept))
    if len(counts) > 1:
        apart = likeness._from_domains(colours, features, own)
        for domain in range(len(counts)):
            likeness.spreads[:, domain] = apart[:, of_domain == domain, domain].median(1).values.clamp_min(1e-6)
    distances = likeness._distances(colours, features, own)
    every = torch.cat([_farther(distances, distances.sort(dim=1).values)[None], distances])
    likeness.home.copy_(every.sort(dim=1).values)
    return likeness, _as_far(every, likeness.home) / len(labels)


def _farther(distances: Tensor, home: Tensor) -> Tensor:
    """The larger of two distances (2, n), (n,), in units of their ascending spreads at home (2, images)."""
    images = home.shape[1]
    middle, far = home[:, images // 2, None], home[:, math.ceil((1 - ALARM) * images) - 1, None]
    return ((distances - middle) / (far - middle).clamp_min(1e-6)).max(0).values


def _as_far(distances: Tensor, home: Tensor) -> Tensor:
    """How many images of home are at least as far, (n, 3), by their distances (3, n) and its ascending ones."""
    return (home.shape[1] - torch.searchsorted(home, distances.contiguous())).T


def _unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.float(), dim=1)


def _choose(labels: Labels, domains: Names) -> tuple[Tensor, Tensor, Tensor]:
    """Which images to keep: the first of each class of each domain, the second of each, and so on.

    Returns:
        Their places, one domain behind the other and each in order; how many are kept of each domain; and the domain of
        each image, (n,), from 0. Domains of which fewer than `_OF_DOMAIN` would be kept are part of the largest one.
    """
    known = np.unique(domains, return_inverse=True)[1]
    groups = known * (1 + labels.max()) + labels
    order = np.random.default_rng(0).permutation(len(labels))
    turn = np.empty(len(labels), np.int64)
    for group in np.unique(groups):
        of_group = order[groups[order] == group]
        turn[of_group] = np.arange(len(of_group))
    kept = np.sort(np.lexsort((order, turn))[:_MOST])
    counts = np.bincount(known[kept], minlength=known.max() + 1)
    known = np.unique(
        np.where(counts < _OF_DOMAIN, counts.argmax(), np.arange(len(counts)))[known], return_inverse=True
    )[1]
    kept = kept[np.argsort(known[kept], kind="stable")]
    return torch.from_numpy(kept), torch.from_numpy(np.bincount(known[kept])), torch.from_numpy(known)


def judge(likenesses: Likenesses, fitted_on: int) -> dict[str, Any]:
    """What the likenesses of images say of them as a set.

    Args:
        likenesses: PARTS of each image; rows of nan are left out.
        fitted_on: images of home; the fewer, the less is known of their own alarms.

    Returns:
        `images`; `alarms`, how many are unlike (at most ALARM), their `share` with Wilson's `ci95`; `mean` likeness;
        `parts`, the share of alarms in colour and in content; and `unlike`, whether the set is. It is if more than
        `_MATTERS` of its images are unlike and more than at home (binomial test), or if its mean likeness is below
        `_MEAN_MATTERS` and lower than at home (z-test): each with a chance of `_CHANCE` at home. One image makes a set.
    """
    from scipy.stats import binomtest, norm

    known = likenesses[np.isfinite(likenesses).all(axis=1)]
    images = len(known)
    if not images:
        return {"images": 0, "alarms": 0, "share": None, "ci95": None, "mean": None, "parts": {}, "unlike": False}
    unlike = known <= ALARM
    alarms, shares = int(unlike[:, 0].sum()), (unlike & unlike[:, :1]).mean(axis=0)
    at_home = wilson(round(ALARM * fitted_on), fitted_on)
    more = binomtest(alarms, images, at_home[1] if at_home else ALARM, alternative="greater").pvalue
    mean = float(known[:, 0].mean())
    lower = norm.cdf((mean - 0.5) / math.sqrt((1 / images + 1 / fitted_on) / 12))  # uniform at home
    return {
        "images": images,
        "alarms": alarms,
        "share": float(shares[0]),
        "ci95": wilson(alarms, images),
        "mean": mean,
        "parts": {name: float(share) for name, share in zip(PARTS[1:], shares[1:], strict=True)},
        "unlike": bool(
            (images == 1 and alarms)
            or (shares[0] > _MATTERS and more < _CHANCE)
            or (mean < _MEAN_MATTERS and lower < _CHANCE)
        ),
    }


def describe(judged: Mapping[str, Any]) -> str | None:
    """One sentence on a set that is unlike the training set, without a full stop; None if it is not unlike.

    `judged` is what `judge` returned.
    """
    if not judged["unlike"]:
        return None
    images = judged["images"]
    parts = [f"{share:.0%} in {name}" for name, share in judged["parts"].items() if share > _MATTERS]
    said = f"{judged['alarms']} of {counted(images, 'image')} are unlike those that the model was trained on"
    if parts:
        said += f" ({' and '.join(parts)}; {ALARM:.0%} at home)"
    else:
        said = f"these {images} images are on average unlike those that the model was trained on"
    return f"{said}: its scores, probabilities and thresholds do not hold here"


def save_likeness(file: Path, card: ModelCard, likeness: Likeness | None) -> None:
    """Write LIKENESS beside the model `file`, for the weights that `card` describes; None removes what is there."""
    beside = file.with_name(LIKENESS)
    if likeness is None:
        beside.unlink(missing_ok=True)
        return
    tensors = {one.name: getattr(likeness, one.name).contiguous().cpu() for one in fields(likeness)}
    write_tensors(beside, tensors, _identity(card))


def load_likeness(file: Path, card: ModelCard) -> Likeness | None:
    """The likeness beside the model `file`, on the CPU; None without one, or if it belongs to other weights.

    Raises HemafastError if it is damaged.
    """
    beside = file.with_name(LIKENESS)
    if not beside.exists():
        return None
    try:
        refuse_special(beside)
        with safe_open(beside, framework="pt") as content:
            identity = content.metadata() or {}
            stored = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - no mapping
        tensors = _of_all_fields(stored)
        refuse_overwritten(stored, identity, "numbers")
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        raise HemafastError(
            f"{beside} cannot be read ({said}).", f"Delete it, then run `hemafast evaluate {file.parent}`."
        ) from error
    identity.pop(DIGEST, None)
    if identity != _identity(card):
        logger.warning("%s ignored: it belongs to other weights than %s. `hemafast evaluate` renews it.", beside, file)
        return None
    return Likeness(**tensors)


def _identity(card: ModelCard) -> dict[str, str]:
    return {"format": "pt", "epoch": str(card.epoch), "data_fingerprint": card.data_fingerprint}


def _of_all_fields(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a file as those of a Likeness. Raises ValueError if they cannot be. Older files know one domain."""
    one_domain = {"counts": torch.tensor([len(stored.get("features", ()))]), "spreads": torch.ones(2, 1)}
    every = one_domain | dict(stored)
    names = [one.name for one in fields(Likeness)]
    if sorted(every) != sorted(names):
        raise ValueError(f"it holds {', '.join(sorted(stored)) or 'nothing'}, not {', '.join(names)}")
    tensors = {name: every[name] for name in names}
    _refuse_shapes(tensors)
    return tensors


def _refuse_shapes(tensors: Mapping[str, Tensor]) -> None:
    features, counts, home = (tensors[name] for name in ("features", "counts", "home"))
    (kept, width), images = (features.shape if features.ndim == 2 else (0, 0)), home.shape[-1] if home.ndim else 0
    domains = len(counts) if counts.ndim else 0
    shapes = {"centre": (_COLOURS,), "whitening": (_COLOURS, _COLOURS), "colours": (kept, _COLOURS)}
    shapes |= {"features": (kept, width), "counts": (domains,), "spreads": (2, domains), "home": (len(PARTS), images)}
    dtypes = {"features": torch.float16, "counts": torch.int64}
    for name, tensor in tensors.items():
        dtype = dtypes.get(name, torch.float32)
        if tuple(tensor.shape) != shapes[name] or tensor.dtype != dtype or not tensor.isfinite().all():
            raise ValueError(f"{name} is not {dtype} {shapes[name]}, or not finite")
    if not _NEAREST <= kept <= images or int(counts.sum()) != kept or int(counts.min()) < _NEAREST:
        raise ValueError(f"it keeps {kept} of {counted(images, 'image')}, and {counts.tolist()} of domains")
    if not (tensors["spreads"] > 0).all():
        raise ValueError("images of a domain have no distance from each other")
