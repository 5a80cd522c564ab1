"""Augmentation policies by name: the largest changes that may happen to an image."""

from __future__ import annotations

from dataclasses import dataclass, replace

from etude.core.errors import EtudeError, nearest


@dataclass(frozen=True, slots=True)
class Policy:
    """The largest changes, reached at strength 1. Symmetries apply at any strength above 0.

    A change "either way" is drawn uniformly between its negative and its positive limit; a "share of the images" is
    scaled by the strength like a limit.

    Args:
        name: by which recipes call it.
        flip: mirror half of the images.
        upside_down: turn half of the images by 180 degrees; with ``flip``, mirrors both ways.
        quarter_turns: turn by a random multiple of 90 degrees; with ``flip``, all eight symmetries of the square.
        angle: rotation in degrees, either way.
        log_scale: zoom, as the natural logarithm of the factor, either way.
        shear: horizontal shear in degrees, either way.
        shear_y: vertical shear in degrees, either way.
        shift: as a share of the side, either way.
        crop: largest share of the area that a random crop cuts away; the rest fills the image.
        log_aspect: aspect ratio of the crop, as the natural logarithm, either way.
        perspective: keystone, either way; 0.5 makes one edge appear three times as near as its opposite.
        contrast: change of the contrast factor, either way.
        brightness: as a share of the full range, either way.
        saturation: change of the saturation factor, either way; colour images only, like ``hue`` and ``grey``.
        hue: rotation about the grey axis in degrees, either way.
        grey: share of the images that lose their colour.
        erase: share of the images with a rectangle erased.
        erase_area: largest share of the area that is erased.
        erase_fill: what fills it, ``mean`` (the image's) or ``noise``.
        noise: share of the images with Gaussian noise.
        noise_level: its largest standard deviation, as a share of the full range.
        blur: share of the images that are blurred.
        blur_width: largest standard deviation of the blur, as a share of the side.
        trivial: one random operation an image, as :mod:`etude.functional.trivial` describes.
        border: what lies beyond the edge, ``reflect`` or ``replicate``.
    """

    name: str
    flip: bool = False
    upside_down: bool = False
    quarter_turns: bool = False
    angle: float = 0.0
    log_scale: float = 0.0
    shear: float = 0.0
    shear_y: float = 0.0
    shift: float = 0.0
    crop: float = 0.0
    log_aspect: float = 0.0
    perspective: float = 0.0
    contrast: float = 0.0
    brightness: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey: float = 0.0
    erase: float = 0.0
    erase_area: float = 0.25
    erase_fill: str = "mean"
    noise: float = 0.0
    noise_level: float = 0.05
    blur: float = 0.0
    blur_width: float = 0.01
    trivial: bool = False
    border: str = "reflect"

    @property
    def changes_nothing(self) -> bool:
        """Whether images stay as they are at any strength."""
        return not (self.moves or self.colors or self.trivial or self.erase or self.noise or self.blur)

    @property
    def moves(self) -> bool:
        """Whether pixels change their places."""
        symmetric = self.flip or self.upside_down or self.quarter_turns
        turned = self.angle or self.log_scale or self.shear or self.shear_y or self.shift
        return bool(symmetric or turned or self.crop or self.log_aspect or self.perspective)

    @property
    def colors(self) -> bool:
        """Whether the colour map is anything but the identity."""
        return bool(self.contrast or self.brightness or self.saturation or self.hue or self.grey)


_SYMMETRIC = Policy(
    "symmetric",
    flip=True,
    upside_down=True,
    quarter_turns=True,
    angle=3,
    shift=0.05,
    log_scale=0.1,
    contrast=0.2,
    brightness=0.1,
)

POLICIES = {
    policy.name: policy
    for policy in (
        Policy("none"),
        Policy("photos", flip=True, angle=10, log_scale=0.2, shear=5, shift=0.08, contrast=0.3, brightness=0.1),
        Policy("flips", flip=True, upside_down=True, angle=3, shift=0.05, log_scale=0.1, contrast=0.2, brightness=0.1),
        _SYMMETRIC,
        Policy("digits", angle=15, log_scale=0.15, shear=12, shift=0.1, border="replicate"),
        # A page has one way up and plain paper at its edge; scanners and phones differ in light.
        Policy(
            "documents", angle=3, log_scale=0.05, shear=2, shift=0.03, contrast=0.3, brightness=0.15, border="replicate"
        ),
        # Seen from above, any heading is as likely; season and haze change the colours.
        replace(_SYMMETRIC, name="aerial", angle=15, log_scale=0.2, contrast=0.3, saturation=0.2, hue=5),
        # The dye tells the structures apart, so hue stays; focus and sensor noise differ between slides.
        replace(_SYMMETRIC, name="microscopy", angle=10, log_scale=0.15, contrast=0.3, blur=0.2, noise=0.2),
        # Stains differ between laboratories in tint and depth.
        replace(_SYMMETRIC, name="cells", saturation=0.3, hue=15),
        Policy("trivial", trivial=True),
    )
}


def policy_named(name: str) -> Policy:
    """Return the policy ``name``.

    Raises:
        EtudeError: there is none of that name.
    """
    if name not in POLICIES:
        raise EtudeError(
            f"there is no augmentation policy {name!r}; the policies are {', '.join(POLICIES)} and auto."
            f"{nearest(name, POLICIES)}"
        )
    return POLICIES[name]
