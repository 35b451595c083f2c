"""Random traffic for schedulers, and the log of what they decide."""

from random import Random

from gpuedu.continuous_batching.plan import POLICIES, PREEMPTIONS, SchedulerConfig, Sequence


def random_case(seed):
    """A configuration, blocks, block size, host blocks and arrivals by iteration."""
    random = Random(seed)
    block_size, blocks = random.choice([1, 4, 16]), random.choice([12, 40, 200, 2000])
    capacity = block_size * blocks
    config = SchedulerConfig(
        max_num_seqs=random.choice([1, 3, 8, 64]),
        max_num_batched_tokens=random.choice([4, 16, 64, 512]),
        long_prefill_token_threshold=random.choice([0, 0, 5, 33]),
        reserve_full_prompt=random.random() < 0.5,
        watermark=random.choice([0, 0, 0.1]),
        policy=random.choice(POLICIES),
        preemption=random.choice(PREEMPTIONS),
        starvation_limit=random.choice([1, 4, 50]),
    )
    arrivals = {}
    for number in range(random.choice([3, 20, 60])):
        iteration = random.choice([0, random.randrange(300)])
        prompt = random.randint(1, min(100, max(1, capacity // 2)))
        output = random.randint(1, min(60, max(1, capacity - prompt)))
        arrivals.setdefault(iteration, []).append(
            {
                "request_id": number,
                "prompt_tokens": prompt,
                "max_tokens": output,
                "priority": random.randrange(3),
                "arrival": iteration + number * 1e-4,
                "client": random.randrange(3),
                "predicted_tokens": max(1, output + random.randint(-5, 5)),
            }
        )
    return config, blocks, block_size, random.choice([0, 7, 14]), arrivals


def decisions(scheduler, arrivals, *, leap):
    """Every iteration: who computes what, who comes and goes; and how many decisions it took."""
    iteration, log, made = 0, [], 0
    pending = sorted(arrivals)
    while pending or scheduler.has_work():
        while pending and pending[0] <= iteration:
            for request in arrivals[pending.pop(0)]:
                scheduler.add(Sequence(**request))
        decision = scheduler.schedule()
        made += 1
        assert made < 100_000, "this goes on for ever"
        if decision.is_empty:
            iteration = pending[0]
            continue
        steps = decision.steps if leap else 1
        if pending:
            steps = min(steps, pending[0] - iteration)
        scheduled = decision.num_scheduled_tokens
        before = (
            [sequence.request_id for sequence in decision.admitted],
            [sequence.request_id for sequence in decision.preempted],
            (decision.swapped_in, decision.swapped_out),
            decision.context_tokens,
        )
        finished = {sequence.request_id for sequence in scheduler.update(decision, steps)}
        for step in range(steps):
            log.append(
                (
                    iteration + step,
                    scheduled,
                    before if step == 0 else None,
                    finished if step == steps - 1 else set(),
                )
            )
        iteration += steps
    return log, made


def without_context(log):
    """The log of a leap has the context of its first iteration alone."""
    return [
        (iteration, scheduled, before and before[:3], finished)
        for iteration, scheduled, before, finished in log
    ]


def dense(log):
    """Drop what only the first iteration of a decision has, where nobody came or went."""
    nothing = ([], [], (0, 0))
    return [
        (iteration, scheduled, None if before == nothing else before, finished)
        for iteration, scheduled, before, finished in without_context(log)
    ]
