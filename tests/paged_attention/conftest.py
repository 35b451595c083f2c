"""Requests for the cache manager."""

from dataclasses import dataclass, field

import pytest


@dataclass
class Request:
    request_id: object
    token_ids: list | None
    num_computed_tokens: int = 0
    cache_salt: object = None
    retention_priority: int = 0
    block_hashes: list = field(default_factory=list)
    length: int = 0

    @property
    def num_tokens(self):
        return self.length if self.token_ids is None else len(self.token_ids)


@pytest.fixture(name="request_of")
def request_of_fixture():
    """Make a request: ``request_of(name, tokens)`` with tokens as a list, or a count of unhashed ones."""

    def make(name, tokens, **more):
        if isinstance(tokens, int):
            return Request(name, None, length=tokens, **more)
        return Request(name, list(tokens), **more)

    return make


@pytest.fixture(name="admit")
def admit_fixture():
    """Admit a request as a scheduler does, all its tokens in one step; how many were found in the cache."""

    def admit(manager, request):
        found, tokens = manager.get_computed_blocks(request)
        if manager.allocate_slots(request, request.num_tokens - tokens, found) is None:
            return None
        request.num_computed_tokens = request.num_tokens
        return tokens

    return admit
