"""The declaration of an explorer, and its face in a notebook."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuedu.explorer import Choice, Explorer, Integer, Preset, Real, Step, Switch, Table, answer, load

PIPELINE = "gpuedu.pipeline_parallel.plot:explorer"


def figure(*, shape, n, size, on, step):
    if shape == "line" and n > 5:
        raise ValueError(f"n={n}: a line must have at most 5 points")
    upto = n if step is None else step
    y = [size / 3 + i + on for i in range(upto)]
    extra = {"marker": {"color": "red"}} if shape == "bars" else {"mode": "lines"}
    return {
        "data": [{"type": "bar" if shape == "bars" else "scatter", "y": y, **extra}],
        "layout": {"height": 200, "xaxis": {"range": [0, n]}} | ({"bargap": 0} if on else {}),
    }


EXPLORER = Explorer(
    id="toy",
    title="A toy",
    controls=(
        Choice("shape", "Shape", {"bars": "Bars", "line": "A line"}, "bars"),
        Integer("n", "Count", 1, 8, 4, unit="pieces"),
        Real("size", "Size", 0.003, 3000, 1, 0.1, scale="log"),
        Switch("on", "On"),
        Step("step", "Step"),
    ),
    presets=(
        Preset("few", "Few"),
        Preset("many", "Many", {"n": 8}),
        Preset("line", "Line", {"shape": "line"}),
    ),
    figure=figure,
    takeaway=lambda *, n, **_: f"**{n}** < 9 pieces.",
    table=lambda *, n, **_: Table(("piece", "third"), tuple((i, i / 3) for i in range(n))),
    steps=lambda *, n, **_: n,
    unused=lambda *, on, **_: ("size",) if on else (),
)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("shape", "round", "bars, line"),
        ("shape", ["bars"], "bars, line"),
        ("n", 0, "from 1 to 8"),
        ("n", 9, "from 1 to 8"),
        ("n", 2.5, "whole"),
        ("n", True, "whole"),
        ("n", math.nan, "whole"),
        ("n", math.inf, "whole"),
        ("n", "4", "whole"),
        ("size", 0.0029, "from 0.003 to 3000"),
        ("size", math.nan, "from 0.003 to 3000"),
        ("size", "1", "a number"),
        ("size", True, "a number"),
        ("on", 1, "true or false"),
        ("step", -1, ">= 0"),
        ("step", 1.5, "whole"),
        ("step", 5, "from 0 to 4"),
    ],
)
def test_bad_value_is_refused_by_name_and_with_what_is_allowed(name, value, says):
    with pytest.raises(ValueError, match=f"^{name}=") as error:
        EXPLORER.show(EXPLORER.defaults | {name: value})
    assert says in str(error.value)


def test_values_must_be_complete_and_known():
    with pytest.raises(ValueError, match="size"):
        EXPLORER.show({k: v for k, v in EXPLORER.defaults.items() if k != "size"})
    with pytest.raises(ValueError, match="other"):
        EXPLORER.show(EXPLORER.defaults | {"other": 1})


@pytest.mark.parametrize(
    "change",
    [
        {"controls": (*EXPLORER.controls, Switch("n", "Again"))},
        {"controls": (*EXPLORER.controls, Switch("preset", "What links use"))},
        {"presets": (Preset("few", "Few"), Preset("few", "Again"))},
        {"presets": (Preset("few", "Few", {"n": 9}),)},
        {"presets": (Preset("few", "Few", {"unknown": 9}),)},
        {"steps": None},
        {"controls": EXPLORER.controls[:-1]},
        {"controls": (*EXPLORER.controls, Step("another", "Another"))},
    ],
)
def test_declaration_that_contradicts_itself_is_refused(change):
    with pytest.raises(ValueError, match=r"toy|n=9"):
        replace(EXPLORER, **change)


VALUES = st.fixed_dictionaries(
    {
        "shape": st.sampled_from(["bars", "line"]),
        "n": st.integers(1, 8),
        "size": st.floats(0.003, 3000),
        "on": st.booleans(),
        "step": st.none() | st.integers(0, 1),
    }
)


@given(VALUES)
def test_json_says_what_show_says(values):
    try:
        shown = EXPLORER.show(values)
    except ValueError as error:
        with pytest.raises(ValueError, match="at most 5"):
            EXPLORER.show_json(values)
        assert "at most 5" in str(error)
        return
    sent = json.loads(EXPLORER.show_json(values))
    assert sent["values"] == values  # exactly: what a link says is what is shown
    for name in ("figure", "takeaway", "steps", "unused"):
        assert sent[name] == shown[name]
    assert sent["table"]["rows"] == [[str(i), f"{i / 3:.6g}"] for i in range(values["n"])]


def test_worker_is_told_why_values_cannot_be_shown():
    values = load(PIPELINE).defaults
    assert json.loads(answer(PIPELINE, json.dumps(values), False))["values"] == values
    assert "p=0" in json.loads(answer(PIPELINE, json.dumps(values | {"p": 0}), False))["error"]
    with pytest.raises(AttributeError):  # a bug is not a message to the reader
        answer(PIPELINE + "s", json.dumps(values), False)


def test_figure_that_is_no_json_is_refused():
    broken = replace(EXPLORER, figure=lambda **_: {"data": [{"y": [math.inf]}], "layout": {}})
    with pytest.raises(ValueError, match="JSON"):
        broken.show_json(broken.defaults)


@pytest.mark.parametrize("preset", load(PIPELINE).presets, ids=lambda p: p.name)
def test_every_preset_of_the_pipeline_shows(preset):
    explorer = load(PIPELINE)
    shown = explorer.show(explorer.values_of(preset))
    assert shown["figure"]["data"] and "**" in shown["takeaway"] and shown["table"]["rows"]


# ---- in a notebook ----


@pytest.fixture
def widget():
    return pytest.importorskip("gpuedu.explorer_widgets").show(EXPLORER)


def drawn(box):
    """The figure that the widget holds, without what Plotly adds."""
    held = box.figure.to_dict()
    held["layout"].pop("template")
    for trace in held["data"]:
        trace.pop("uid", None)
        trace["y"] = list(trace["y"])
    held["layout"].get("xaxis", {})["range"] = list(held["layout"]["xaxis"]["range"])
    return {"data": held["data"], "layout": held["layout"]}


def chosen(box):
    """The presets whose buttons stand out."""
    return [name for name, button in box.presets.items() if button.button_style]


def agrees(box, values):
    shown = EXPLORER.show(values)
    assert box.values == values
    assert drawn(box) == shown["figure"]
    assert f"<b>{values['n']}</b> &lt; 9 pieces." in box.takeaway.value
    assert box.error.value == ""


def test_widget_begins_with_what_is_asked(widget):
    agrees(widget, EXPLORER.defaults)
    assert chosen(widget) == ["few"]
    from gpuedu.explorer_widgets import show

    agrees(show(EXPLORER, n=7, on=True), EXPLORER.defaults | {"n": 7, "on": True})
    with pytest.raises(ValueError, match="n=9"):
        show(EXPLORER, n=9)
    with pytest.raises(ValueError, match="theme"):
        show(EXPLORER, theme="sepia")
    dark, light = (
        show(EXPLORER, theme=t).figure.layout.template.layout.font.color for t in ("dark", "light")
    )
    assert dark != light


def test_widget_follows_its_controls(widget):
    widget.controls["n"].value = 5
    agrees(widget, EXPLORER.defaults | {"n": 5})
    assert chosen(widget) == []
    widget.controls["shape"].value = "line"  # another type of trace
    agrees(widget, EXPLORER.defaults | {"n": 5, "shape": "line"})
    widget.controls["on"].value = True
    agrees(widget, EXPLORER.defaults | {"n": 5, "shape": "line", "on": True})
    widget.controls["on"].value = False  # what the figure had for it is gone again
    agrees(widget, EXPLORER.defaults | {"n": 5, "shape": "line"})


def test_widget_presets(widget):
    widget.presets["many"].click()
    agrees(widget, EXPLORER.values_of(EXPLORER.presets[1]))
    assert chosen(widget) == ["many"]
    widget.controls["n"].value = 4
    assert chosen(widget) == ["few"]


def test_widget_keeps_the_last_good_figure_and_says_why(widget):
    widget.presets["line"].click()
    before = drawn(widget)
    widget.controls["n"].value = 8
    assert "n=8: a line must have at most 5 points" in widget.error.value
    assert drawn(widget) == before
    widget.controls["shape"].value = "bars"
    agrees(widget, EXPLORER.defaults | {"n": 8})


def test_widget_disables_what_changes_nothing(widget):
    assert not widget.controls["size"].disabled
    widget.controls["on"].value = True
    assert widget.controls["size"].disabled


def test_widget_steps_end_with_the_finished_picture(widget):
    step = widget.controls["step"]
    assert (step.value, step.max, widget.values["step"]) == (4, 4, None)
    step.value = 2
    agrees(widget, EXPLORER.defaults | {"step": 2})
    step.value = 4
    agrees(widget, EXPLORER.defaults)
    widget.controls["n"].value = 8
    assert (step.value, step.max, widget.values["step"]) == (8, 8, None)


def test_widget_begins_at_the_step_that_is_asked():
    widgets = pytest.importorskip("ipywidgets")
    from gpuedu.explorer_widgets import show

    box = show(EXPLORER, step=2)
    agrees(box, EXPLORER.defaults | {"step": 2})
    (row,) = (w for w in box.children[3].children if isinstance(w, widgets.HBox))
    (play,) = (w for w in row.children if isinstance(w, widgets.Play))
    assert (play.value, play.max) == (2, 4)  # the browser links it to the slider, whose value it would change


def test_widget_reads_a_slider_that_a_browser_has_rounded(widget):
    widget.controls["size"].value = 0.9999999999999999
    agrees(widget, EXPLORER.defaults)
    assert chosen(widget) == ["few"]


@pytest.mark.parametrize("end", ["min", "max"])
def test_widget_reaches_both_ends_of_a_logarithmic_slider(widget, end):
    slider = widget.controls["size"]
    slider.value = slider.base ** getattr(slider, end)
    agrees(widget, EXPLORER.defaults | {"size": {"min": 0.003, "max": 3000.0}[end]})


def test_pipeline_explorer_in_a_notebook():
    show = pytest.importorskip("gpuedu.explorer_widgets").show
    box = show(load(PIPELINE), schedule="1f1b")
    before = box.figure.to_dict()
    box.controls["m"].value = 12
    assert box.error.value == "" and box.figure.to_dict() != before
    for preset in load(PIPELINE).presets:
        box.presets[preset.name].click()
        assert box.error.value == ""
        expected = load(PIPELINE).show(box.values)["figure"]
        assert [t.type for t in box.figure.data] == [t["type"] for t in expected["data"]]
