"""Training with random counts, on transformers' Trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.rl.rank_runs import run_ranks
from tests.vision.tiny_vlms import IMAGE, VOCAB, llava, llava_next, pixels
from transformers import Trainer, TrainingArguments

from outlay.errors import CapabilityError, InputError
from outlay.vision.tokenflex import (
    CountDraw,
    FlexCollator,
    Grid,
    ProjectorConfig,
    TokenFlexTrainer,
    convert,
    freeze_for,
    prepare,
    stage_arguments,
    using,
)
from outlay.vision.tokenflex.models import tiled_tokens

COUNTS = (1, 4, 16)
PROBS = (0.3, 0.3, 0.4)


def flexible_llava(**knobs: Any) -> Any:
    torch.manual_seed(5)
    return convert(llava(layers=2), ProjectorConfig(counts=COUNTS, **knobs))


def rows(n: int, images: int = 1) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for i in range(n):
        words = torch.randint(7, VOCAB, (3 + i % 3,), generator=generator).tolist()
        ids = [1, *[IMAGE] * images, *words]
        labels = [-100] * (len(ids) - 2) + ids[-2:]
        made.append({"input_ids": ids, "labels": labels, "pixel_values": pixels(images, seed=i)})
    return made


def arguments(folder: Path, **more: Any) -> TrainingArguments:
    known = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "max_steps": 5,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    return TrainingArguments(**{**known, **more})


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_one_certain_count_trains_as_the_fixed_trainer_bit_for_bit(tmp_path: Path) -> None:
    """The rival is transformers' own Trainer on rows whose placeholders were laid out before."""
    flex = TokenFlexTrainer(
        flexible_llava(),
        arguments(tmp_path),
        CountDraw(COUNTS, (0.0, 1.0, 0.0)),
        train_dataset=rows(10),
    )
    flex.train()
    model, collate = flexible_llava(n_visual_tokens=4), FlexCollator()
    fixed = Trainer(
        model,
        arguments(tmp_path),
        data_collator=lambda some: prepare(model, collate(some), 4, padding="right"),
        train_dataset=rows(10),
    )
    fixed.train()
    assert losses(flex) == losses(fixed)
    for ours, theirs in zip(flex.model.parameters(), fixed.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("granularity", ["batch", "sample"])
def test_visual_tokens_are_those_of_every_step(tmp_path: Path, granularity: Any) -> None:
    draw = CountDraw(COUNTS, PROBS, draw=granularity, seed=1)
    trainer = TokenFlexTrainer(
        flexible_llava(), arguments(tmp_path), draw, train_dataset=rows(10, images=2)
    )
    trainer.train()
    drawn = [draw.at(step, 4) for step in range(5)]
    assert [step.tokens for step in trainer.visual.steps] == [sum(counts) for counts in drawn]
    assert len({sum(counts) for counts in drawn}) > 1
    assert trainer.visual.total == sum(map(sum, drawn))
    logged = [e["visual_tokens"] for e in trainer.state.log_history if "visual_tokens" in e]
    assert logged[-1] == trainer.visual.total
    assert logged[0] == sum(drawn[0])
    if granularity == "batch":
        assert trainer.visual.computed == trainer.visual.total  # rows are equally long
    else:
        assert trainer.visual.computed > trainer.visual.total  # of the maximum


def test_a_batch_of_mixed_counts_has_the_loss_of_its_rows(tmp_path: Path) -> None:
    model = flexible_llava().eval()
    batch = FlexCollator()(rows(3))
    counts = [16, 1, 4]
    with torch.no_grad(), using(model, counts):
        ready = prepare(model, batch, counts, padding="right")
        together = model(**ready, num_items_in_batch=1).loss
    total = 0.0
    for row, n in zip(rows(3), counts, strict=True):
        with torch.no_grad(), using(model, n):
            ready = prepare(model, FlexCollator()([row]), n, padding="right")
            total += float(model(**ready, num_items_in_batch=1).loss)
    assert float(together) == pytest.approx(total, rel=1e-5)


def test_accumulated_batches_draw_one_by_one(tmp_path: Path) -> None:
    draw = CountDraw(COUNTS, PROBS, seed=2)
    trainer = TokenFlexTrainer(
        flexible_llava(),
        arguments(tmp_path, max_steps=3, gradient_accumulation_steps=3),
        draw,
        train_dataset=rows(18),
    )
    trainer.train()
    wanted = [sum(draw.at(step, 2, micro=micro)) for step in range(3) for micro in range(3)]
    assert [step.tokens for step in trainer.visual.steps] == wanted
    assert len(set(wanted)) > 1


def test_a_resumed_training_draws_and_ends_as_one_without_a_break(tmp_path: Path) -> None:
    def trainer(folder: str, **more: Any) -> TokenFlexTrainer:
        return TokenFlexTrainer(
            flexible_llava(),
            arguments(tmp_path / folder, lr_scheduler_type="constant", **more),
            CountDraw(COUNTS, PROBS, seed=1),
            train_dataset=rows(10),
        )

    whole = trainer("whole", max_steps=4)
    whole.train()
    trainer("part", max_steps=2, save_strategy="steps", save_steps=2).train()
    resumed = trainer("part", max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-2"))
    assert resumed.visual.steps == whole.visual.steps[2:]
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_two_processes_draw_and_step_alike(tmp_path: Path) -> None:
    run_ranks(Path(__file__).with_name("tokenflex_rank.py"), tmp_path)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    draw = CountDraw(COUNTS, PROBS, draw="sample")
    assert [step[2] for step in first["steps"]] == [sum(draw.at(step, 2)) for step in range(3)]


def test_evaluation_uses_the_native_count(tmp_path: Path) -> None:
    model = flexible_llava(n_visual_tokens=4)
    trainer = TokenFlexTrainer(
        model, arguments(tmp_path), CountDraw(COUNTS, PROBS), eval_dataset=rows(4)
    )
    found = trainer.evaluate()["eval_loss"]
    total = 0.0
    for start in (0, 2):
        batch = FlexCollator()(rows(4)[start : start + 2])
        with torch.no_grad(), using(model, 4):
            total += float(model(**prepare(model, batch, 4, padding="right")).loss)
    assert found == pytest.approx(total / 2, rel=1e-5)


def test_tiled_images_train_in_one_batch(tmp_path: Path) -> None:
    model = convert(llava_next(), ProjectorConfig(counts=COUNTS))
    sizes = [(64, 64), (30, 60), (40, 64), (64, 24)]
    data = [
        {
            "input_ids": [1, IMAGE, 9, 10 + i],
            "labels": [-100, -100, 9, 10 + i],
            "pixel_values": pixels(5 if size in sizes[::2] else 3, seed=i),
            "image_sizes": [size],
        }
        for i, size in enumerate(sizes)
    ]
    draw = CountDraw(COUNTS, PROBS, seed=1)
    trainer = TokenFlexTrainer(model, arguments(tmp_path, max_steps=2), draw, train_dataset=data)
    trainer.train()
    config = model.config
    for step in trainer.visual.steps:
        side = int(draw.at(step.step)[0] ** 0.5)
        each = {size: tiled_tokens(config, size, Grid(side, side)) for size in sizes}
        assert step.images == 2
        assert step.tokens in {a + b for a in each.values() for b in each.values()}
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_an_adapter_is_trained_through_its_wrapper(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(flexible_llava(), config)
    trainer = TokenFlexTrainer(
        model, arguments(tmp_path, max_steps=2), CountDraw(COUNTS, PROBS), train_dataset=rows(4)
    )
    trainer.train()
    assert len(losses(trainer)) == 2


def test_a_stage_trains_its_parts() -> None:
    model = flexible_llava()

    def trained() -> set[str]:
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        return {name.split(".")[1] if name.startswith("model") else name for name in names}

    freeze_for(model, 1)
    assert trained() == {"multi_modal_projector"}
    freeze_for(model, 2)
    assert trained() == {"multi_modal_projector", "vision_tower"}
    freeze_for(model, 3)
    assert trained() == {
        "multi_modal_projector",
        "vision_tower",
        "language_model",
        "lm_head.weight",
    }
    assert stage_arguments(1)["learning_rate"] == 1e-3
    assert TrainingArguments(**stage_arguments(2), use_cpu=True).get_warmup_steps(1000) == 30
    for call in (lambda: stage_arguments(4), lambda: freeze_for(model, 0)):
        with pytest.raises(InputError, match="stages are 1, 2 and 3"):
            call()


def test_a_stage_that_is_off_trains_at_the_largest_count(tmp_path: Path) -> None:
    trainer = TokenFlexTrainer(
        flexible_llava(),
        arguments(tmp_path, max_steps=3),
        CountDraw(COUNTS, PROBS, stage_on=(2, 3)),
        stage=1,
        train_dataset=rows(8),
    )
    trainer.train()
    assert [step.tokens for step in trainer.visual.steps] == [32] * 3


def test_models_and_draws_that_cannot_train_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="no flexible projector"):
        TokenFlexTrainer(llava(), arguments(tmp_path))
    with pytest.raises(InputError, match="counts=64; the encoder gives 4 x 4"):
        TokenFlexTrainer(flexible_llava(), arguments(tmp_path), CountDraw())
    with pytest.raises(InputError, match="stages are 1, 2 and 3"):
        TokenFlexTrainer(flexible_llava(), arguments(tmp_path), CountDraw(COUNTS), stage=0)
    several = arguments(tmp_path)
    several._n_gpu = 2
    with pytest.raises(CapabilityError, match="start one process a GPU"):
        TokenFlexTrainer(flexible_llava(), several, CountDraw(COUNTS, PROBS))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ([], "no rows"),
        ([{"input_ids": [], "pixel_values": pixels(1)}], r"rows have \[0\] tokens"),
        ([{"input_ids": [1] * 9, "pixel_values": pixels(1)}], r"need 1 to 8"),
        ([{"input_ids": [1, 2], "labels": [1], "pixel_values": pixels(1)}], "labels must be as"),
        ([*rows(1), {"input_ids": [1, IMAGE], "pixel_values": pixels(1)}], "in every row or in"),
    ],
)
def test_rows_that_make_no_batch_are_refused(bad: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(InputError, match=says):
        FlexCollator(most=8)(bad)
