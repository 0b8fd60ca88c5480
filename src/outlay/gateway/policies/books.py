"""What one request spent under a policy, stage by stage, and how that is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from outlay.gateway.policies.purse import Purse
from outlay.gateway.usage import Usage
from outlay.ledger import Ledger

Status = Literal["applied", "skipped", "fallback"]
_OWN = ("target", "planner")  # every other role runs in the scoring processes


@dataclass
class Books:
    """The policy's part of one request.

    Args:
        policy: its name.
        status: what became of it.
        reason: why it was skipped, or fell back.
        ledger: calls of all stages, the scorers' among them (their tokens are the gateway's own
            and are not charged).
        saved: prompt tokens that compression took out.
        purse: of the calls upstream, where methods make any.
        unended: what is charged of methods on a local model that did not stop when told to.
        local: whether the methods ran on a model of this process, whose books the ledger is.
    """

    policy: str
    status: Status = "applied"
    reason: str = ""
    ledger: Ledger = field(default_factory=Ledger)
    saved: int = 0
    purse: Purse | None = None
    local: bool = False
    unended: Usage | None = None
    _plain: bool = False

    def headers(self) -> dict[str, str]:
        """What the caller is told at once."""
        told = {"x-outlay-policy": self.policy, "x-outlay-policy-status": self.status}
        if self.reason:  # may quote a field's name
            plain = (each if " " <= each <= "~" else "?" for each in self.reason)
            told["x-outlay-policy-reason"] = "".join(plain)
        return told

    def spent(self) -> tuple[Usage, bool]:
        """What the methods' calls used; True where some of it is not known and counts in full.

        No further call can be made after this.
        """
        if self.purse is not None:
            used = self.purse.close()
            return used, self.purse.unknown
        if self.unended is not None:
            return self.unended, True
        if not self.local:
            return Usage(0, 0, 0, 0), False
        own = [e for e in self.ledger.entries if e.role in _OWN]
        return Usage(
            sum(e.prompt_new + e.prompt_cached + e.forced for e in own),
            sum(e.prompt_cached for e in own),
            sum(e.generated for e in own),
            0,
        ), False

    @property
    def requests(self) -> int:
        """Calls that may have a price each; a local model has none, and counts as one."""
        if self.purse is not None:
            return self.purse.made
        if self.unended is not None:
            return 1
        return int(self.local and any(e.role in _OWN for e in self.ledger.entries))

    def again(self) -> None:
        """Begin another attempt: what the one before it spent has been settled with it."""
        self.ledger, self.purse, self.local, self.unended = Ledger(), None, False, None
        self.saved, self._plain = 0, False
        if self.status != "skipped":
            self.status, self.reason = "applied", ""

    def plain(self, usage: Usage) -> None:
        """Book the request itself, once, where it was sent to the upstream as any other."""
        if self._plain:
            return
        self._plain = True
        self.ledger.record(
            "answer",
            "target",
            prompt_new=usage.prompt - usage.cached,
            prompt_cached=usage.cached,
            generated=usage.output,
            method="plain",
        )

    def report(self) -> dict[str, Any]:
        """For the answer's usage."""
        told: dict[str, Any] = {"policy": self.policy, "status": self.status}
        if self.reason:
            told["reason"] = self.reason
        told["saved_prompt_tokens"] = self.saved
        told["stages"] = [
            {
                "stage": stage,
                "role": role,
                "method": method,
                "calls": total.calls,
                "prompt_tokens": total.prompt,
                "generated_tokens": total.generated,
                "forced_tokens": total.forced,
                "seconds": round(total.seconds, 4),
            }
            for (stage, role, method), total in self.ledger.by("stage", "role", "method").items()
        ]
        return told

    def stages(self) -> str:
        """For the gateway's ledger."""
        return orjson.dumps(self.ledger.to_dict()).decode()
