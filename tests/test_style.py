"""The palette: contrast on both papers, and what readers without one kind of cone see."""

import itertools
import math

import pytest

from gpuedu.style import COLORS, GRID, INK, PAPER, contrast, ink_on, luminance, template

PIPELINE = ("forward", "backward", "weight_gradient", "communication", "waiting")

# Machado, Oliveira, Fernandes. A physiologically-based model for simulation of color vision deficiency.
# IEEE TVCG 15(6), 2009: the supplied matrices at severity 1.0, applied to linear RGB.
VISION = {
    "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}
# IEC 61966-2-1: linear sRGB to CIE XYZ, D65.
XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)


def product(matrix, vector):
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def linear_rgb(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]


def lab(color, vision="normal"):
    """CIE 1976 L*a*b* (D65) of ``color`` as that vision sees it."""
    seen = [min(1.0, max(0.0, c)) for c in product(VISION[vision], linear_rgb(color))]
    white = [sum(row) for row in XYZ]
    ratios = [c / w for c, w in zip(product(XYZ, seen), white, strict=True)]
    x, y, z = (r ** (1 / 3) if r > 216 / 24389 else (24389 / 27 * r + 16) / 116 for r in ratios)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def difference(a, b, vision):
    return math.dist(lab(COLORS[a], vision), lab(COLORS[b], vision))


def test_lab_and_simulation_agree_with_published_values():
    # Lindbloom's calculator (sRGB, D65): pure red and pure blue.
    assert lab("#ff0000") == pytest.approx((53.24, 80.09, 67.20), abs=0.02)
    assert lab("#0000ff") == pytest.approx((32.30, 79.19, -107.86), abs=0.02)
    for matrix in VISION.values():  # every row sums to 1: white stays white, grays stay gray
        assert product(matrix, (1, 1, 1)) == pytest.approx((1, 1, 1), abs=1e-5)
    # Red and green of one lightness: far apart for most readers, near for one without green cones.
    red, green = "#c55a5a", "#6f8f3f"
    assert math.dist(lab(red), lab(green)) > 2 * math.dist(
        lab(red, "deuteranopia"), lab(green, "deuteranopia")
    )


def test_contrast_agrees_with_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # fails AA by a hair
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)  # the lightest gray to pass
    assert luminance("#ff0000") == pytest.approx(0.2126)


@pytest.mark.parametrize("mode", PAPER)
@pytest.mark.parametrize("name", COLORS)
def test_marks_stand_out_from_both_papers(name, mode):
    assert contrast(COLORS[name], PAPER[mode]) >= 3


@pytest.mark.parametrize("mode", PAPER)
def test_text_is_readable_on_its_paper(mode):
    assert contrast(INK[mode], PAPER[mode]) >= 7


@pytest.mark.parametrize("name", COLORS)
def test_labels_inside_marks_are_readable(name):
    assert contrast(ink_on(COLORS[name]), COLORS[name]) >= 4.5


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("pair", list(itertools.combinations(PIPELINE, 2)), ids="-".join)
def test_a_pipeline_schedule_reads_without_color_vision(pair, vision):
    assert difference(*pair, vision) >= 15


@pytest.mark.parametrize("vision", VISION)
def test_all_colors_stay_apart(vision):
    for pair in itertools.combinations(COLORS, 2):
        assert difference(*pair, vision) >= (20 if vision == "normal" else 10), pair


@pytest.mark.parametrize("mode", PAPER)
def test_template_uses_the_palette_and_the_mode(mode):
    layout = template(mode)["layout"]
    assert layout["colorway"] == list(COLORS.values())
    assert layout["font"]["color"] == INK[mode]
    assert layout["xaxis"]["gridcolor"] == GRID[mode]
