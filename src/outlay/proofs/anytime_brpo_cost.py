"""What AnytimeBRPO costs beside GRPO, and a few steps of it on the real chat model.

The paper says less than 10 % more training time. Here thinkings are short, so answers weigh more:
tokens and seconds are stated.
"""

from __future__ import annotations

import time
from dataclasses import replace

from outlay.proofs import rl_real
from outlay.proofs.anytime_brpo_runs import METHOD, OPS, methods
from outlay.proofs.base import Check, Progress
from outlay.rl.anytime import AnytimeBRPO, AnytimeTrainer
from outlay.rl.anytime.measure import Explored
from outlay.testbeds.chainarith_rl import dataset, load

# Targets, written before the first run.
REUSE = 0.5  # tokens computed for answers, against reading every cut once anew: at most
TREE = 0.5  # processor time of a step with trees, against rows: at most
STEPS = 3


def reuse(found: Explored) -> Check:
    """How much of the work for answers the thinking's keys and values save."""
    spent = found.spent
    ratio, anew = spent.ratio or 0.0, spent.ratio_anew or 0.0
    return Check(
        "answers at all budgets cost no second pass over the shared prefix",
        "prefix caching makes them cheap",
        ratio,
        ratio <= REUSE,
        None,
        f"tokens computed ({spent.computed} read, {spent.generated} answered) against reading "
        f"every cut once anew ({spent.once}); against every answer's prefix ({spent.anew}): "
        f"{anew:.3f}; question and thinking read again: 0; target: at most {REUSE}",
    )


def _step(method: AnytimeBRPO, rollouts: int) -> tuple[float, float, float]:
    """Processor seconds of a step, tokens sampled as thinking and as answers."""
    model, tokenizer = load()
    settings = {"max_steps": STEPS, "per_device_train_batch_size": rollouts}
    data, judge = dataset(400, seed=5, ops=OPS), method.reward_fn
    with rl_real.short_run(
        model, tokenizer, method, data, judge, settings, AnytimeTrainer
    ) as trainer:
        began = time.process_time()
        trainer.train()
        seconds = (time.process_time() - began) / STEPS
    entries = list(trainer.tokens.entries)
    thought = sum(one.generated for one in entries if one.note == "rollouts") / STEPS
    answered = sum(one.generated for one in entries if one.note == "probe") / STEPS
    return seconds, thought, answered


def cost(rollouts: int, progress: Progress) -> list[Check]:
    """Seconds and tokens of a step: GRPO with a forced answer, anytime with trees and with rows.

    Args:
        rollouts: thinkings a step.
        progress: told what happens.
    """
    progress("cost of a step")
    grpo, grpo_thought, grpo_answered = _step(methods()["GRPO"][0], rollouts)
    tree, thought, answered = _step(replace(METHOD, packing="tree"), rollouts)
    rows, *_ = _step(replace(METHOD, packing="rows"), rollouts)
    full, *_ = _step(replace(METHOD, packing="tree", skip_flat=False), rollouts)
    return [
        Check(
            "extra cost of a step over GRPO with a forced answer",
            "less than 10 % more training time",
            tree / grpo - 1,
            None,
            None,
            f"{tree:.2f} against {grpo:.2f} s of processor time for {rollouts} thinkings; "
            f"{thought:.0f} + {answered:.0f} tokens (thinking + answers) against "
            f"{grpo_thought:.0f} + {grpo_answered:.0f}; thinkings have {thought / rollouts:.0f} "
            "tokens here, thousands in the paper",
        ),
        Check(
            "a step with trees against one with rows",
            "trees avoid computing the prefix again",
            tree / rows,
            tree / rows <= TREE,
            None,
            f"{tree:.2f} against {rows:.2f} s (answers without an advantage left out of both; "
            f"{full:.2f} s with all of them, as trees); target: at most {TREE}",
        ),
    ]


def real_model(progress: Progress) -> Check:
    """A few steps on SmolLM2-135M-Instruct, whose end tag has several tokens."""
    from datasets import Dataset

    from outlay.rl.verifiers import MathVerifier, Reading

    progress(f"a few steps on {rl_real.NAME}")
    model, tokenizer = rl_real.policy()
    asked = []
    for question, answer in rl_real.sums():
        talk = [{"role": "user", "content": f"{question} Answer with a number."}]
        opened = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        asked.append({"prompt": opened + "<think>\n", "answer": answer})
    method = AnytimeBRPO(
        budgets=(12, 24),
        prior="uniform",
        n_traces=4,
        n_summaries=2,
        max_summary_tokens=8,
        reward_fn=MathVerifier(Reading(tokenizer), workers=1),
        heading="\n\n**Final Answer**\nThe answer is",
    )
    before = rl_real.weights(model)
    settings = {
        "max_steps": rl_real.STEPS,
        "per_device_train_batch_size": 8,
        "learning_rate": rl_real.LEARNING_RATE,
    }
    data, judge = Dataset.from_list(asked), method.reward_fn
    with rl_real.short_run(
        model, tokenizer, method, data, judge, settings, AnytimeTrainer
    ) as trainer:
        trainer.train()
    logs = [log for log in trainer.state.log_history if "anytime/thinking" in log]
    norms = [float(log["grad_norm"]) for log in logs]
    ratios = [float(log["anytime/kv_ratio"]) for log in logs]
    rewards = [float(log["reward"]) for log in logs]
    moved = rl_real.moved(before, trainer.model)
    return Check(
        f"{rl_real.NAME} trains for a few steps, its thinkings cut and answered",
        "1.5B and 7B reasoners train",
        f"{moved} of {len(before)} tensors moved",
        rl_real.alive(norms) and moved == len(before),
        None,
        f"{rl_real.STEPS} steps of 8 thinkings at budgets 12 and 24, trees; gradient norms "
        f"{rl_real.shown(norms)}; objective {rl_real.shown(rewards)}; tokens computed for answers "
        f"against reading every cut once anew: {ratios[-1]:.2f}; target: all tensors move, norms "
        "finite",
    )
