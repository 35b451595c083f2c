"""An explorer in a notebook: ipywidgets controls over a Plotly figure, computed by the kernel.

Off the page: needs ipywidgets (7.7 or later) and plotly (5.24 or later), the extra ``labs``.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go

from gpuedu.explorer import Choice, Control, Explorer, Integer, Preset, Real, Step, Switch
from gpuedu.style import PAPER, template

WIDE = {"width": "31em"}
LABEL = {"description_width": "15em"}
WRAPPED = {"display": "flex", "flex_flow": "row wrap"}


def show(explorer: Explorer, *, theme: str = "light", **values: Any) -> ExplorerBox:
    """Show ``explorer`` with live controls in JupyterLab or Colab.

    Parameters
    ----------
    explorer : Explorer
        What to show.
    theme : str
        ``"light"`` or ``"dark"``: the Plotly template.
    **values
        Control values to begin with; what is left out is the first preset's.

    Returns
    -------
    ExplorerBox
        The widget.

    Raises
    ------
    ValueError
        For values that the explorer does not allow, or another theme.

    Examples
    --------
    >>> from gpuedu.pipeline_parallel.plot import explorer
    >>> show(explorer, schedule="1f1b", m=16)
    <explorer pipeline-schedule>
    """
    if theme not in ("light", "dark"):
        raise ValueError(f"theme={theme!r}: must be 'light' or 'dark'")
    _enable_colab_widgets()
    chosen = template(theme)
    chosen["layout"]["paper_bgcolor"] = PAPER[theme]  # whatever the notebook's own theme is
    return ExplorerBox(explorer, chosen, explorer.defaults | values)


def _enable_colab_widgets() -> None:
    """Colab shows widgets that are not its own, as Plotly's figure is, only when it is asked to."""
    try:
        from google.colab import output
    except ImportError:
        return
    output.enable_custom_widget_manager()


