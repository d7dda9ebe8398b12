"""Windows against cases computed by hand and a naive loop."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from lines import GOALS, line, options, plain, same

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Affine, Normalizer
from trajgen.core.types import Space
from trajgen.data.episodes import Episode, Episodes
from trajgen.data.options import DataOptions
from trajgen.data.starts import remark_on_starts
from trajgen.data.windows import Windows, fit_normalizer, returns_to_go


def test_return_to_go_by_hand() -> None:
    # Rewards 1, 2, 3: 3, then 2 + 3/2, then 1 + 3.5/2; nothing flows from one episode into the other.
    assert returns_to_go(line([3, 1]), 0.5).tolist() == [2.75, 3.5, 3.0, 0.0, 1.0, 0.0]


def test_a_window_by_hand() -> None:
    batch = plain(line([4]), options()).batch(0, 1)
    assert batch.states[0, :, 1].tolist() == [0, 2, 4]
    assert batch.actions[0, ..., 0].tolist() == [[1, 2], [3, 4], [0, 0]]  # the final observation has no action
    assert batch.time is not None and batch.time.tolist() == [0]
    assert batch.rewards[0].tolist() == [1 + 2, 3 + 4, 0]
    assert batch.returns[0].tolist() == [1 + 2 / 2 + 3 / 4 + 4 / 8, 3 + 4 / 2, 0]
    assert batch.mask.all()
    assert batch.chunk_states[0, :, 1].tolist() == [0, 1, 2]
    assert batch.chunk_actions[0, :, 0].tolist() == [1, 2, 3]
    assert batch.goals is None


def starts(episodes: Episodes, choice: DataOptions) -> set[tuple[int, int]]:
    batch = plain(episodes, choice).batch(0, 2000)
    return {(int(number), int(step)) for number, step in batch.states[:, 0]}


def test_windows_pass_a_terminal_but_not_a_timeout() -> None:
    episodes = line([5, 5], terminated=[False, True])
    assert starts(episodes, options()) == {(0, 0), (0, 1), *((1, step) for step in range(5))}
    # A third of three points may lie beyond the timeout: the second point, two steps on, must not.
    third = options(max_padding=1 / 3)
    assert starts(episodes, third) == {*((0, step) for step in range(4)), *((1, step) for step in range(5))}
    assert len(starts(episodes, options(ends_with_task=True))) == 10


@pytest.mark.parametrize(("padding", "remark"), [(0.0, "Windows of 4 steps start at 29%"), (0.6, "")])
def test_windows_that_start_at_few_steps_are_remarked_on(padding: float, remark: str) -> None:
    text = remark_on_starts(line([5, 2]), options(max_padding=padding))
    assert bool(text) == bool(remark) and remark in (text or "")


def test_padding_repeats_the_last_row_and_is_masked() -> None:
    batch = plain(line([4], terminated=[True]), options()).batch(0, 200)
    row = int(torch.nonzero(batch.states[:, 0, 1] == 3)[0])
    assert batch.states[row, :, 1].tolist() == [3, 4, 4]
    assert batch.mask[row].tolist() == [True, False, False]
    assert batch.rewards[row].tolist() == [4, 0, 0]
    assert batch.returns[row].tolist() == [4, 0, 0]
    assert batch.chunk_mask[row].tolist() == [True, False, False]
    assert batch.chunk_actions[row, :, 0].tolist() == [4, 0, 0]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_hindsight_goals_come_from_the_rest_of_the_same_episode(share: float) -> None:
    choice = options(**GOALS, relabel_ratio=share, max_padding=0.5)
    batch = plain(line([9, 6, 7], terminated=[True, False, True]), choice).batch(3, 3000)
    assert batch.goals is not None
    start, goal = batch.states[:, 0].double(), batch.goals.double()
    next_state = ((goal - start - 0.2).abs() < 1e-5).all(1)
    assert next_state.double().mean().item() == pytest.approx(1 - share, abs=0.03)
    later = goal[~next_state]
    assert (later[:, 0] == start[~next_state, 0]).all()
    assert (later[:, 1] > start[~next_state, 1]).all()
    last = torch.tensor([9.0, 6.0, 7.0], dtype=torch.double)
    assert (later[:, 1] <= last[later[:, 0].long()]).all()
    if share > 0:  # the final observation can be a goal too
        assert (later[:, 1] == last[later[:, 0].long()]).any()


def test_goals_are_reached_after_any_number_of_steps_or_after_any_order_of_magnitude() -> None:
    count = np.arange(1001.0)
    states = np.stack([0 * count, count], 1)  # the second is the step
    walk = Episode(states, states[1:, :1], count[1:], False, 0 * states, states)
    episodes = Episodes.collect([walk], name="line", space=Space(2, 1, 2, "s", "d"))
    shares = {"uniform": lambda most: 9 / most, "log_uniform": lambda most: math.log(10) / most.log1p()}
    for steps, share in shares.items():
        batch = plain(episodes, options(**GOALS, relabel_ratio=1.0, relabel_steps=steps)).batch(0, 4000)
        assert batch.goals is not None
        start, goal = batch.states[:, 0, 1], batch.goals[:, 1]
        assert ((start < goal) & (goal <= 1000)).all()
        expected = share(1000 - start).clamp(max=1).mean()
        assert (goal - start <= 9).float().mean().item() == pytest.approx(expected.item(), abs=0.02)


def test_with_absorbing_goals_a_window_stays_where_the_data_turn_to_another_goal() -> None:
    steps, turn = 20, 8
    states = np.stack([np.zeros(steps + 1), np.arange(steps + 1)], 1)
    goals = np.where(np.arange(steps + 1)[:, None] < turn, 1.0, 2.0) * np.ones(2)
    walk = Episode(states, np.arange(1.0, steps + 1)[:, None], np.ones(steps), True, goals, states)
    episodes = Episodes.collect([walk], name="line", space=Space(2, 1, 2, "s", "d"))
    choice = options(
        **{**GOALS, "goal_radius": None}, horizon=4, stride=3, chunk=4, max_padding=0.0, absorbing_terminals=True
    )
    plain_batch, batch = (
        plain(episodes, replace(choice, absorbing_goals=absorbing)).batch(0, 200) for absorbing in (False, True)
    )
    start = batch.states[:, 0, 1]
    points = start.unsqueeze(1) + 3 * torch.arange(4)
    ends = torch.where(start < turn, turn, steps).unsqueeze(1)
    assert (start < turn).any() and (start >= turn).any()
    assert torch.equal(plain_batch.states[..., 1], points.clamp(max=steps))
    assert torch.equal(plain_batch.states[:, 0], batch.states[:, 0])
    assert torch.equal(batch.states[..., 1], points.minimum(ends)) and batch.mask.all()
    assert batch.terminals is not None and torch.equal(batch.terminals, points >= steps)  # a turn ends no task
    chunk = start.unsqueeze(1) + torch.arange(4)
    assert torch.equal(batch.chunk_mask, chunk < ends)  # what is done after that leads elsewhere
    assert torch.equal(batch.actions[:, 0, :, 0] == 0, start.unsqueeze(1) + torch.arange(3) >= ends)
    left = (ends - points).clamp(min=0)  # steps with a reward of 1 each that are still to come for the goal
    torch.testing.assert_close(batch.returns, (1 - choice.discount**left) / (1 - choice.discount))


@pytest.mark.parametrize(("discount", "steps"), [(0.9, 66), (1.0, 30)])
def test_returns_follow_the_goal_of_the_window(discount: float, steps: int) -> None:
    episodes = line([30, 17, 23], terminated=[False, True, False], seed=5)
    choice = options(**GOALS, discount=discount, horizon=4, stride=3, max_padding=0.5)
    assert episodes.achieved is not None
    batch = plain(episodes, choice).batch(1, 64)
    assert batch.goals is not None
    reached = 0.0
    for number in range(len(batch)):
        which, step = (int(value) for value in batch.states[number, 0])
        end = int(episodes.lengths[which])
        path = episodes.achieved[episodes.starts[which] : episodes.ends[which] + 1]
        goal = batch.goals[number].numpy()
        near = [float(np.linalg.norm(path[t + 1] - goal) <= 0.6) for t in range(end)]
        for point in range(4):
            at = step + 3 * point
            # Strides are looked at whole: 66 steps is where 0.9**n falls below a thousandth.
            expected = sum(near[t] * discount ** (t - at) for t in range(at, min(end, at + steps)))
            assert batch.returns[number, point].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
            assert batch.rewards[number, point].item() == sum(near[at : at + 3])
            reached += expected
    assert reached > 0


def test_the_look_ahead_ends_where_rewards_have_faded() -> None:
    # Standing at the goal: with discount 0.5 a reward is below a thousandth after 10 steps, five strides.
    still = np.zeros((101, 2))
    raw = Episode(still, np.zeros((100, 1)), np.zeros(100), False, still, still)
    episodes = Episodes.collect([raw], name="still", space=Space(2, 1, 2, "s", "d"))
    batch = plain(episodes, options(**GOALS, max_padding=0.0)).batch(0, 8)
    assert batch.returns[:, 0].tolist() == pytest.approx([2 - 2**-9] * 8, abs=1e-6)


def test_a_batch_is_a_function_of_seed_step_and_rank() -> None:
    choice = options(**GOALS, max_padding=0.5)
    episodes = line([40, 30], seed=1)
    source = plain(episodes, choice, seed=7)
    first = source.batch(5, 32, rank=1)
    torch.manual_seed(99)
    source.batch(6, 32)
    state = torch.get_rng_state()
    assert same(first, source.batch(5, 32, rank=1))
    assert same(first, plain(episodes, choice, seed=7).batch(5, 32, rank=1))
    assert torch.equal(state, torch.get_rng_state())
    for other in (source.batch(5, 32), source.batch(6, 32, rank=1), plain(episodes, choice, 8).batch(5, 32, rank=1)):
        assert not same(first, other)


def test_the_normalizer_makes_windows_standard_and_goes_back() -> None:
    episodes = line([60, 80], seed=2)
    choice = options(**GOALS, return_power=0.5, max_padding=0.0)
    norm = fit_normalizer(episodes, choice)
    standard, raw = Windows(episodes, choice, norm).batch(0, 512), plain(episodes, choice).batch(0, 512)
    for values, of in ((standard.states, (0, 1)), (standard.returns, (0, 1)), (standard.chunk_actions, (0, 1))):
        assert torch.allclose(values.mean(of), torch.zeros(()), atol=0.1)
        assert torch.allclose(values.std(of), torch.ones(()), atol=0.1)
    assert torch.allclose(norm.state.inverse(standard.states), raw.states, atol=1e-4)
    assert torch.allclose(norm.returns.inverse(standard.returns), raw.returns, atol=1e-4)
    assert torch.allclose(norm.reward.inverse(standard.rewards), raw.rewards, atol=1e-4)
    assert standard.goals is not None and raw.goals is not None
    assert torch.allclose(norm.goal.inverse(standard.goals), raw.goals, atol=1e-4)
    again = fit_normalizer(episodes, choice).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in norm.state_dict().items())


def test_a_feature_is_constant_by_its_deviation_relative_to_its_size() -> None:
    noise = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (1000, 4)))
    size, offset = torch.tensor([5e-4, 1e-9, 10.0, 1e-8]), torch.tensor([0.0, 0.0, 4.6e6, 0.1])
    affine = Affine(4)
    affine.fit((noise * size + offset).float())  # of the last one, 32-bit floats hold rounding errors alone
    assert torch.allclose(affine.scale[:3] / size[:3], torch.full((3,), 3**-0.5), rtol=0.1)
    assert affine.scale[3] == 1


def test_a_window_longer_than_every_episode_is_refused_with_what_fits() -> None:
    with pytest.raises(ConfigError) as caught:
        plain(line([5, 7], terminated=[True, True]), options(horizon=5, stride=2))
    assert "7 steps" in str(caught.value) and "8 steps" in str(caught.value)
    assert caught.value.fix == "data.stride=1 or data.horizon=4"
    for cure in ({"horizon": 4, "stride": 2}, {"horizon": 5, "stride": 1}):
        assert len(plain(line([5, 7]), options(**cure)))


def test_goals_that_the_data_lack_are_refused() -> None:
    raw = Episode(np.zeros((9, 2)), np.zeros((8, 1)), np.zeros(8))
    bare = Episodes.collect([raw], name="bare", space=Space(2, 1))
    with pytest.raises(ConfigError, match="'bare' without them"):
        plain(bare, options(**GOALS))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"horizon": 0}, "horizon"),
        ({"stride": -1}, "stride"),
        ({"max_padding": 1.5}, "max_padding"),
        ({"discount": 0.0}, "discount"),
        ({"return_power": 0.0}, "return_power"),
        ({"goals": "dataset"}, "goal_key"),
        ({"goals": "hindsight", "goal_key": "d"}, "achieved_key"),
        ({"goal_radius": 0.5, "achieved_key": "a"}, "goals"),
        ({"terminate_at_goal": True}, "goal_radius"),
        ({"val_fraction": -0.1}, "val_fraction"),
        ({"val_fraction": 1.1}, "val_fraction"),
        ({"top_fraction": 0.0}, "top_fraction"),
        ({"top_fraction": 1.1}, "top_fraction"),
        *(({"bounds": {"a": pair}}, "bounds") for pair in ((1.0, 0.0), (1.0, 1.0), (0.0, math.nan), (0.0, math.inf))),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{name}"):
        options(**changes)


# --- episodes that end on arrival, with what comes after as padding ---------------------------------------------------

STEPS, DISCOUNT = 40, 0.9


def walk() -> Episodes:
    """A walk along a line to 20 and back, one unit a step; the desired goal is never reached."""
    position = np.concatenate([np.arange(21.0), np.arange(19.0, -1.0, -1.0)])[:, None]
    raw = Episode(
        states=position,
        actions=np.ones((STEPS, 1)),
        rewards=np.zeros(STEPS),
        goals=np.full_like(position, 99.0),
        achieved=position,
    )
    return Episodes.collect([raw], name="walk", space=Space(1, 1, 1, "state", "goal"))


def windows(**changes: Any) -> Windows:
    settings: dict[str, Any] = {
        "horizon": 8,
        "stride": 2,
        "chunk": 4,
        "discount": DISCOUNT,
        "return_power": 1.0,
        "goal_key": "goal",
        "achieved_key": "place",
        "goals": "hindsight",
        "relabel_ratio": 1.0,
        "goal_radius": 0.25,
        "max_padding": 1.0,
        **changes,
    }
    return Windows(walk(), DataOptions(id="walk", **settings), Normalizer(1, 1, 1))


def first_arrival(start: int, goal: float) -> int:
    position = walk().states[:, 0]
    return next(row for row in range(start + 1, STEPS + 1) if abs(position[row] - goal) <= 0.25)


def test_a_window_ends_where_its_goal_is_first_reached() -> None:
    batch = windows(terminate_at_goal=True).batch(0, 200)
    assert batch.goals is not None and batch.time is not None
    passed_twice = 0
    for index, start in enumerate(batch.time.tolist()):
        goal = float(batch.goals[index, 0])
        arrival = first_arrival(start, goal)
        again = windows().batch(0, 200).returns[index, 0] if index < 3 else None
        expected = DISCOUNT ** (arrival - start - 1)
        assert float(batch.returns[index, 0]) == pytest.approx(expected, abs=2e-3)
        assert again is None or float(again) >= expected - 2e-3  # without an end, coming back pays once more
        points = start + 2 * np.arange(8)
        assert batch.mask[index].tolist() == (points <= arrival).tolist()
        assert batch.chunk_mask[index].tolist() == (start + np.arange(4) < arrival).tolist()
        beyond = batch.states[index, torch.from_numpy(points >= arrival)]
        assert torch.equal(beyond, torch.full_like(beyond, walk().states[arrival, 0]))
        assert float(batch.rewards[index].sum()) == float(arrival <= start + 16)
        passed_twice += sum(abs(walk().states[start + 1 :, 0] - goal) <= 0.25) > 1
    assert passed_twice > 20


def test_beyond_an_arrival_that_absorbs_every_point_is_the_goal() -> None:
    left_out, stays = (
        windows(terminate_at_goal=True, absorbing_terminals=absorbing).batch(0, 200) for absorbing in (False, True)
    )
    assert stays.time is not None and stays.goals is not None
    assert stays.terminals is not None and left_out.terminals is not None
    arrived = 0
    for index, start in enumerate(stays.time.tolist()):
        arrival = first_arrival(start, float(stays.goals[index, 0]))
        beyond = torch.from_numpy(start + 2 * np.arange(8) > arrival)
        assert stays.mask[index, ~beyond].all() and not left_out.mask[index, beyond].any()
        if start + 2 * 8 >= arrival:  # of an arrival beyond the window nothing is known
            assert stays.mask[index].all()
            arrived += int(beyond.any())
        assert not stays.returns[index, beyond].any() and not stays.rewards[index, beyond].any()
        is_over = (start + 2 * np.arange(8) >= arrival).tolist()
        assert stays.terminals[index].tolist() == left_out.terminals[index].tolist() == is_over
    assert arrived > 20
    assert torch.equal(stays.states, left_out.states) and torch.equal(stays.chunk_mask, left_out.chunk_mask)


@pytest.mark.parametrize("terminated", [True, False])
def test_a_terminal_absorbs_and_a_timeout_does_not(terminated: bool) -> None:
    raw = Episode(states=np.arange(7.0)[:, None], actions=np.ones((6, 1)), rewards=np.ones(6), terminated=terminated)
    episodes = Episodes.collect([raw], name="fall", space=Space(1, 1, 0, "state", None))
    choice = DataOptions(
        id="fall", horizon=4, stride=1, chunk=2, return_power=1.0, max_padding=0.5, absorbing_terminals=True
    )
    batch = Windows(episodes, choice, Normalizer(1, 1, 0)).batch(0, 50)
    assert batch.time is not None
    real = batch.time.unsqueeze(1) + torch.arange(4) <= 6
    assert not real.all()
    assert torch.equal(batch.mask, torch.ones_like(real) if terminated else real)
    assert batch.terminals is not None
    assert torch.equal(batch.terminals, (batch.time.unsqueeze(1) + torch.arange(4) >= 6) & terminated)


def test_a_goal_that_is_never_reached_leaves_the_window_as_it_is() -> None:
    goal_options = {"goals": "dataset", "goal_radius": 0.25}
    one, other = (windows(terminate_at_goal=ends, **goal_options).batch(0, 50) for ends in (True, False))
    assert torch.equal(one.mask, other.mask) and torch.equal(one.states, other.states)
    assert float(one.returns.abs().max()) == 0


def test_goals_of_windows_with_a_past_are_pursued_from_the_current_point_on() -> None:
    past = 6
    batch = windows(terminate_at_goal=True).with_past(past).batch(0, 200)
    assert batch.goals is not None and batch.time is not None
    passed_before = 0
    for index, start in enumerate(batch.time.tolist()):
        goal, current = float(batch.goals[index, 0]), min(start + past, STEPS - 1)
        arrival = first_arrival(current, goal)
        assert batch.mask[index].tolist() == (start + 2 * np.arange(8) <= arrival).tolist()
        expected = DISCOUNT ** (arrival - start - past - 1) if start + past < STEPS else 0
        assert float(batch.returns[index, past // 2]) == pytest.approx(expected, abs=2e-3)
        passed_before += first_arrival(start, goal) <= current
    assert passed_before > 5


def test_the_data_goal_of_a_window_with_a_past_is_that_of_the_current_point() -> None:
    states = np.arange(21.0)[:, None]
    goals = np.where(states < 8, 1.0, 2.0)
    walk = Episode(states, states[1:], np.ones(20), True, goals, states)
    episodes = Episodes.collect([walk], name="line", space=Space(1, 1, 1, "s", "d"))
    choice = options(**{**GOALS, "goal_radius": None, "goals": "dataset"}, absorbing_goals=True)
    batch = Windows(episodes, choice, Normalizer(1, 1, 1)).with_past(2).batch(0, 200)
    start = batch.states[:, 0, 0]
    assert batch.goals is not None
    assert torch.equal(batch.goals[:, 0] == 2, start + 2 >= 8) and (start + 2 == 8).any()
    ends = torch.where(start + 2 < 8, 8.0, 20.0)
    points = start.unsqueeze(1) + 2 * torch.arange(3)
    assert torch.equal(batch.states[..., 0], points.minimum(ends.unsqueeze(1)))
