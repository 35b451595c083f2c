"""When requests come: regularly, at random, in bursts, or when users have read the last answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from gpuedu.checks import check_amount, check_count


@dataclass(frozen=True)
class Deterministic:
    """One request every ``1 / rate`` seconds, the first at once."""

    rate: float

    def __post_init__(self) -> None:
        check_amount("rate", self.rate, positive=True)

    def times(self, random: Random) -> Iterator[float]:
        """Arrival times in seconds, without end."""
        count = 0
        while True:
            yield count / self.rate
            count += 1


@dataclass(frozen=True)
class Gamma:
    """Independent gamma-distributed times between arrivals: ``cv`` 1 is Poisson, above it bursty.

    Parameters
    ----------
    rate : float
        Requests a second, on average.
    cv : float
        Coefficient of variation of the times between arrivals. Azure's conversation trace has 1.09, its
        code trace 13.2.
    """

    rate: float
    cv: float

    def __post_init__(self) -> None:
        check_amount("rate", self.rate, positive=True)
        check_amount("cv", self.cv, positive=True)

    def times(self, random: Random) -> Iterator[float]:
        """Arrival times in seconds, without end."""
        shape = self.cv**-2
        scale = 1 / (self.rate * shape)
        now = 0.0
        while True:
            now += random.gammavariate(shape, scale)
            yield now


@dataclass(frozen=True)
class Poisson:
    """Independent users: exponentially distributed times between arrivals."""

    rate: float

    def __post_init__(self) -> None:
        check_amount("rate", self.rate, positive=True)

    def times(self, random: Random) -> Iterator[float]:
        """Arrival times in seconds, without end."""
        draw, rate, now = random.expovariate, self.rate, 0.0
        while True:
            now += draw(rate)
            yield now


@dataclass(frozen=True)
class AllAtOnce:
    """Everybody at time 0: a backlog, as of an offline job."""

    def times(self, random: Random) -> Iterator[float]:
        """Zeros, without end."""
        while True:
            yield 0.0


@dataclass(frozen=True)
class ClosedLoop:
    """So many users, each of whom asks again some time after the last answer.

    A closed loop hides the tail: when the server is slow, fewer requests come. Load tests with a fixed
    number of connections are closed loops.

    Parameters
    ----------
    users : int
        Requests outstanding or thought about, at any time.
    think_s : float
        Mean of the exponentially distributed time between an answer and the next question, in seconds.
    """

    users: int
    think_s: float = 0.0

    def __post_init__(self) -> None:
        check_count("users", self.users)
        check_amount("think_s", self.think_s)

    def think(self, random: Random) -> float:
        """Seconds until a user asks again."""
        return random.expovariate(1 / self.think_s) if self.think_s else 0.0
