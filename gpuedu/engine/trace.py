"""What a run was like, in the format of the serving simulator's log."""

from __future__ import annotations

from gpuedu.serving.metrics import RequestLog
from gpuedu.serving.step_cost import Iteration, PiecewiseStepCost, fit_piecewise_step_cost
from gpuedu.serving.workload import Request


class Trace:
    """Finished requests and the iterations that served them.

    Attributes
    ----------
    requests : RequestLog
        In the order in which they were finished.
    iterations : list of Iteration
        What each held, and the seconds it took.

    Examples
    --------
    >>> trace = Trace()
    >>> trace.add_iteration(0.5, 3, 120, ((64, 0),))
    >>> trace.iterations[0].chunks
    ((64, 0),)
    """

    def __init__(self) -> None:
        self.requests = RequestLog()
        self.iterations: list[Iteration] = []

    def add_iteration(
        self, seconds: float, decodes: int, context_tokens: int, chunks: tuple[tuple[int, int], ...]
    ) -> None:
        """One more iteration."""
        self.iterations.append(Iteration(seconds, decodes, context_tokens, chunks))

    def fit(self) -> PiecewiseStepCost:
        """The step cost closest to the iterations, by ``fit_piecewise_step_cost``."""
        return fit_piecewise_step_cost(self.iterations)

    def workload(self) -> list[Request]:
        """The requests as they were asked, by arrival: what a simulator takes to replay the run.

        Returns
        -------
        list of Request
            With the names that they had in the engine, so that :func:`~gpuedu.engine.residuals` pairs a
            request with itself. Records do not hold priorities and clients: all are the default's.
        """
        records = sorted(self.requests, key=lambda record: record.arrival_s)
        return [
            Request(
                record.request_id,
                record.arrival_s,
                prompt_tokens=record.prompt_tokens,
                output_tokens=record.output_tokens,
            )
            for record in records
        ]
