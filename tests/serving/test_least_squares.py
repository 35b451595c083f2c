"""Non-negative least squares: against every set of free coefficients, and the conditions of an optimum."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from gpuedu.serving.step_cost.least_squares import fit_seconds, nonnegative


def problem(dice):
    """Columns of length 1, sparse, some nearly or wholly the same, one maybe 0."""
    rows, columns = dice.integers(2, 12), dice.integers(1, 6)
    matrix = dice.uniform(0, 1, (rows, columns)) * (dice.uniform(0, 1, (rows, columns)) < 0.7)
    if columns > 2:
        matrix[:, 1] = matrix[:, 0] * (1 + dice.choice([0, 1e-3]) * dice.normal(size=rows))
    size = np.linalg.norm(matrix, axis=0)
    matrix /= np.where(size > 0, size, 1)
    return matrix, matrix @ dice.normal(size=columns) + dice.choice([0, 0.3]) * dice.normal(size=rows)


def least_error(matrix, wanted):
    """The smallest squared error of any set of columns whose best coefficients are not negative."""
    best = float(wanted @ wanted)
    for count in range(1, matrix.shape[1] + 1):
        for chosen in combinations(range(matrix.shape[1]), count):
            part = matrix[:, chosen]
            found = np.linalg.lstsq(part, wanted, rcond=None)[0]
            if (found >= 0).all():
                best = min(best, float(((part @ found - wanted) ** 2).sum()))
    return best


@pytest.mark.parametrize("seed", range(5))
def test_no_set_of_coefficients_is_better(seed):
    dice = np.random.default_rng(seed)
    for _ in range(150):
        matrix, wanted = problem(dice)
        found = np.array(nonnegative((matrix.T @ matrix).tolist(), (matrix.T @ wanted).tolist()))
        assert (found >= 0).all()
        error = float(((matrix @ found - wanted) ** 2).sum())
        assert error <= least_error(matrix, wanted) + 1e-9 * float(wanted @ wanted)


@pytest.mark.parametrize("seed", range(4))
def test_a_fit_is_the_optimum(seed):
    """The conditions of Karush, Kuhn and Tucker, at the weights that the fit itself gives."""
    dice = np.random.default_rng(seed)
    features = dice.uniform(0, 1, (60, 6)) * (dice.uniform(0, 1, (60, 6)) < 0.7)
    features[:, 0] = 1
    truth = np.array([1.0, 0.5, -0.4, 2.0, 0, 0.1])
    seconds = features @ truth * dice.lognormal(0, 0.3, 60)
    coefficients = np.array(fit_seconds(features.tolist(), seconds.tolist()))
    assert (coefficients >= 0).all() and (coefficients == 0).any()
    weights = features @ coefficients
    gradient = features.T @ ((weights - seconds) / weights**2)
    scale = np.abs(features / weights[:, None]).sum(axis=0)
    assert (np.abs(gradient / scale)[coefficients > 0] < 1e-4).all()
    assert (gradient / scale > -1e-4)[coefficients == 0].all()
