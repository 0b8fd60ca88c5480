"""SwiReasoning's controller: one sequence's state machine, without torch.

Fed with the entropy and the sampled token of every step, it says which token is written, what is
fed next, and whether the sequence is over. A server can host it: nothing here knows tensors.
arXiv 2510.05069, sections on mode switching and switch-count control; the order of events within a
step is that of the published code.

One event is ours: a sampled end of thinking ends latent mode at once. The published code lets such
a sequence switch once more, which feeds a soft embedding after the end of thinking and may inject a
second one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Literal

from outlay.errors import InputError, ModelError

Mode = Literal["latent", "explicit"]
Anchor = Literal["newline", "think", "end_think"]

START_WEIGHT = 0.9  # of the soft embedding at the first step, where a newline is mixed in


@dataclass(frozen=True)
class Rules:
    """What a controller obeys.

    Args:
        steps: T, most steps; the mixtures' weights grow with t / T.
        end_think_id: the token that ends thinking.
        alpha0: weight of the soft embedding at the first latent entry; 1 mixes nothing in.
        beta0: the same at an exit.
        window: W, least steps of an explicit block that a latent one follows.
        c_max: C_max; None for no limit.
        answer_budget: B, steps left after the termination signal; None for no limit.
        convergence_ids, termination_ids: tokens that the signals inject.
        discrete_ids: tokens that are fed as they are, even in latent mode.
        start_mode: of the first step.
        lock_on_injected: an injected end of thinking locks as a sampled one does.
        start_mix: mix a newline in at the first step.
        think_limit: steps after which thinking that goes on gets the termination signal.
        plan: steps at which the mode switches, whatever the entropy; None for the entropy's rule.
    """

    steps: int
    end_think_id: int
    alpha0: float = 1.0
    beta0: float = 0.7
    window: int = 512
    c_max: int | None = None
    answer_budget: int | None = 32
    convergence_ids: tuple[int, ...] = ()
    termination_ids: tuple[int, ...] = ()
    discrete_ids: AbstractSet[int] = frozenset()
    start_mode: Mode = "latent"
    lock_on_injected: bool = False
    start_mix: bool = True
    think_limit: int | None = None
    plan: AbstractSet[int] | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps={self.steps}; must be at least 1")


@dataclass(frozen=True)
class Decision:
    """What to do after one step.

    Args:
        token: is written; the sampled one, or an injected one.
        soft: weight of the soft embedding in what is fed next; 0 feeds the token's own embedding.
        anchor: the embedding that has the rest of the weight.
        stop: the sequence ends with this token.
        injected: the token was injected.
        mode: after the step.
        entropy, reference: H of the step, and Hbar after it.
        switches: C, switches from latent to explicit so far.
        switched: a switch happened at this step.
        locked: latent mode is over for good.
    """

    token: int
    soft: float
    anchor: Anchor | None
    stop: bool
    injected: bool
    mode: Mode
    entropy: float
    reference: float
    switches: int
    switched: bool
    locked: bool


@dataclass
class SwiController:
    """The state of one sequence; call `step` once a step, with t = 0, 1, ...

    Example:
        >>> controller = SwiController(Rules(steps=100, end_think_id=9, window=4))
        >>> controller.step(2.0, 5, 0).mode, controller.step(1.0, 5, 1).mode
        ('latent', 'explicit')
    """

    rules: Rules
    mode: Mode = field(init=False)
    reference: float = field(default=math.nan, init=False)
    dwell: int = field(default=0, init=False)
    switches: int = field(default=0, init=False)
    locked: bool = field(default=False, init=False)
    closed: bool = field(default=False, init=False)  # an end of thinking was written
    queue: deque[int] = field(default_factory=deque, init=False)
    left: int | None = field(default=None, init=False)  # steps of the answer budget

    def __post_init__(self) -> None:
        self.mode = self.rules.start_mode

    def step(self, entropy: float, sampled: int, t: int) -> Decision:
        """Take in step t, whose forward pass had this entropy (nats) and sampled this token.

        Raises:
            ModelError: for an entropy that is not finite.
        """
        if not math.isfinite(entropy):
            raise ModelError(
                f"step {t}: the entropy of the next token is {entropy}, so the model's logits are "
                "not finite; use another precision (mode='exact')"
            )
        rules = self.rules
        if sampled == rules.end_think_id:
            self._lock()
        token, injected = sampled, bool(self.queue)
        if injected:
            token = self.queue.popleft()
            if rules.lock_on_injected and token == rules.end_think_id:
                self._lock()
        self.closed |= token == rules.end_think_id
        switched = self._switch(entropy, t)
        soft, anchor = self._feed(token, t, switched)
        if switched and self.mode == "explicit":
            self._signal()
        late = rules.think_limit is not None and t + 1 >= rules.think_limit
        if late and not self.closed and not self.queue:
            self._terminate()
        stop = self._count_down()
        return Decision(
            token=token,
            soft=soft,
            anchor=anchor,
            stop=stop,
            injected=injected,
            mode=self.mode,
            entropy=entropy,
            reference=self.reference,
            switches=self.switches,
            switched=switched,
            locked=self.locked,
        )

    def _lock(self) -> None:
        self.locked, self.mode = True, "explicit"

    def _switch(self, entropy: float, t: int) -> bool:
        if t == 0:
            self.reference = entropy
            return False
        self.dwell += 1
        if not self._due(entropy, t):
            return False
        if self.mode == "latent":
            self.mode = "explicit"
            self.switches += 1
        else:
            self.mode = "latent"
        self.reference, self.dwell = entropy, 0
        return True

    def _due(self, entropy: float, t: int) -> bool:
        if self.locked:
            return False
        if self.rules.plan is not None:
            return t in self.rules.plan
        if self.mode == "latent":
            return entropy < self.reference
        return entropy > self.reference and self.dwell >= self.rules.window

    def _feed(self, token: int, t: int, switched: bool) -> tuple[float, Anchor | None]:
        rules, done = self.rules, t / self.rules.steps
        if switched and self.mode == "explicit":  # the exit is still soft, whatever the token
            return rules.beta0 + (1 - rules.beta0) * done, "end_think"
        if self.mode == "explicit" or token in rules.discrete_ids:
            return 0.0, None
        if t == 0:
            return (START_WEIGHT, "newline") if rules.start_mix else (1.0, None)
        if switched:
            return rules.alpha0 + (1 - rules.alpha0) * done, "think"
        return 1.0, None

    def _signal(self) -> None:
        """The triggers of a switch to explicit mode; they act from the next step on."""
        if self.rules.c_max is None:
            return
        if self.switches > self.rules.c_max:
            self._terminate()
        elif 2 * self.switches >= self.rules.c_max:
            self.queue = deque(self.rules.convergence_ids)

    def _terminate(self) -> None:
        self.queue = deque(self.rules.termination_ids)
        self.left = self.rules.answer_budget

    def _count_down(self) -> bool:
        if self.left is None:
            return False
        self.left -= 1
        return self.left <= 0
