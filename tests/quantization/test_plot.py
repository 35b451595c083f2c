"""The figures show the plans, the prices and what was measured; every control does what it says."""

import importlib.util
import json
from math import log10
from pathlib import Path
from time import perf_counter

import pytest
import torch

from gpuedu.explorer import Choice, Integer, Real, Switch
from gpuedu.hardware import GPUS
from gpuedu.quantization.cost import decode_step, prefill, weight_bytes
from gpuedu.quantization.plan import FORMATS, gptq, integer_format, peaks, rounded_product, smoothing_scales
from gpuedu.quantization.plot import gptq_steps, outliers, tradeoff
from gpuedu.quantization.plot.measured import MEASURED
from gpuedu.transformer import MODELS

ROOT = Path(__file__).resolve().parents[2]
EXPLORERS = (gptq_steps, outliers, tradeoff)
PRESETS = [
    pytest.param(explorer, preset, id=f"{explorer.id}-{preset.name}")
    for explorer in EXPLORERS
    for preset in explorer.presets
]


def trace(figure, name):
    (found,) = [t for t in figure["data"] if t.get("name") == name]
    return found


# GPTQ, column by column --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["rtn", "gptq", "act_order"])
@pytest.mark.parametrize("loud", [0, 3])
def test_points_are_the_states_of_the_log(method, loud):
    from gpuedu.quantization.plot.gptq_steps import _hessian

    values = gptq_steps.defaults | {"method": method, "loud": loud, "bits": "3"}
    weights = trace(gptq_steps.figure(**values | {"step": 0}), "weight at first")["y"]
    log = gptq([weights], _hessian(values["shared"], loud), 3, act_order=method == "act_order",
               compensate=method != "rtn")  # fmt: skip
    for step in range(17):
        figure = gptq_steps.figure(**values | {"step": step})
        state = log.state(step)[0]
        stored, waits = trace(figure, "stored"), trace(figure, "waits, with errors of others")
        shown = dict(zip(stored["x"] + waits["x"], stored["y"] + waits["y"], strict=True))
        assert [shown[j] for j in range(16)] == pytest.approx(list(state))
        assert stored["x"] == [d.column for d in log.decisions[:step]]
        moved = trace(figure, "moved in this step")["y"]
        assert moved == pytest.approx(list(log.decisions[step - 1].updates[0]) if step else [0.0] * 16)
        curve = figure["data"][-2]
        assert curve["y"] == pytest.approx([log.output_error(k) for k in range(step + 1)])


def test_inputs_of_the_explorer_have_the_variance_that_it_says():
    from gpuedu.quantization.plot.gptq_steps import LOUD, _hessian

    for shared, loud in ((0.0, 0), (0.8, 0), (0.95, 4)):
        covariance = torch.tensor(_hessian(shared, loud)) / 2
        assert covariance.diagonal().tolist() == pytest.approx([1.0] * (16 - loud) + [LOUD**2] * loud)
        eigenvalues = torch.linalg.eigvalsh(covariance)
        assert eigenvalues.min() > 0.04
        if shared == 0:
            assert torch.equal(covariance, torch.diag(covariance.diagonal()))
        else:  # beside what each input has of its own, there are as many signals as it says
            assert (eigenvalues > 1.5).sum() == 3


def test_finished_picture_sums_up_all_moves():
    figure = gptq_steps.figure(**gptq_steps.defaults | {"step": None})
    total = trace(figure, "moved in all")["y"]
    steps = [
        trace(gptq_steps.figure(**gptq_steps.defaults | {"step": k}), "moved in this step")["y"]
        for k in range(1, 17)
    ]
    assert total == pytest.approx([sum(column) for column in zip(*steps, strict=True)])
    told = [row[5] for row in gptq_steps.table(**gptq_steps.defaults).rows]
    assert trace(figure, "stored")["y"] == pytest.approx(told, abs=1e-4)


def test_grid_lines_are_the_values_a_column_can_have():
    values = gptq_steps.defaults | {"group": "8", "bits": "2", "step": 16}
    lines = gptq_steps.figure(**values)["data"][0]
    by_column = {}
    for x, y in zip(lines["x"][::3], lines["y"][::3], strict=True):
        by_column.setdefault(round(x + 0.42), []).append(y)
    assert set(map(len, by_column.values())) == {4}
    assert by_column[0] == by_column[7] != by_column[8] == by_column[15]
    stored = trace(gptq_steps.figure(**values), "stored")
    for column, value in zip(stored["x"], stored["y"], strict=True):
        assert value in by_column[column]