class ExplorerBox(widgets.VBox):
    """Presets, figure, takeaway and controls of one explorer; made by :func:`show`.

    ``controls`` holds the widget of each control by its name, ``presets`` the button of each preset,
    ``figure`` the Plotly figure widget, ``takeaway`` and ``error`` the two lines of text.
    """

    def __init__(self, explorer: Explorer, plotly_template: dict, values: dict[str, Any]) -> None:
        shown = explorer.show(values)
        self.explorer = explorer
        self.presets = {
            p.name: widgets.Button(description=p.label, layout={"width": "auto"}) for p in explorer.presets
        }
        self.figure = go.FigureWidget(
            data=shown["figure"]["data"],
            layout=shown["figure"]["layout"] | {"template": plotly_template},
        )
        self.figure._config = {"displayModeBar": False}  # it would cover the legend; there is no public way
        self.takeaway = widgets.HTML()
        self.error = widgets.HTML()
        self.controls = {c.name: _widget(c) for c in explorer.controls}
        self._quiet = False
        self._set_controls(shown["values"], shown["steps"])
        self._annotate(shown)

        presets = widgets.Box([*self.presets.values()], layout=WRAPPED)
        rows = widgets.Box([self._row(control) for control in explorer.controls], layout=WRAPPED)
        super().__init__([presets, self.figure, self.takeaway, rows, self.error])
        for preset in explorer.presets:
            self.presets[preset.name].on_click(partial(self._on_preset, preset))
        for control in self.controls.values():
            control.observe(self._on_move, "value")

    def __repr__(self) -> str:
        return f"<explorer {self.explorer.id}>"

    @property
    def values(self) -> dict[str, Any]:
        """The value of every control, as the explorer takes it."""
        return {c.name: _read(c, self.controls[c.name]) for c in self.explorer.controls}

    def _row(self, control: Control) -> widgets.Widget:
        slider = self.controls[control.name]
        if not isinstance(control, Step):
            return slider
        play = widgets.Play(min=0, max=slider.max, value=slider.value, interval=400)
        widgets.link((play, "max"), (slider, "max"))
        widgets.jslink((play, "value"), (slider, "value"))

        def button(icon: str, tooltip: str, change: int) -> widgets.Button:
            made = widgets.Button(icon=icon, tooltip=tooltip, layout=widgets.Layout(width="3em"))

            def move(_: widgets.Button) -> None:
                slider.value = min(max(slider.value + change, 0), slider.max)

            made.on_click(move)
            return made

        back, on = button("step-backward", "Previous step", -1), button("step-forward", "Next step", 1)
        return widgets.HBox([slider, back, play, on])

    def _on_preset(self, preset: Preset, _: widgets.Button) -> None:
        self._try(self.explorer.values_of(preset), moved=False)

    def _on_move(self, change: dict) -> None:
        if not self._quiet:
            self._try(self.values, moved=True)

    def _try(self, values: dict[str, Any], *, moved: bool) -> None:
        """Show ``values``, or say why not and keep the last good figure."""
        try:
            shown = self.explorer.show(values)
        except ValueError as error:
            self.error.value = f'<p role="alert"><b>{html.escape(str(error))}</b></p>'
            return
        if moved:
            self._set_steps(shown["values"], shown["steps"])
        else:
            self._set_controls(shown["values"], shown["steps"])
        self._annotate(shown)
        self._draw(shown["figure"])

    @contextmanager
    def _following(self) -> Iterator[None]:
        """The controls are being set here, not moved by somebody."""
        before, self._quiet = self._quiet, True
        yield
        self._quiet = before

    def _set_controls(self, values: dict[str, Any], steps: int | None) -> None:
        with self._following():
            for control in self.explorer.controls:
                if not isinstance(control, Step):
                    self.controls[control.name].value = values[control.name]
        self._set_steps(values, steps)

    def _set_steps(self, values: dict[str, Any], steps: int | None) -> None:
        """The slider's end, which stands for the finished picture, follows the number of steps."""
        for control in self.explorer.controls:
            if isinstance(control, Step):
                slider, step = self.controls[control.name], values[control.name]
                with self._following():
                    slider.max = max(steps, slider.value)  # a slider never stands beyond its end
                    slider.value = steps if step is None else step
                    slider.max = steps

    def _annotate(self, shown: dict[str, Any]) -> None:
        """Everything but the figure and the values: takeaway, preset, unused controls, no error."""
        self.error.value = ""
        text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(shown["takeaway"]))
        self.takeaway.value = f'<p style="font-size: 1.4em; line-height: 1.35; margin: 0.3em 0">{text}</p>'
        for name, control in self.controls.items():
            control.disabled = name in shown["unused"]
        for preset in self.explorer.presets:
            chosen = self.explorer.values_of(preset) == shown["values"]
            self.presets[preset.name].button_style = "primary" if chosen else ""

    def _draw(self, figure: dict) -> None:
        """Change the figure in one message where the traces keep their types, else replace them."""
        new, old = figure["data"], self.figure.data
        if [t.get("type", "scatter") for t in new] == [t.type for t in old]:
            with self.figure.batch_update():
                for trace, properties in zip(old, new, strict=True):
                    _replace(trace, properties, keep=("type", "uid"))
                _replace(self.figure.layout, figure["layout"], keep=("template",))
            return
        self.figure.add_traces(new)
        self.figure.data = self.figure.data[len(old) :]
        with self.figure.batch_update():
            _replace(self.figure.layout, figure["layout"], keep=("template",))


def _replace(target: Any, properties: dict, keep: tuple[str, ...]) -> None:
    """Give a trace or layout these properties and no others but ``keep``."""
    gone = dict.fromkeys(set(target.to_plotly_json()) - set(properties) - set(keep))
    target.update(gone | {k: v for k, v in properties.items() if k not in keep}, overwrite=True)


def _widget(control: Control) -> widgets.ValueWidget:
    label = f"{control.label} ({control.unit})" if getattr(control, "unit", "") else control.label
    about = {"description": label, "style": LABEL, "layout": WIDE}
    match control:
        case Choice():
            options = [(label, value) for value, label in control.options.items()]
            return widgets.Dropdown(options=options, **about)
        case Integer(low=low, high=high):
            return widgets.IntSlider(control.default, low, high, **about)
        case Real(scale="log", low=low, high=high):
            scale = {"min": math.log10(low), "max": math.log10(high), "step": math.log10(1 + control.step)}
            return widgets.FloatLogSlider(control.default, readout_format=".4g", **scale, **about)
        case Real(low=low, high=high, step=step):
            scale = {"min": low, "max": high, "step": step}
            return widgets.FloatSlider(control.default, readout_format=".4g", **scale, **about)
        case Switch():
            return widgets.Checkbox(**about)
        case Step():
            return widgets.IntSlider(0, 0, 0, **about)


def _read(control: Control, widget: widgets.ValueWidget) -> Any:
    value = widget.value
    if isinstance(control, Step):
        return None if value == widget.max else value
    if isinstance(control, Real):
        # A browser's sliders come back with 7.999999999999999 for 8, and miss their ends by as much
        return min(max(float(f"{value:.12g}"), control.low), control.high)
    return value
