"""The event loop: requests arrive, decisions are made, carried out, and end."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Items
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random

from gpuedu.checks import check_count
from gpuedu.continuous_batching.plan import Sequence
from gpuedu.serving.metrics import RequestLog
from gpuedu.serving.workload import HASHED_TOKENS, ClosedLoop, Request

from .express import serve_express
from .replica import TICKS, Iterations, Replica, Usage, to_ticks
from .routing import RoundRobin, Router

LATEST_S = 4e6
"""Arrivals are no later: times are kept as whole picoseconds in 64 bits, and serving takes its time."""

LAST_S = (2**63 - 1) / TICKS
_TOO_LONG = f"requests: serving them takes longer than {LAST_S:.2g} s, and picoseconds are kept in 64 bits"

_END, _ASK = 0, 2  # at one tick: decisions end, then requests arrive, then new decisions are made


@dataclass(frozen=True, slots=True)
class SimulationLog:
    """What came of a simulation.

    Parameters
    ----------
    requests : RequestLog
        A row for each request, in the order in which they were given.
    usage : list of Usage
        What each replica did, summed over time.
    iterations : Iterations or None
        Every decision, if it was asked for.
    end_s : float
        When the last request was finished.
    """

    requests: RequestLog
    usage: list[Usage]
    iterations: Iterations | None
    end_s: float


def simulate(
    requests: Items[Request],
    replicas: Items[Replica],
    *,
    router: Router | None = None,
    closed_loop: ClosedLoop | None = None,
    seed: int = 0,
    leap: bool = True,
    record_iterations: bool = False,
) -> SimulationLog:
    """Serve requests on replicas until all are finished.

    Parameters
    ----------
    requests : sequence of Request
        What is asked; ids differ. With a closed loop their times of arrival are not used.
    replicas : sequence of Replica
        New ones: a replica serves one simulation.
    router : Router, optional
        Who gets which request; one after the other by default. Some count on from one simulation to the
        next: give each a new one.
    closed_loop : ClosedLoop, optional
        Its users ask the requests in the order given, each after the answer to the last.
    seed : int
        For what users think.
    leap : bool
        Whether stretches in which a decision holds are computed at once. The log is the same.
    record_iterations : bool
        Whether to keep every decision.

    Returns
    -------
    SimulationLog

    Raises
    ------
    ValueError
        For no replica, no request, ids that are not unlike, a request that cannot be served or comes after
        46 days, serving that takes longer than 106, a replica that has been used, and replicas that share a
        scheduler or a KV cache.

    Notes
    -----
    Time is a whole number of picoseconds, so ties are ties. At one tick decisions end first, then requests
    arrive, then new decisions are made: a request that comes while an iteration runs takes part in the
    next one, as in vLLM. Tokens are seen as they are made, except in a static batch that responds late: its
    first tokens come with the whole answers.

    A decision holds until somebody is finished, blocks run out, or a request arrives that changes it; an
    iteration's time is a straight line in the context, and so the end of any number of iterations is a
    quadratic. The cost of a simulation grows with the number of decisions, not of tokens.

    Examples
    --------
    >>> from gpuedu.continuous_batching.plan import LeapingVLLMScheduler, SchedulerConfig
    >>> from gpuedu.paged_attention.plan.counting import BlockCounter
    >>> from gpuedu.serving.step_cost import LinearStepCost
    >>> from gpuedu.serving.workload import Fixed, Poisson, make_requests
    >>> def replica():
    ...     scheduler = LeapingVLLMScheduler(SchedulerConfig(), BlockCounter(8000))
    ...     return Replica(scheduler, LinearStepCost(0.01, token_s=2e-5, context_s=1e-7))
    >>> requests = make_requests(100, Poisson(10.0), Fixed(500), Fixed(200))
    >>> log = simulate(requests, [replica(), replica()])
    >>> len(log.requests), round(log.end_s, 1), log.usage[0].iterations, log.usage[0].decisions
    (100, 12.3, 1084, 142)
    """
    _check(requests, replicas)
    router = router or RoundRobin()
    if leap and closed_loop is None and not record_iterations:
        log = serve_express(requests, replicas, router)
        if log is not None:
            end_s = max(log.finish_s)
            if end_s > LAST_S:
                raise ValueError(_TOO_LONG)
            return SimulationLog(log, [replica.usage for replica in replicas], None, end_s)
    run = _Run(requests, replicas, router, leap, record_iterations)
    try:
        if closed_loop is None:
            run.open_loop()
        else:
            run.closed_loop(closed_loop, Random(f"{seed} think"))
    except OverflowError as error:
        raise ValueError(_TOO_LONG) from error
    return run.log()


def _check(requests: Items[Request], replicas: Items[Replica]) -> None:
    if not replicas:
        raise ValueError("replicas: must be at least one, are 0")
    if not requests:
        raise ValueError("requests: must be at least one, are 0")
    if len({request.request_id for request in requests}) != len(requests):
        raise ValueError("requests: must have ids that differ")
    if len(set(map(id, replicas))) != len(replicas):
        raise ValueError("replicas: must be objects of their own")
    if len({id(replica.scheduler) for replica in replicas}) != len(replicas):
        raise ValueError("replicas: must have schedulers of their own")
    caches = [id(replica.scheduler.kv) for replica in replicas if replica.scheduler.kv is not None]
    if len(set(caches)) != len(caches):
        raise ValueError("replicas: must have KV caches of their own")
    if any(replica.usage.decisions or replica.outstanding for replica in replicas):
        raise ValueError("replicas: must be new, one has served before")
    latest = max(request.arrival_s for request in requests)
    if latest > LATEST_S:
        raise ValueError(f"arrival_s={latest}: must be at most {LATEST_S:g} s; count from the first arrival")


class _Run:
    """One simulation under way."""

    def __init__(
        self,
        requests: Items[Request],
        replicas: Items[Replica],
        router: Router,
        leap: bool,
        record_iterations: bool,
    ) -> None:
        self.requests = requests
        self.replicas = replicas
        self.router = router
        self.leap = leap
        self.iterations = Iterations() if record_iterations else None
        self.events: list[tuple[int, int, int, int]] = []  # tick, kind, replica, version
        self.arrivals: list[tuple[int, int]] = []  # tick, request; the next one last
        self.thinking: ClosedLoop | None = None
        count = len(requests)
        zeros = bytes(8 * count)
        self.arrival, self.start, self.first, self.end = (array("q", zeros) for _ in range(4))
        self.joined, self.last, self.worst = (array("q", zeros) for _ in range(3))
        self.preemptions, self.cached, self.served_by = (array("q", zeros) for _ in range(3))

    # Arrivals

    def open_loop(self) -> None:
        """Requests come when they come."""
        arrivals = [(to_ticks(request.arrival_s), index) for index, request in enumerate(self.requests)]
        self.arrivals = sorted(arrivals, reverse=True)
        self._loop()

    def closed_loop(self, loop: ClosedLoop, random: Random) -> None:
        """Users ask, wait for the answer, think, and ask again."""
        check_count("users", loop.users)
        self.thinking, self._random, self._asked = loop, random, 0
        for _ in range(min(loop.users, len(self.requests))):
            self._ask_next(0)
        self._loop()

    def _ask_next(self, now: int) -> None:
        if self._asked < len(self.requests):
            tick = now + to_ticks(self.thinking.think(self._random))
            heappush(self.events, (tick, 1, self._asked, 0))
            self._asked += 1

    def _arrive(self, now: int, index: int) -> None:
        request = self.requests[index]
        number = self.router.choose(request, self.replicas)
        replica = self.replicas[number]
        sequence = Sequence(
            request.request_id,
            request.prompt_tokens,
            request.output_tokens,
            token_ids=_tokens(request, index),
            priority=request.priority,
            arrival=now / TICKS,
            client=request.client,
            predicted_tokens=request.predicted_output_tokens,
        )
        sequence.record = index
        self.arrival[index] = now
        self.start[index] = -1
        self.first[index] = -1
        self.served_by[index] = number
        replica.count_until(now)
        replica.outstanding += 1
        replica.outstanding_tokens += request.prompt_tokens + request.output_tokens
        changes = replica.scheduler.add(sequence)
        if replica.decision is None:
            if not replica.asked:
                replica.asked = True
                heappush(self.events, (now, _ASK, number, 0))
        elif changes and replica.steps > 1 and replica.cut(now):
            replica.version += 1
            heappush(self.events, (replica.end_of(replica.steps), _END, number, replica.version))

    # The loop

    def _loop(self) -> None:
        events, arrivals, replicas = self.events, self.arrivals, self.replicas
        while events or arrivals:
            if arrivals and (not events or (arrivals[-1][0], 1) < events[0][:2]):
                self._arrive(*arrivals.pop())
                continue
            now, kind, number, version = heappop(events)
            if kind == 1:
                self._arrive(now, number)
                continue
            replica = replicas[number]
            if kind == _END:
                if version != replica.version:
                    continue
                self._end(now, number, replica)
                if (arrivals and arrivals[-1][0] == now) or (events and events[0][0] == now):
                    replica.asked = True
                    heappush(events, (now, _ASK, number, 0))
                    continue
            replica.asked = False
            self._ask(now, number, replica)

    def _ask(self, now: int, number: int, replica: Replica) -> None:
        """Let a replica decide, and note when the decision will have been carried out."""
        if not replica.begin(now, self.leap):
            return
        decision = replica.decision
        if decision.preempted:
            self._interrupt(decision.preempted, replica, now)
        for sequence in decision.admitted:
            index = sequence.record
            if self.start[index] < 0:
                self.start[index] = now
                self.cached[index] = sequence.num_cached_tokens
        if len(decision.decodes) != replica.in_rhythm:
            self._find_rhythm(replica, now)
        replica.version += 1
        heappush(self.events, (replica.end_of(replica.steps), _END, number, replica.version))

    def _end(self, now: int, number: int, replica: Replica) -> None:
        """A decision has been carried out."""
        decision, outstanding, kv_usage = replica.decision, replica.outstanding, 0.0
        if self.iterations is not None:
            kv_usage = replica.kv_usage()
        finished = replica.finish(now)
        for sequence, _ in decision.chunks:
            if sequence.decoding:
                self._produce(sequence.record, now, replica)
        if finished:
            replica.count_until(now)
            self._depart(finished, now, replica)
        if self.iterations is not None:
            self._record(now, number, replica, outstanding, kv_usage)
        replica.decision = None

    def _produce(self, index: int, now: int, replica: Replica) -> None:
        """A sequence has computed its prompt, or what it had lost: its token is there."""
        if self.first[index] < 0:
            self.first[index] = now
        else:
            self.worst[index] = max(self.worst[index], now - self.last[index])
        self.joined[index] = replica.usage.decisions
        replica.in_rhythm += 1
        replica.fruitless = 0
        replica.usage.output_tokens += 1

    def _depart(self, finished: list[Sequence], now: int, replica: Replica) -> None:
        for sequence in finished:
            index = sequence.record
            self.end[index] = now
            self.preemptions[index] = sequence.num_preemptions
            longest = replica.gaps.longest_after(self.joined[index])
            if longest > self.worst[index]:
                self.worst[index] = longest
            if replica.answers_at_the_end:
                self.first[index], self.worst[index] = now, 0
            replica.outstanding -= 1
            replica.outstanding_tokens -= sequence.prompt_tokens + sequence.max_tokens
            if self.thinking is not None:
                self._ask_next(now)
        replica.in_rhythm -= len(finished)

    # Whose tokens come in rhythm, and whose do not

    def _interrupt(self, sequences: Items[Sequence], replica: Replica, now: int) -> None:
        """Who was preempted produces nothing until it has caught up again."""
        replica.usage.preemptions += len(sequences)
        for sequence in sequences:
            index = sequence.record
            if self.first[index] >= 0 and self.joined[index] >= 0:
                self._fall_out(index, replica, now)

    def _fall_out(self, index: int, replica: Replica, now: int) -> None:
        longest = replica.gaps.longest_after(self.joined[index])
        self.worst[index] = max(self.worst[index], longest)
        self.last[index] = now
        self.joined[index] = -1
        replica.in_rhythm -= 1

    def _find_rhythm(self, replica: Replica, now: int) -> None:
        """Somebody decodes who did not before, or does not who did: look at each."""
        decoding = {sequence.record for sequence in replica.decision.decodes}
        for sequence in replica.scheduler.running:
            index = sequence.record
            if sequence.decoding and index not in decoding and self.joined[index] >= 0:
                self._fall_out(index, replica, now)
        first_end = replica.end_of(1)
        for index in decoding:
            if self.joined[index] < 0:
                self.worst[index] = max(self.worst[index], first_end - self.last[index])
                self.joined[index] = replica.usage.decisions
                replica.in_rhythm += 1

    # What is kept

    def _record(self, now: int, number: int, replica: Replica, outstanding: int, kv_usage: float) -> None:
        rows, decision = self.iterations, replica.decision
        rows.replica.append(number)
        rows.start_s.append(replica.start / TICKS)
        rows.end_s.append(now / TICKS)
        rows.steps.append(replica.steps)
        rows.decodes.append(len(decision.decodes))
        rows.chunk_tokens.append(sum(tokens for _, tokens in decision.chunks))
        rows.padding.append(decision.padding)
        rows.context_tokens.append(decision.context_tokens)
        rows.waiting.append(outstanding - len(decision.decodes) - len(decision.chunks))
        rows.kv_usage.append(kv_usage)

    def log(self) -> SimulationLog:
        """Everything in seconds."""
        log = RequestLog()
        log.request_id = [request.request_id for request in self.requests]
        columns = (
            ("arrival_s", self.arrival),
            ("start_s", self.start),
            ("first_token_s", self.first),
            ("finish_s", self.end),
            ("worst_gap_s", self.worst),
        )
        for name, ticks in columns:
            setattr(log, name, array("d", (tick / TICKS for tick in ticks)))
        log.prompt_tokens = array("q", (request.prompt_tokens for request in self.requests))
        log.output_tokens = array("q", (request.output_tokens for request in self.requests))
        log.preemptions, log.cached_tokens, log.replica = self.preemptions, self.cached, self.served_by
        usage = [replica.usage for replica in self.replicas]
        return SimulationLog(log, usage, self.iterations, max(self.end) / TICKS)


def _tokens(request: Request, index: int) -> list[int] | None:
    """Tokens for the prefix cache: equal in blocks of equal hash, and unlike any others."""
    if not request.hash_ids:
        return None
    tokens = [
        hash_id * HASHED_TOKENS + place for hash_id in request.hash_ids for place in range(HASHED_TOKENS)
    ]
    own = -1 - index * HASHED_TOKENS  # what no hash stands for is the request's alone
    tokens += [own - place for place in range(request.prompt_tokens - len(tokens))]
    return tokens[: request.prompt_tokens]
