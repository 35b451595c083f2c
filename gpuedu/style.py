"""One color, one meaning, through the whole book; and the Plotly template of each mode.

Every color keeps at least 3:1 against both page backgrounds, so a figure's marks are the same in both
modes: only paper, ink and grid change. Any two colors stay apart by 10 or more (CIE 1976) for readers
without red, green or blue cones, the five that meet in a pipeline schedule by 15 or more.
"""

from __future__ import annotations

COLORS = {
    "forward": "#296aa2",  # forward and prefill work
    "backward": "#d3680e",  # backward (input gradients) and decode work
    "weight_gradient": "#649f76",
    "communication": "#a36dde",
    "waiting": "#878d96",  # bubbles, idle slots
    "memory_used": "#2693b4",
    "memory_reserved": "#ae8e40",
    "memory_wasted": "#b83772",
    "accepted": "#1f792d",
    "rejected": "#c43430",
}

PAPER = {"light": "#ffffff", "dark": "#14181d"}
INK = {"light": "#1d232b", "dark": "#e3e7ec"}
GRID = {"light": "#e3e6ea", "dark": "#2e353e"}


def luminance(color: str) -> float:
    """Relative luminance of ``#rrggbb``, 0 (black) to 1 (white): WCAG 2.2.

    >>> luminance("#ffffff")
    1.0
    """
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """Contrast ratio of two colors, 1 to 21: WCAG 2.2.

    >>> round(contrast("#000000", "#ffffff"))
    21
    """
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def ink_on(color: str) -> str:
    """Black or white, whichever reads better on ``color``."""
    return max(("#ffffff", "#000000"), key=lambda ink: contrast(ink, color))


def tint(color: str, share: float) -> str:
    """``color`` mixed with ``share`` (0 to 1) of white.

    >>> tint("#000000", 0.5)
    '#808080'
    """
    channels = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(c + (255 - c) * share):02x}" for c in channels)


def translucent(color: str, opacity: float) -> str:
    """``color`` with ``opacity`` (0 to 1); Plotly before version 6 reads no ``#rrggbbaa``.

    >>> translucent("#ff8000", 0.4)
    'rgba(255, 128, 0, 0.4)'
    """
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity:g})"


def template(mode: str) -> dict:
    """The Plotly template of ``mode``, ``"light"`` or ``"dark"``."""
    axis = {
        "gridcolor": GRID[mode],
        "linecolor": GRID[mode],
        "zerolinecolor": GRID[mode],
        "ticks": "outside",
        "tickcolor": GRID[mode],
        "title": {"standoff": 8, "font": {"size": 14}},
        "tickfont": {"size": 13},
        "automargin": True,
    }
    return {
        "layout": {
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "colorway": list(COLORS.values()),
            "font": {
                "family": "'Source Sans 3 Variable', 'Source Sans 3', system-ui, sans-serif",
                "size": 14,
                "color": INK[mode],
            },
            "hoverlabel": {"bgcolor": PAPER[mode], "bordercolor": GRID[mode], "font": {"color": INK[mode]}},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
            "margin": {"l": 56, "r": 16, "t": 24, "b": 48},
            "xaxis": axis,
            "yaxis": axis,
        }
    }