def test_the_story_of_gptq():
    error = {}
    for preset in gptq_steps.presets:
        values = gptq_steps.values_of(preset)
        rounded = gptq_steps.table(**values | {"method": "rtn"}).rows[-1][-1]
        error[preset.name] = gptq_steps.table(**values).rows[-1][-1] / rounded
    assert error["rtn"] == error["uncorrelated"] == 1
    assert error["gptq"] < 0.25 and error["two_bits"] < 0.25
    assert error["act_order"] < 0.2 < 0.7 < error["loud"]


# Outliers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["token", "tensor"])
@pytest.mark.parametrize("outlier, channels", [(1.0, 1), (60.0, 1), (100.0, 3)])
def test_error_is_that_of_the_rounded_product(per, outlier, channels):
    from gpuedu.quantization.plot.outliers import _activations, _loud, _weights

    x, w = _activations(outlier, channels), _weights()
    exact = torch.tensor(x, dtype=torch.float64) @ torch.tensor(w, dtype=torch.float64).T
    quiet = torch.tensor(x, dtype=torch.float64)
    if outlier > 1:
        quiet[:, list(_loud(channels))] = 0
    part = (quiet @ torch.tensor(w, dtype=torch.float64).T).square().mean().sqrt()
    for smooth, alpha in ((False, 0.5), (True, 0.3)):
        scales = smoothing_scales(peaks(x), peaks(w), alpha) if smooth else [1.0] * 24
        product = rounded_product(x, w, scales, per_tensor=per == "tensor")
        off = torch.tensor(product, dtype=torch.float64) - exact
        expected = 100 * off.square().mean().sqrt() / part
        values = {"outlier": outlier, "channels": channels, "per": per, "smooth": smooth, "alpha": alpha}
        (mark,) = outliers.figure(**outliers.defaults | values)["data"][-1]["y"]
        assert mark == pytest.approx(expected.item())


def test_smoothing_moves_the_bars_and_not_their_product():
    values = outliers.defaults | {"outlier": 60.0, "smooth": True, "alpha": 0.5}
    figure = outliers.figure(**values)
    first, after = ([trace(figure, f"{what}, {when}")["y"] for what in ("activations", "weights")]
                    for when in ("as they were", "as rounded"))  # fmt: skip
    products = [[a * w for a, w in zip(*pair, strict=True)] for pair in (first, after)]
    assert products[0] == pytest.approx(products[1])
    assert after[0] == pytest.approx(after[1])  # at one half, both have the same peaks
    assert max(after[0]) < max(first[0]) / 5


def test_the_story_of_outliers():
    error = {p.name: outliers.figure(**outliers.values_of(p))["data"][-1]["y"][0] for p in outliers.presets}
    assert error["clean"] < 1 < 10 < error["one"] < error["tensor"]
    assert error["half"] < 3 < error["all"] < error["one"]


# Bits, quality and speed -------------------------------------------------------------------------------


def test_what_was_measured_is_what_the_package_carries():
    spec = importlib.util.spec_from_file_location(
        "quantization_table", ROOT / "measurements" / "quantization_table.py"
    )
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    report = json.loads(table.SOURCE.read_text())
    assert table.TARGET.read_text() == table.module(report)
    assert [tuple(m) for m in MEASURED] == table.rows(report)
    for m, result in zip(MEASURED, report["results"], strict=True):
        for domain, perplexity in result["perplexity"].items():
            assert getattr(m, domain) == pytest.approx(perplexity, rel=1e-3)


@pytest.mark.parametrize("small", ["smollm2", "tinylm"])
@pytest.mark.parametrize("calibration", ["mixed", "speeches", "docs"])
@pytest.mark.parametrize("text", ["speeches", "moby_dick", "docs"])
def test_points_are_the_measurements(small, calibration, text):
    figure = tradeoff.figure(**tradeoff.defaults | {"small": small, "calibration": calibration, "text": text})
    (full,) = [m for m in MEASURED if m.model == small and m.method == "fp32"]
    drawn_times = 0  # points of several draws of calibration texts
    for method, name in (("rtn", "To nearest"), ("gptq", "GPTQ"), ("awq", "AWQ")):
        drawn = trace(figure, name)
        assert drawn["x"] == sorted(drawn["x"])
        assert {bits for bits, *_ in drawn["customdata"]} == {8, 4, 3, 2}
        for x, y, (bits, group, _) in zip(drawn["x"], drawn["y"], drawn["customdata"], strict=True):
            size = None if group == "per channel" else int(group.split()[-1])
            found = [
                m for m in MEASURED
                if (m.model, m.method, m.bits, m.group) == (small, method, bits, size)
                and m.calibration in ((None,) if method == "rtn" else (calibration, "mixed"))
                and (bits == 8 or m.calibration in (None, calibration))
            ]  # fmt: skip
            assert {m.bits_per_weight for m in found} == {x}
            assert len({m.seed for m in found}) == len(found)
            drawn_times += len(found) > 1
            mean = sum(getattr(m, text) for m in found) / len(found)
            assert y == pytest.approx(min(8.0, mean / getattr(full, text)))
    assert drawn_times == (calibration != "docs")


