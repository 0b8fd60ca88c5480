"""Soft removal is hard removal at its ends; training changes the module and nothing else."""

from __future__ import annotations

import hashlib

import pytest
import torch
from tests.vision.covipal_cases import FAMILIES, labelled
from tests.vision.tiny_vlms import IMAGE, llava, llava_inputs

from outlay.errors import CapabilityError, InputError
from outlay.vision.covipal import CoViPAL, collect
from outlay.vision.covipal.fitting import oracle_accuracy, soft_accuracy
from outlay.vision.covipal.losses import straight_through, top_mask
from outlay.vision.covipal.pruning import Pruning, amount, given, of_modules
from outlay.vision.covipal.soft import SoftMask, biased
from outlay.vision.covipal.store import fingerprint
from outlay.vision.covipal.tokens import answers
from outlay.vision.covipal.training import (
    Recipe,
    StageOne,
    StageTwo,
    frozen,
    learning_rate,
    train,
)

SHORT = Recipe(lr2=1e-3)


@pytest.fixture(scope="module")
def model():
    return llava()


@pytest.fixture(scope="module")
def batches():
    return [labelled(seed=s) for s in range(3)]


def fixed_scores(rows: int, n: int = 16) -> torch.Tensor:
    return torch.rand(rows, n, generator=torch.Generator().manual_seed(3), dtype=torch.double)


def hard_chance(scores: torch.Tensor, k: int):
    def chance(tokens, so_far):
        alive = tokens.visual_BN & (so_far > 0.5)
        return top_mask(scores, alive, torch.full((len(scores),), k)).double()

    return chance


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_chances_of_zero_and_one_are_hard_removal(attention: str, layer: int) -> None:
    model = llava(attention).double()
    inputs = {n: v.double() if v.is_floating_point() else v for n, v in llava_inputs(2).items()}
    # Padded, too; not under eager attention, whose softmax in single precision makes padding NaN.
    blank = torch.zeros(2, 2 if attention == "sdpa" else 0, dtype=torch.long)
    for name in ("input_ids", "attention_mask"):
        inputs[name] = torch.cat([blank, inputs[name]], 1)
    scores = fixed_scores(2)
    much = amount(0.3, (), layer, None, 1)
    with torch.no_grad():
        with SoftMask(model, {layer: hard_chance(scores, 5)}, eps=1e-300):
            soft = model(**inputs).logits
        with Pruning(model, much, given(scores)) as kept:
            hard = model(**inputs).logits
            text = model.generate(
                **inputs,
                max_new_tokens=4,
                do_sample=False,
                eos_token_id=None,
                suppress_tokens=[IMAGE],
            )
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        for _ in range(4):  # the cache: every step again from scratch under the mask
            again = {**inputs, "input_ids": ids, "attention_mask": mask}
            with SoftMask(model, {layer: hard_chance(scores, 5)}, eps=1e-300):
                logits = model(**again).logits[:, -1:]
            logits[..., IMAGE] = -torch.inf
            new = logits.argmax(-1)
            ids = torch.cat([ids, new], 1)
            mask = torch.cat([mask, torch.ones_like(new)], 1)
    assert kept.counts()[-1] == [5, 5]
    question = slice(-4, None)
    assert (soft[:, question] - hard[:, question]).abs().max() < 1e-5
    assert torch.equal(text, ids)


