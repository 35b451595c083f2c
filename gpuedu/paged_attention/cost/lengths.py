"""Requests of the lengths that vLLM's paper was measured on, as far as it prints them."""

from __future__ import annotations

from gpuedu.serving.workload import AllAtOnce, LogNormal, Request, make_requests


def sharegpt_like(count: int, *, seed: int = 0) -> list[Request]:
    """Chats like ShareGPT's, all waiting at time 0.

    Parameters
    ----------
    count : int
        How many.
    seed : int
        Fixes the draw.

    Returns
    -------
    list
        Of ``gpuedu.serving.workload.Request``. At most 2,048 tokens each, prompt and output together.

    Raises
    ------
    ValueError, TypeError
        If ``count`` is no int of at least 1.

    Notes
    -----
    Log-normal lengths whose two moments follow from the bar "Orca (Max)" of Kwon et al. 2023, Figure 2: the
    reserved share there is half of E[o^2] / E[o] over 2,048 (see :func:`reserved_to_the_maximum`), which
    gives 599 tokens, and tokens less reserved is the mean prompt, 160. The figure's other bars are then
    predictions.

    Examples
    --------
    >>> chats = sharegpt_like(4000)
    >>> outputs = [chat.output_tokens for chat in chats]
    >>> round(sum(o * o for o in outputs) / sum(outputs), -2)
    600.0
    """
    prompt = LogNormal(median=91, sigma=1.3, maximum=548)
    output = LogNormal(median=239, sigma=0.85, maximum=1500)
    return make_requests(count, AllAtOnce(), prompt, output, seed=seed)
