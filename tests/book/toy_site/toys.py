"""Two explorers with every kind of control, one that can be wrong in every way."""

from gpuedu.explorer import Choice, Explorer, Integer, Preset, Real, Step, Switch, Table

PHRASE = "<b>&amp;</script>"  # what a page must not take for markup


def bars_figure(*, shape, n, size, gain, extra, step):
    """Bars or a line, of ``n`` points or the first ``step``."""
    if shape == "bars" and n > 30:
        raise ValueError(f"n={n}: bars must be at most 30")
    if n == 13:
        raise RuntimeError("thirteen is a bug")
    upto = n if step is None else step
    y = [size * (i % 7) + gain + (5 if extra else 0) for i in range(upto)]
    trace = {"type": "bar" if shape == "bars" else "scatter", "x": list(range(upto)), "y": y}
    axes = {"xaxis": {"title": {"text": "piece"}}, "yaxis": {"title": {"text": "height (ms)"}}}
    return {"data": [trace], "layout": {"height": 300, **axes}}


bars = Explorer(
    id="toy-bars",
    title="Toy bars",
    controls=(
        Choice("shape", "Shape", {"bars": "Bars", "line": "A line"}, "bars"),
        Integer("n", "Count", 1, 64, 8, unit="pieces", help="how many there are"),
        Real("size", "Size", 0.001, 1000, 1, 0.1, scale="log", unit="ms"),
        Real("gain", "Gain", -1, 1, 0, 0.05),
        Switch("extra", "Extra height", help="adds five"),
        Step("step", "Piece by piece"),
    ),
    presets=(
        Preset("few", "Few"),
        Preset("many", "Many", {"n": 25}),
        Preset("line", f"Line {PHRASE}", {"shape": "line", "n": 40}),
    ),
    figure=bars_figure,
    takeaway=lambda *, n, size, **_: f"**{n} pieces** of {size:g} ms: {PHRASE}.",
    table=lambda *, n, size, **_: Table(("piece", "height"), tuple((i, size * i / 3) for i in range(n))),
    steps=lambda *, n, **_: n,
    unused=lambda *, extra, **_: ("gain",) if extra else (),
)

line = Explorer(
    id="toy-line",
    title="Toy line",
    controls=(Integer("n", "Points", 1, 20000, 10),),
    presets=(Preset("ten", "Ten"), Preset("two", "Two", {"n": 2})),
    figure=lambda *, n: {
        "data": [{"type": "scatter", "x": list(range(n)), "y": list(range(n))}],
        "layout": {},
    },
    takeaway=lambda *, n: f"**{n}** points.",
    table=lambda *, n: Table(("point",), tuple((i,) for i in range(n))),
)