def test_two_removals_multiply(model) -> None:
    inputs, scores = llava_inputs(2), fixed_scores(2)
    stairs = {0: hard_chance(scores, 8), 2: hard_chance(scores.flip(1), 4)}
    with torch.no_grad(), SoftMask(model, stairs, eps=1e-30) as soft:
        found = model(**inputs).logits

    def both(layer, tokens, alive):
        return (scores if layer == 0 else scores.flip(1)).gather(1, alive)

    much = amount(1.0, ((0, 0.5), (2, 0.25)), 0, None, 1)
    with torch.no_grad(), Pruning(model, much, both) as kept:
        wanted = model(**inputs).logits
    assert kept.counts() == [[8, 8], [8, 8], [4, 4], [4, 4]]
    assert (found - wanted)[:, -4:].abs().max() < 1e-4
    assert soft.kept[2].sum(1).tolist() == [4, 4]
    assert bool((soft.kept[2] <= soft.kept[0]).all())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_chance_of_one_changes_no_family(family: str) -> None:
    case = FAMILIES[family]()
    with torch.no_grad():
        plain = case.model(**case.inputs).logits
        with SoftMask(case.model, {0: lambda tokens, so_far: torch.ones_like(so_far)}):
            same = case.model(**case.inputs).logits
        with SoftMask(case.model, {0: lambda tokens, so_far: 0.01 * torch.ones_like(so_far)}):
            other = case.model(**case.inputs).logits
    assert (plain - same).abs().max() < 2e-5
    assert (plain - other)[:, -2:].abs().max() > 1e-3


