"""gymnasium and PettingZoo: the libraries' own checkers, and the same steps as the world's."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from pettingzoo.test import parallel_api_test, parallel_seed_test
from robot_worlds import MIDDLE, SMALL, ids

from outlay.errors import InputError
from outlay.evals.robots import planner
from outlay.evals.robots.boxnet import BoxNet1
from outlay.evals.robots.gym import gym_env, parallel_env
from outlay.evals.robots.warehouse import HouseState, Warehouse


@pytest.mark.parametrize("world", SMALL + MIDDLE[4:5], ids=ids)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_libraries_own_checks_pass(world):
    env = gym_env(world)
    assert isinstance(env, gymnasium.Env)
    check_env(env, skip_render_check=True)
    parallel_api_test(parallel_env(world), num_cycles=60)
    parallel_seed_test(lambda: parallel_env(world), num_cycles=10)


@pytest.mark.parametrize("world", MIDDLE, ids=ids)
def test_the_greedy_plan_solves_the_environment_as_it_solves_the_world(world):
    env = gym_env(world)
    seen, info = env.reset(seed=4)
    state, rewards = world.reset(4), []
    done = cut = False
    while not (done or cut):
        assert seen.tolist() == list(world.encode(state))
        choices = world.split(planner.greedy(world, state))
        action = [
            1 + world.table(agent).index(choices[agent]) if agent in choices else 0
            for agent in world.agents
        ]
        for agent, pick in zip(world.agents, action, strict=True):
            assert info["action_mask"][agent][pick] == 1
        state = world.step(state, world.join(choices)).state
        seen, reward, done, cut, info = env.step(action)
        rewards.append(reward)
    assert done
    assert rewards == [0.0] * (len(rewards) - 1) + [1.0]
    assert info["solved"]


def test_masks_say_what_can_be_done_and_refused_choices_do_nothing():
    world = BoxNet1(2, 2)
    env = parallel_env(world)
    _, infos = env.reset(seed=1)
    state = world.reset(1)
    for agent in world.agents:
        able = {
            a
            for a, ok in zip(world.table(agent), infos[agent]["action_mask"][1:], strict=True)
            if ok
        }
        assert able == set(world.actions(state)[agent])
    picks = {agent: int(np.argmin(infos[agent]["action_mask"])) for agent in env.agents}
    _, rewards, _, _, infos = env.step(picks)
    assert env.game.state == state
    assert len(infos[world.agents[0]]["refused"]) == 4
    assert set(rewards.values()) == {0.0}


def test_a_collision_terminates_all_agents_without_a_reward():
    world = Warehouse(2, 3, 2)
    env = parallel_env(world)
    env.reset(seed=0)
    env.game.state = HouseState(((0, 2),), ((0, 0, False), (0, 2, False)))
    table = world.table("agent0")
    picks = {"agent0": 1 + table.index("move right"), "agent1": 1 + table.index("move left")}
    _, rewards, ended, _, infos = env.step(picks)
    assert all(ended.values())
    assert set(rewards.values()) == {0.0}
    assert "agent0, agent1" in infos["agent0"]["collisions"][0]
    assert env.agents == []


def test_the_step_limit_truncates():
    world = BoxNet1(2, 2)
    env = gym_env(world)
    env.reset(seed=0)
    cut = [env.step([0] * 4)[3] for _ in range(world.step_limit)]
    assert cut == [False] * (world.step_limit - 1) + [True]


def test_wrong_use_is_refused():
    env = gym_env(BoxNet1(2, 2))
    with pytest.raises(InputError, match="reset"):
        env.step([0] * 4)
    env.reset(seed=0)
    with pytest.raises(InputError, match="action 999"):
        env.step([999, 0, 0, 0])
    other = parallel_env(BoxNet1(2, 2))
    other.reset(seed=0)
    with pytest.raises(InputError, match="no robots"):
        other.step({"agent7": 0})
