"""The material that pairs are trained and measured on: recall, needles, and ways of reading."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from outlay.cache.kv_prediction import store
from outlay.cache.kv_prediction.mapping import pruned_map
from outlay.cache.kv_prediction.model import KVPredictionModel
from outlay.errors import InputError, ModelError
from outlay.testbeds.kv_predictors import alone, checkpoint_path, needles
from outlay.testbeds.kv_predictors.data import load_rows, save_rows
from outlay.testbeds.kv_predictors.evaluate import Material, measure, readers
from outlay.testbeds.kv_predictors.train import PairConfig, train_pair
from tiny_models import tiny_network, tiny_tokenizer


def test_measured_names_and_forms_are_never_trained_on() -> None:
    rng = random.Random(0)
    drawn = {
        split: {needle.name for _ in range(300) for needle in needles.draw(rng, split, 4)}
        for split in ("train", "heldout")
    }
    assert len(drawn["train"]) > 300
    assert not drawn["train"] & drawn["heldout"]
    assert not set(needles.FORMS["train"]) & set(needles.FORMS["heldout"])


@given(st.integers(0, 100), st.integers(150, 400))
@settings(max_examples=20)
def test_a_needle_stands_early_and_is_asked_last(seed: int, length: int) -> None:
    tokenizer = tiny_tokenizer()
    texts = [torch.full((length,), 40) for _ in range(2)]
    for prompt in needles.prompts(tokenizer, texts, length=length, seed=seed):
        assert len(prompt.ids) == length
        said = tokenizer.decode(list(prompt.ids))
        code = tokenizer.decode(list(prompt.answer)).strip()
        question = said.rstrip().rsplit("\n", 1)[-1]
        assert said.count(code) == 1
        assert f"{question} {code}." in said
        assert prompt.depth < 1 / 3


def test_a_training_row_asks_for_every_fact_it_holds() -> None:
    tokenizer = tiny_tokenizer()
    row_T = needles.row(tokenizer, torch.full((500,), 40), random.Random(1))
    assert len(row_T) == 500
    lines = tokenizer.decode(row_T.tolist()).splitlines()
    asked = lines[-4:]
    assert len(set(asked)) == 4
    assert all(lines.count(line) == 2 for line in asked)


def test_texts_that_are_too_short_are_refused() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(InputError, match="length=200"):
        list(needles.prompts(tokenizer, [torch.full((50,), 40)], length=200, seed=0))
    with pytest.raises(InputError, match="too short"):
        needles.row(tokenizer, torch.full((60,), 40), random.Random(1))


def test_rows_are_stored_in_two_bytes_a_token(tmp_path: Path) -> None:
    rows_NT = torch.randint(0, 49_152, (50, 512), dtype=torch.int32)
    path = save_rows(rows_NT, tmp_path / "rows.safetensors")
    assert path.stat().st_size < 2.05 * rows_NT.numel()
    assert torch.equal(load_rows(path), rows_NT)
    with pytest.raises(InputError, match="no rows"):
        load_rows(tmp_path / "nothing")


def tiny_base() -> Any:
    return tiny_network(num_hidden_layers=4)


def rows(count: int = 64, width: int = 40) -> torch.Tensor:
    """Random tokens, ids_NT."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(5, len(tiny_tokenizer()), (count, width), generator=generator)