def test_masks_of_every_kind_get_the_bias() -> None:
    bias = torch.tensor([[0.0, -2.0, 0.0]])
    causal = torch.ones(3, 3).tril().bool()[None, None]
    floats = torch.zeros(1, 1, 3, 3).masked_fill(~causal, torch.finfo(torch.float32).min)
    found = [biased(mask, bias, torch.float32) for mask in (None, causal, floats)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert found[0][0, 0, 2].tolist() == [0, -2, 0]
    assert torch.isfinite(biased(None, 100 * bias, torch.float16)).all()


def test_soft_removal_needs_attention_that_takes_masks(model) -> None:
    model.set_attn_implementation("eager")
    name, model.config.text_config._attn_implementation = "flash_attention_2", "flash_attention_2"
    try:
        with pytest.raises(CapabilityError, match=name):
            SoftMask(model, {0: lambda tokens, so_far: so_far})
    finally:
        model.set_attn_implementation("sdpa")
    with pytest.raises(InputError, match="eps=0"):
        SoftMask(model, {0: lambda tokens, so_far: so_far}, eps=0)
    with pytest.raises(InputError, match="no layer"):
        SoftMask(model, {})


def hashes(model) -> dict[str, str]:
    return {
        name: hashlib.sha256(weight.detach().numpy().tobytes()).hexdigest()
        for name, weight in model.state_dict().items()
    }


@pytest.mark.parametrize("gate", ["soft", "st_topk"])
def test_gradients_reach_the_module_and_nothing_else(model, batches, gate) -> None:
    before, mark = hashes(model), fingerprint(model)
    for index, weight in enumerate(model.parameters()):
        weight.requires_grad_(index % 2 == 0)  # whatever it was, it is again
    wanted = [weight.requires_grad for weight in model.parameters()]
    method = CoViPAL(d_p=24, gate=gate, teacher="both")
    ppms = method.new_modules(model, 0)
    stage = StageTwo(ppms, model, {0: 0.25}, SHORT, gate, "both")
    assert len(list(stage.parameters())) == len(list(ppms[0].parameters()))
    with frozen(model):
        stage(inputs=batches[0])["loss"].backward()
    assert all(weight.grad is None for weight in model.parameters())
    read = [name for name, weight in ppms[0].named_parameters() if weight.grad is not None]
    assert len(read) == len(list(ppms[0].parameters()))
    assert sum(float(weight.grad.abs().sum()) for weight in ppms[0].parameters()) > 0
    first = {name: weight.clone() for name, weight in ppms[0].state_dict().items()}
    train(stage, collect(model, batches), SHORT)
    assert any(not torch.equal(w, first[name]) for name, w in ppms[0].state_dict().items())
    assert hashes(model) == before
    assert fingerprint(model) == mark
    assert [weight.requires_grad for weight in model.parameters()] == wanted
    assert not model.training
    model.requires_grad_(True)


def test_recomputed_layers_give_the_same_gradients(model, batches) -> None:
    found = []
    for checkpointing in (False, True):
        ppms = CoViPAL(d_p=24).new_modules(model, 0)
        stage = StageTwo(ppms, model, {0: 0.25}, SHORT)
        calls = []
        hook = model.model.language_model.layers[1].self_attn.q_proj.register_forward_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        with frozen(model, checkpointing=checkpointing):
            stage(inputs=batches[0])["loss"].backward()
        hook.remove()
        assert len(calls) == 1 + checkpointing  # once more in the backward pass
        found.append([weight.grad for weight in ppms[0].parameters()])
    for plain, again in zip(*found, strict=True):
        assert torch.allclose(plain, again, atol=1e-6)
    assert not model.training


def test_stage_two_needs_what_its_teacher_reads(model, batches) -> None:
    ppms = CoViPAL(d_p=24).new_modules(model, 0)
    bare = {name: value for name, value in batches[0].items() if name != "labels"}
    nothing = {**bare, "labels": torch.full_like(bare["input_ids"], -100)}
    for teacher in ("ce", "both"):
        stage = StageTwo(ppms, model, {0: 0.25}, SHORT, "soft", teacher)
        with pytest.raises(InputError, match=f"teacher='{teacher}' needs labels"):
            stage(inputs=bare)
        with pytest.raises(InputError, match="all labels are -100"):
            stage(inputs=nothing)
    auto = StageTwo(ppms, model, {0: 0.25}, SHORT)
    kl = StageTwo(ppms, model, {0: 0.25}, SHORT, "soft", "kl")
    torch.manual_seed(0)
    first = auto(inputs=bare)["loss"]
    torch.manual_seed(0)
    assert torch.equal(first, kl(inputs=bare)["loss"])  # no labels: the unpruned model teaches


def test_the_budget_pulls_the_mean_chance_to_the_ratio(model, batches) -> None:
    ppms = CoViPAL(d_p=24).new_modules(model, 0)
    recipe = Recipe(lr2=5e-3, lambda_b=50.0, epochs=(1, 20), warmup=0)
    stage = StageTwo(ppms, model, {0: 0.25}, recipe)
    with torch.no_grad():
        before = float(stage(inputs=batches[0])["budget_0"])
    losses = train(stage, collect(model, batches), recipe)
    with torch.no_grad():
        after = float(stage(inputs=batches[0])["budget_0"])
    assert len(losses) == 60
    assert after < before / 4


def test_chances_are_pushed_apart_as_training_goes_on(model, batches) -> None:
    ppms = CoViPAL(d_p=24).new_modules(model, 0)
    stage = StageTwo(ppms, model, {0: 0.25}, Recipe(lambda_h=3.0))
    found = []
    with torch.no_grad():
        for progress in (0.0, 0.5, 1.0):
            stage.progress = progress
            torch.manual_seed(0)
            found.append(stage(inputs=batches[0]))
    spread = found[0]["spread_0"]
    assert float(spread) > 0
    for one, share in zip(found[1:], (0.5, 1.0), strict=True):
        torch.testing.assert_close(one["loss"] - found[0]["loss"], 3.0 * share * spread)


def test_the_exact_gate_trains_the_survivors_of_an_earlier_one(model, batches) -> None:
    method = CoViPAL(schedule=((0, 0.5), (2, 0.25)), d_p=24, gate="st_topk")
    ppms = method.new_modules(model, 0)
    stage = StageTwo(ppms, model, dict(method.schedule), Recipe(ratios=(0.5, 0.5)), "st_topk")
    kept: dict[int, torch.Tensor] = {}
    original = SoftMask.__exit__

    def spy(self, *error: object) -> None:
        kept.update(self.kept)
        original(self, *error)

    SoftMask.__exit__ = spy  # type: ignore[method-assign]
    try:
        stage(inputs=batches[0])["loss"].backward()
    finally:
        SoftMask.__exit__ = original  # type: ignore[method-assign]
    assert kept[0].sum(1).tolist() == [8, 8, 8]
    assert kept[2].sum(1).tolist() == [4, 4, 4]
    assert all(
        any(float(w.grad.abs().sum()) > 0 for w in ppm.parameters() if w.grad is not None)
        for ppm in ppms.values()
    )


def test_stage_one_learns_the_guidance(model, batches) -> None:
    lessons = collect(model, batches, guidance=2)
    method = CoViPAL(d_p=24, stage2=False, guidance_layer=2)
    recipe = Recipe(epochs=(40, 1), warmup=0, lr=(3e-3, 1e-3))
    ppms = method.new_modules(model, 0)
    losses = train(StageOne(ppms, recipe, "kl"), lessons, recipe)
    assert sum(losses[-9:]) < 0.5 * sum(losses[:9])


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone(
    model, batches
) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    found = [CoViPAL(d_p=24).fit(model, batches).fitted for _ in range(2)]
    assert torch.equal(torch.rand(3), wanted)
    for ours, theirs in zip(
        *(one.ppms[0].state_dict().values() for one in found if one), strict=True
    ):
        assert torch.equal(ours, theirs)
    other = CoViPAL(d_p=24).fit(model, batches, Recipe(seed=1)).fitted
    assert not torch.equal(other.ppms[0].types, found[0].ppms[0].types)


def test_fitting_records_how_soft_and_hard_removal_differ(model, batches) -> None:
    method = CoViPAL(d_p=24, ratio=0.5).fit(model, batches, validation=batches[:1])
    trained = method.fitted
    assert trained is not None
    soft = soft_accuracy(model, batches[:1], trained.ppms)
    assert trained.about["hard_minus_soft"] == pytest.approx(trained.about["hard"] - soft)
    assert sorted(trained.calibration) == [0.0625, 0.125, 0.25, 0.5]
    assert trained.calibration[0.5] == trained.about["hard"]
    assert trained.about["steps"] == [3, 3]


def test_validation_data_choose_the_guidance_layer(model, batches) -> None:
    own = []
    for batch in batches:  # labels that the model would give, so that accuracy can differ
        with torch.no_grad():
            said = model(**{n: v for n, v in batch.items() if n != "labels"}).logits.argmax(-1)
        labels = torch.full_like(batch["input_ids"], -100)
        labels[:, -1] = said[:, -2]
        own.append({**batch, "labels": labels})
    method = CoViPAL(d_p=24, stage2=False)
    chosen = method.fit(model, batches, validation=own).fitted.guidance_layer
    scored = {layer: oracle_accuracy(model, own, layer, method.amount()) for layer in (1, 2, 3)}
    assert scored[chosen] == max(scored.values())
    asked = CoViPAL(d_p=24, stage2=False, guidance_layer=1).fit(model, batches, validation=own)
    assert asked.fitted.guidance_layer == 1


def test_fit_refuses_what_it_cannot_learn_from(model, batches) -> None:
    lessons = collect(model, batches)
    with pytest.raises(InputError, match="give batches, or the lessons"):
        CoViPAL(d_p=24).fit(model)
    with pytest.raises(InputError, match="give batches, or the lessons"):
        CoViPAL(d_p=24).fit(model, batches, lessons=lessons)
    with pytest.raises(InputError, match="another model"):
        CoViPAL(d_p=24).fit(llava(seed=1), lessons=lessons)
    with pytest.raises(InputError, match="no streams of layer 1"):
        CoViPAL(d_p=24, prune_layer=1).fit(model, lessons=lessons)
    with pytest.raises(InputError, match="layer 9; the decoder has layers"):
        CoViPAL(d_p=24, prune_layer=9).fit(model, batches)
    with pytest.raises(InputError, match=r"guidance_layer=7; the decoder has layers 0\.\.3"):
        CoViPAL(d_p=24, guidance_layer=7).fit(model, batches)
    with pytest.raises(InputError, match="one budget"):
        CoViPAL(d_p=24, ratio=(0.5, 0.5)).fit(model, lessons=lessons)
    with pytest.raises(InputError, match="validation batch has no labels"):
        CoViPAL(d_p=24).fit(model, batches, validation=[llava_inputs(1)])


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"eps": 1e-9}, "eps=1e-09"),
        ({"lr2": 0.0}, "lr2=0.0"),
        ({"lr": (1e-4, 1e-3)}, "smaller last rate"),
        ({"ratios": (0.0, 0.5)}, "ratios="),
        ({"lambda_b": -1.0}, "lambda_b=-1.0"),
        ({"epochs": (0.0, 1.0)}, "epochs="),
        ({"max_steps": (0, 1)}, "max_steps="),
        ({"warmup": -1}, "warmup=-1"),
        ({"tau": float("nan")}, "tau=nan"),
    ],
)
def test_recipes_out_of_range_name_the_knob(knobs, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Recipe(**knobs)


def test_the_rate_rises_then_falls_to_its_end() -> None:
    recipe = Recipe(warmup=10)
    rates = [learning_rate(recipe, 1, step, 200) for step in range(200)]
    assert rates[9] == pytest.approx(1e-3)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(1e-4)
    assert learning_rate(recipe, 2, 150, 200) == 1e-4


def test_a_loss_that_is_no_number_stops_training(model, batches) -> None:
    lessons = collect(model, batches)
    ppms = CoViPAL(d_p=24).new_modules(model, 0)
    with torch.no_grad():
        lessons.targets[lessons.guide][0][0, 0] = float("nan")
    with pytest.raises(InputError, match="of stage 1 is no number"):
        train(StageOne(ppms, SHORT, "kl"), lessons, SHORT)


def test_a_gate_of_everything_keeps_everything() -> None:
    score = torch.randn(2, 6, requires_grad=True)
    every = torch.ones(2, 6, dtype=torch.bool)
    mask = straight_through(score, torch.tensor([6, 6]), every, 1.0)
    assert (mask == 1).all()
    mask.sum().backward()
    assert torch.isfinite(score.grad).all()


def test_the_module_never_reads_the_answer(model, batches) -> None:
    other = {**batches[0], "input_ids": batches[0]["input_ids"].clone()}
    other["input_ids"][:, -1] = 7
    bare = {n: v[:, :-1] if n in ("input_ids", "attention_mask") else v for n, v in other.items()}
    del bare["labels"]
    first, second, prompt = (collect(model, [b])[0] for b in (batches[0], other, bare))
    for name, tensor in first["streams"]["0"].items():
        assert torch.equal(tensor, second["streams"]["0"][name])
        assert torch.equal(tensor, prompt["streams"]["0"][name])
    assert not torch.equal(first["target"], second["target"])  # the answer guides, too
    ppms = CoViPAL(d_p=24).new_modules(model, 0)
    for layer in (0, 2):
        kept = []
        for batch in (batches[0], other):
            plain = {name: value for name, value in batch.items() if name != "labels"}
            hide = answers(batch)
            chances = {layer: lambda tokens, so_far: tokens.scores(ppms[0]).sigmoid()}
            with torch.no_grad(), SoftMask(model, chances, hide=hide) as soft:
                model(**plain)
            kept.append(soft.alive)
            much = amount(0.25, (), layer, None, 1)
            scores = of_modules({layer: ppms[0]})
            with torch.no_grad(), Pruning(model, much, scores, hide=hide) as hard:
                model(**plain)
            kept.append(torch.stack(hard.layers[-1]))
        assert torch.equal(kept[0], kept[2])
        assert torch.equal(kept[1], kept[3])


def test_labels_of_another_shape_are_refused(model, batches) -> None:
    short = {**batches[0], "labels": batches[0]["labels"][:, 1:]}
    with pytest.raises(InputError, match="one label for each token"):
        collect(model, [short])
