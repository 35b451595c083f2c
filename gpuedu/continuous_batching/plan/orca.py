"""Orca: iteration-level scheduling, with memory for a whole request reserved when it begins."""

from __future__ import annotations

from collections.abc import Collection

from gpuedu.checks import check_count

from .decision import SchedulerConfig
from .leaping import LeapingVLLMScheduler
from .sequence import Sequence

RESERVATIONS = ("max", "pow2", "oracle")


class SlotReservations:
    """A KV cache in which a sequence reserves all its slots at once, in one piece.

    Parameters
    ----------
    num_slots : int
        Tokens that the cache holds.
    max_model_len : int
        Tokens that a sequence can have.
    reservation : str
        ``"max"``: slots for ``max_model_len`` tokens. ``"pow2"``: for the prompt and the output rounded up
        to a power of two. ``"oracle"``: for the prompt and the output, known beforehand.

    Raises
    ------
    TypeError, ValueError
        For a count that is no int of at least 1, and a reservation of another name.

    Notes
    -----
    Slots are counted, and where they lie is left out: what fragmentation takes besides is the matter of
    ``gpuedu.paged_attention``.

    References
    ----------
    Kwon et al. Efficient memory management for large language model serving with PagedAttention.
    SOSP 2023, section 6.1, names the three.
    """

    block_size = 1

    def __init__(self, num_slots: int, max_model_len: int, reservation: str = "max") -> None:
        check_count("num_slots", num_slots)
        check_count("max_model_len", max_model_len)
        if reservation not in RESERVATIONS:
            raise ValueError(f"reservation={reservation!r}: must be one of {', '.join(RESERVATIONS)}")
        self.num_blocks = self.num_free_blocks = num_slots
        self.max_model_len = max_model_len
        self.reservation = reservation
        self._reserved: dict[object, int] = {}

    @property
    def usage(self) -> float:
        """Share of the slots that are reserved."""
        return 1 - self.num_free_blocks / self.num_blocks

    def slots(self, sequence: Sequence) -> int:
        """Slots that a sequence reserves."""
        if self.reservation == "max":
            return self.max_model_len
        output = sequence.max_tokens
        if self.reservation == "pow2":
            output = 1 << (output - 1).bit_length()
        return min(sequence.prompt_tokens + output, self.max_model_len)

    def get_computed_blocks(self, sequence: Sequence) -> tuple[tuple[int, ...], int]:
        """Cached slots and tokens: always none."""
        return (), 0

    def blocks_to_allocate(self, sequence: Sequence, num_new_tokens: int) -> int:
        """Slots that the sequence lacks: all or none."""
        return 0 if sequence.request_id in self._reserved else self.slots(sequence)

    def allocate_slots(
        self, sequence: Sequence, num_new_tokens: int, computed_blocks: Collection[int] = ()
    ) -> int | None:
        """Reserve at the first call; returns the slots reserved, None if they are not there."""
        needed = self.blocks_to_allocate(sequence, num_new_tokens)
        if needed > self.num_free_blocks:
            return None
        if needed:
            self._reserved[sequence.request_id] = needed
            self.num_free_blocks -= needed
        return needed

    def free(self, sequence: Sequence) -> None:
        """Take back a sequence's slots; KeyError if it has none."""
        if sequence.request_id not in self._reserved:
            raise KeyError(f"request_id={sequence.request_id!r}: has no slots")
        self.num_free_blocks += self._reserved.pop(sequence.request_id)

    def join(self, sequence: Sequence) -> None:
        """Who decodes has its slots already."""

    def leave(self, sequence: Sequence) -> None:
        """Who stops decoding keeps its slots."""

    def blocks_for_iterations(self, iterations: int) -> int:
        """Slots that decoding takes: none."""
        return 0

    def iterations_that_fit(self, limit: int) -> int:
        """Decoding never lacks a slot."""
        return limit

    def advance(self, iterations: int) -> None:
        """Decoding takes no slots."""


class OrcaScheduler(LeapingVLLMScheduler):
    """Iteration-level scheduling as in Orca: newcomers join at any iteration, nobody is preempted.

    Parameters
    ----------
    max_num_seqs : int
        Sequences that run at once (Orca's ``max_bs``).
    num_slots : int
        Tokens that the KV cache holds (Orca's ``n_slots``).
    max_model_len : int
        Tokens that a sequence can have.
    reservation : str
        ``"max"``, ``"pow2"`` or ``"oracle"``: see :class:`SlotReservations`.

    Notes
    -----
    A prompt is computed in one iteration, whatever its length, together with everybody's decoding.
    Requests begin as they came, each when a place and its slots are free.

    References
    ----------
    Yu et al. Orca: a distributed serving system for transformer-based generative models. OSDI 2022,
    algorithm 1.

    Examples
    --------
    >>> scheduler = OrcaScheduler(8, num_slots=100, max_model_len=60)
    >>> for name in "ab":
    ...     _ = scheduler.add(Sequence(name, prompt_tokens=10, max_tokens=3))
    >>> scheduler.schedule().admitted  # two would need 120 slots
    [Sequence('a': 0 of 10 computed)]
    """

    def __init__(
        self, max_num_seqs: int, num_slots: int, max_model_len: int, reservation: str = "max"
    ) -> None:
        check_count("max_num_seqs", max_num_seqs)
        kv = SlotReservations(num_slots, max_model_len, reservation)
        config = SchedulerConfig(
            max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_seqs * max_model_len
        )
        super().__init__(config, kv)

    def _check_servable(self, sequence: Sequence) -> None:
        tokens = sequence.prompt_tokens + sequence.max_tokens
        if tokens > self.kv.max_model_len:
            raise ValueError(
                f"request_id={sequence.request_id!r}: prompt_tokens={sequence.prompt_tokens} and "
                f"max_tokens={sequence.max_tokens} are {tokens}, must be at most "
                f"max_model_len={self.kv.max_model_len}"
            )
        slots = self.kv.slots(sequence)
        if slots > self._capacity:
            raise ValueError(
                f"request_id={sequence.request_id!r}: reserves {slots} slots, must be at most the KV "
                f"cache's {self._capacity}"
            )

    def _fits(self, sequence: Sequence, tokens: int, hits: Collection[int]) -> bool:
        return self.kv.slots(sequence) <= self.kv.num_free_blocks