@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize("batch, tokens", [(1.0, 2048.0), (64.0, 500.0)])
def test_bars_are_the_prices(phase, batch, tokens):
    values = tradeoff.defaults | {"phase": phase, "batch": batch, "tokens": tokens, "gpu": "B200"}
    figure = tradeoff.figure(**values)
    model, gpu = MODELS["llama-3-8b"], GPUS["B200"]
    named = {"BF16": FORMATS["bf16"], "FP8": FORMATS["fp8"], "NVFP4": FORMATS["nvfp4"]}
    for name, format in (named | {"4 bits": integer_format(4, 64)}).items():
        work = (
            prefill(model, gpu, format, int(tokens))
            if phase == "prefill"
            else decode_step(model, gpu, format, int(batch), int(tokens))
        )
        at = trace(figure, "memory: weights")["y"].index(name)
        stacked = sum(trace(figure, part)["x"][at] for part in ("memory: weights", "memory: cache"))
        assert stacked == pytest.approx(1e3 * work.memory_s)
        assert trace(figure, "tensor cores")["x"][at] == pytest.approx(1e3 * work.compute_s)


def test_takeaway_names_the_gain_and_the_price():
    said = tradeoff.takeaway(**tradeoff.defaults)
    size = weight_bytes(MODELS["llama-3-8b"], integer_format(4, 64)) / 1e9
    assert f"{size:.3g} GB" in said and "times** as fast" in said and "times** the perplexity" in said
    assert "**no faster**" in tradeoff.takeaway(**tradeoff.defaults | {"phase": "prefill"})


# All of them -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("explorer, preset", PRESETS)
def test_every_enabled_control_changes_something_and_no_disabled_one_does(explorer, preset):
    values = explorer.values_of(preset)
    unused = explorer.unused(**values) if explorer.unused else ()
    seen = (explorer.figure(**values), explorer.takeaway(**values))
    for control in explorer.controls:
        if isinstance(control, Choice):
            others = list(control.options)
        elif isinstance(control, Integer | Real):
            others = [control.low, control.high]
        elif isinstance(control, Switch):
            others = [False, True]
        else:
            others = [0, explorer.steps(**values)]
        moved = [values | {control.name: other} for other in others]
        changed = any((explorer.figure(**m), explorer.takeaway(**m)) != seen for m in moved)
        assert changed != (control.name in unused), control.name


@pytest.mark.parametrize("explorer, preset", PRESETS)
def test_everything_shown_is_json_and_names_its_numbers(explorer, preset):
    shown = json.loads(explorer.show_json(explorer.values_of(preset)))
    assert "**" in shown["takeaway"] and shown["takeaway"].endswith(".")
    assert shown["table"]["rows"]


@pytest.mark.parametrize("explorer", EXPLORERS, ids=lambda e: e.id)
def test_a_move_takes_little_time_and_few_elements(explorer):
    for preset in explorer.presets:
        values = explorer.values_of(preset)
        start = perf_counter()
        figure = explorer.show(values, table=False)["figure"]
        assert perf_counter() - start < 0.5
        assert len(figure["data"]) <= 12
        marks = sum(
            len(t["x"]) for t in figure["data"] if t["type"] == "bar" or "markers" in t.get("mode", "")
        )
        assert marks < 150


@pytest.mark.parametrize("explorer", EXPLORERS, ids=lambda e: e.id)
def test_logarithmic_axes_hold_their_points(explorer):
    for preset in explorer.presets:
        figure = explorer.figure(**explorer.values_of(preset))
        for name, axis in figure["layout"].items():
            if name.startswith("yaxis") and axis.get("type") == "log":
                short = name.replace("axis", "")
                ys = [y for t in figure["data"] if t.get("yaxis", "y") == short for y in t["y"]]
                low, high = axis["range"]
                assert all(low <= log10(y) <= high for y in ys), (preset.name, name)