def test_each_way_of_reading_scores_what_a_plain_pass_scores() -> None:
    base = tiny_base()
    pair = KVPredictionModel.pruned(base, range(4))
    pair.predictor.become_identity()
    ids_NT = rows(6)
    material = Material("random", ids_NT[:, :-8], ids_NT[:, -8:])
    ways = readers(pair, material.prompt_NT.shape[1], alone=base)
    found = measure(ways, material, batch=4)
    with torch.inference_mode():
        logits_NTV = base(ids_NT).logits[:, -9:-1]
    wanted_N = -logits_NTV.log_softmax(-1).gather(-1, ids_NT[:, -8:, None])[..., 0].mean(-1)
    for name in ("base", "kvp", "aux alone", "aux of the pair"):
        torch.testing.assert_close(found[name].nll_N.float(), wanted_N, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        short = torch.cat([material.prompt_NT[:, -1:], material.follow_NA[:, :-1]], 1)
        logits_NAV = base(short).logits
    alone_N = -logits_NAV.log_softmax(-1).gather(-1, material.follow_NA[..., None])[..., 0].mean(-1)
    torch.testing.assert_close(found["no prompt"].nll_N.float(), alone_N, rtol=1e-4, atol=1e-4)


def test_rivals_that_read_less_cost_no_more_than_the_prediction() -> None:
    pair = KVPredictionModel.pruned(tiny_base(), (0, 2))
    ways = readers(pair, 96)
    for name in ("recent", "random"):
        assert ways[name].flops <= ways["kvp"].flops
        assert ways[name].at is not None
        more = len(ways[name].at) + 1
        assert pair.shapes[0] is not None
        assert pair.shapes[0].flops(more, logits_rows=1) > ways["kvp"].flops
        assert ways[name].at[-1] == 95


def test_a_pair_and_its_rival_see_the_same_rows(tmp_path: Path) -> None:
    base = tiny_base()
    rows_NT = rows()
    config = PairConfig(keep=2, lora_r=2, steps=4, batch=4)
    seen: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    handles = []
    for alone_ in (False, True):
        handle = torch.nn.modules.module.register_module_forward_pre_hook(
            lambda module, args, where=seen[alone_]: (
                where.append(args[0].clone())
                if isinstance(module, torch.nn.Embedding) and module.num_embeddings > 2
                else None
            )
        )
        handles.append(handle)
        made = train_pair(base, rows_NT, config, folder=tmp_path, alone=alone_)
        handle.remove()
        assert made.steps == 4
        assert made.tokens == 4 * 4 * rows_NT.shape[1]
    batches = [ids for ids in seen[True] if ids.shape == (4, rows_NT.shape[1])]
    theirs = {tuple(ids.flatten().tolist()) for ids in seen[False]}
    assert len(batches) == 4
    assert all(tuple(ids.flatten().tolist()) in theirs for ids in batches)


def test_a_deadline_ends_a_training(tmp_path: Path) -> None:
    base = tiny_base()
    rows_NT = rows()
    config = PairConfig(keep=2, lora_r=0, steps=100_000, seconds=0.5, batch=4)
    made = train_pair(base, rows_NT, config, folder=tmp_path)
    assert 1 <= made.steps < 1000


@pytest.mark.parametrize("knobs", [{"keep": 0}, {"steps": 0}, {"lora_r": -1}, {"lr": 0.0}])
def test_recipes_out_of_range_are_refused(knobs: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(knobs))):
        PairConfig(**knobs)  # type: ignore[arg-type]


def test_a_folder_without_a_rival_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no auxiliary of its own"):
        alone(tiny_base(), tmp_path)


def test_the_shipped_rival_belongs_to_another_base() -> None:
    with pytest.raises(InputError, match="another model"):
        alone(tiny_base())


def test_the_shipped_pair_has_a_map_for_every_layer_and_a_card() -> None:
    home = checkpoint_path()
    record = json.loads((home / store.CONFIG).read_text(encoding="utf-8"))
    assert tuple(record["layer_map"]) == pruned_map(30, record["keep"])
    tensors = load_file(home / store.WEIGHTS)
    for layer in range(30):
        for kind in ("keys", "values"):
            assert tensors[f"predictor.{kind}.{layer}.weight"].shape == (192, 192)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    size = sum(file.stat().st_size for file in home.iterdir())
    assert size < 12 * 2**20
    card = (home / "README.md").read_text(encoding="utf-8")
    measured = json.loads((home / "measured.json").read_text(encoding="utf-8"))
    for ways in measured["materials"].values():
        assert all(f"{way['nll']:.3f}" in card for way in ways.values())


def test_the_package_names_its_checkpoints_without_torch() -> None:
    import subprocess

    code = (
        "import sys; from outlay.testbeds.kv_predictors import checkpoint_path; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
