"""Commit, challenge, answer in any order: a state machine over both sides."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from random_prints import prints

from outlay.audit.commitment import Auditor, Challenge, Provider
from outlay.audit.exposure import Limits
from outlay.errors import InputError


class Protocol(RuleBasedStateMachine):
    """Whatever the order of calls: nothing is opened before the commitment, nothing twice."""

    def __init__(self):
        super().__init__()
        self.provider = Provider(prints(), limits=Limits(0.5, 0.8))
        self.auditor = None
        self.asked = {}
        self.answered = set()

    @rule()
    def commit(self):
        held = self.provider.commit()
        if self.auditor is None:
            self.auditor = Auditor(held, 20, seed=0, limits=Limits(0.5, 0.8))
        assert held == self.auditor.commitment

    @precondition(lambda self: self.auditor is None)
    @rule(index=st.integers(0, 19))
    def challenge_before_the_commitment(self, index):
        with pytest.raises(InputError, match="commit before"):
            self.provider.prove(Challenge(bytes(32), bytes(16), (index,)))

    @precondition(lambda self: self.auditor is not None)
    @rule(indices=st.lists(st.integers(0, 19), min_size=1, max_size=4, unique=True))
    def ask(self, indices):
        tokens = self.auditor.asked | set(indices)
        blocks = {index // 4 for index in tokens}
        if self.auditor.asked & set(indices) or len(tokens) > 10 or len(blocks) > 4:
            with pytest.raises(InputError):
                self.auditor.ask(indices)
            return
        challenge = self.auditor.ask(indices)
        self.asked[challenge.nonce] = challenge

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def answer(self, data):
        nonce = data.draw(st.sampled_from(sorted(self.asked)))
        challenge = self.asked[nonce]
        if nonce in self.answered:
            with pytest.raises(InputError, match="answered before"):
                self.provider.prove(challenge)
            with pytest.raises(InputError, match="not open"):
                self.auditor.check(challenge, [])
            return
        self.answered.add(nonce)
        assert self.auditor.check(challenge, self.provider.prove(challenge)).accepted

    @invariant()
    def the_books_agree(self):
        if self.auditor is not None:
            assert self.provider.exposure.tokens <= self.auditor.exposure.tokens
        opened = {i for nonce in self.answered for i in self.asked[nonce].indices}
        assert self.provider.exposure.tokens == opened


test_no_order_of_calls_breaks_the_protocol = Protocol.TestCase
