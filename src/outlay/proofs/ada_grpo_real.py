"""Both stages of Ada-GRPO on the real chat model, in miniature.

First it is shown sums in four formats with the paper's tags, a few dozen steps; then it trains for
three steps with rewards scaled by the rarity of what it writes. The question is whether the recipe
runs there, not whether it pays.
"""

from __future__ import annotations

import tempfile
from typing import Any

from outlay.proofs import rl_real
from outlay.proofs.base import Check
from outlay.reason.adaptive.presets import ARM
from outlay.rl.ada_grpo import AdaGRPO, all_formats

SHOWN = 24  # sums of the first stage, in four formats each
EPOCHS, BATCH, RATE = 1, 8, 5e-5
TOKENS = 48


def solutions() -> list[tuple[str, dict[str, str]]]:
    """Sums other than those of the second stage, solved in the paper's four formats."""
    found = []
    for a in range(SHOWN):
        b = (7 * a + 2) % 20
        answer = f"<ANSWER>{a + b}</ANSWER>"
        found.append(
            (
                f"What is {a} + {b}?",
                {
                    "direct": answer,
                    "cot": f"<COT>{a} + {b} = {a + b}</COT>{answer}",
                    "code": f"<CODE>print({a} + {b})</CODE><OUTPUT>{a + b}</OUTPUT>{answer}",
                    "long_cot": f"<LONG_COT>{a} + {b} = {a + b}. Check: {a + b} - {b} = {a}."
                    f"</LONG_COT>{answer}",
                },
            )
        )
    return found


def two_stages() -> Check:
    """Fine-tune on all formats, then a few steps of Ada-GRPO."""
    model, tokenizer = rl_real.policy()
    loss = first_stage(model, tokenizer)
    method = AdaGRPO(formats="arm", group_size=rl_real.GROUP, kl=0.0).tokenized(tokenizer)
    return rl_real.few_steps(
        method,
        model,
        tokenizer,
        rl_real.chats(),
        claim=f"{rl_real.NAME} passes both stages: formats are shown, then Ada-GRPO trains",
        paper="3B to 14B models train",
        tokens=TOKENS,
        note=f"first stage: {SHOWN} sums in {len(ARM.formats)} formats, loss {loss[0]:.2f} to "
        f"{loss[-1]:.2f}; then ",
    )


def first_stage(model: Any, tokenizer: Any) -> list[float]:
    """Losses of the steps in which the model is shown all formats."""
    from trl import SFTConfig, SFTTrainer

    rows = all_formats(solutions()).map(
        lambda row: {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model,
            args=SFTConfig(
                folder,
                num_train_epochs=EPOCHS,
                per_device_train_batch_size=BATCH,
                learning_rate=RATE,
                logging_steps=1,
                report_to="none",
                save_strategy="no",
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                disable_tqdm=True,
                seed=0,
            ),
            train_dataset=rows,
            processing_class=tokenizer,
        )
        trainer.train()
    return [float(line["loss"]) for line in trainer.state.log_history if "loss" in line]
