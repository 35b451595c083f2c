"""A slow simulator of one replica, written apart: one iteration at a time, floats, every token noted."""

from gpuedu.continuous_batching.plan import Sequence


def serve(requests, scheduler, step_cost):
    """Times of every token of every request, by id."""
    pending = sorted(requests, key=lambda request: request.arrival_s)
    now, tokens = 0.0, {request.request_id: [] for request in requests}
    while pending or scheduler.has_work():
        if not scheduler.has_work():
            now = max(now, pending[0].arrival_s)
        while pending and pending[0].arrival_s <= now:
            request = pending.pop(0)
            scheduler.add(
                Sequence(
                    request.request_id,
                    request.prompt_tokens,
                    request.output_tokens,
                    priority=request.priority,
                    arrival=request.arrival_s,
                    client=request.client,
                )
            )
        decision = scheduler.schedule()
        context = sum(sequence.num_computed_tokens for sequence in decision.decodes)
        chunks = [(count, sequence.num_computed_tokens) for sequence, count in decision.chunks]
        now += step_cost.seconds(len(decision.decodes), context, chunks)
        now += step_cost.swap_seconds(decision.swapped_in + decision.swapped_out)
        computing = [*decision.decodes, *(sequence for sequence, _ in decision.chunks)]
        before = [sequence.num_tokens for sequence in computing]
        scheduler.update(decision)
        for sequence, count in zip(computing, before, strict=True):
            if sequence.num_tokens > count:
                tokens[sequence.request_id].append(now)
    return tokens
