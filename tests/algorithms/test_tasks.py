"""One policy for many tasks: a multiplier for each, the guarantee at every state, what is logged, what is refused."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from support import Recorder, all_equal, further, parameters

from sb3_trl import TRPL, FixPO, RecurrentFixPO, RecurrentTRPL, SeedBatch, StateBound
from sb3_trl.algorithms.losses import normalize_by_task
from sb3_trl.penalty import BetaDual

SMALL = {"n_steps": 40, "batch_size": 24, "n_epochs": 2, "seed": 0, "device": "cpu", "compile": False}
NAMES = ["near", "far", "farther"]
BETAS = {"n_epochs": 3, "learning_rate": 1e-2, "kl_bound": 0.05}


class TaskEnv(gym.Env):
    """Name the goal, which is seen; in a task with a larger number rewards are a hundred times as large.

    :param task: The first episode's.
    :param turns: Whether the next episode has the next task.
    :param kind: ``"box"``, with a one among zeros at the end; ``"dict"``, with the task's number; ``"hot"``, a vector.
    """

    def __init__(self, task: int, turns: bool = False, kind: str = "box", n_tasks: int = 3) -> None:
        self.task, self.turns, self.kind, self.n_tasks = task - turns, turns, kind, n_tasks
        goal, number = spaces.Box(-1, 1, (2,)), {"dict": spaces.Discrete(n_tasks), "hot": spaces.MultiBinary(n_tasks)}
        own = number.get(kind)
        self.observation_space = (
            spaces.Box(-1, 1, (2 + n_tasks,)) if own is None else spaces.Dict({"goal": goal, "which": own})
        )
        self.action_space = spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.task, self.steps = (self.task + self.turns) % self.n_tasks, 0
        return self._observe(), {}

    def step(self, action):
        self.steps += 1
        reward = -(100.0**self.task) * float(np.square(action - self.goal).sum())
        info = {"task": NAMES[self.task], "is_success": self.task == 1}
        return self._observe(), reward, False, self.steps >= 10, info

    def _observe(self):
        self.goal = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        one_hot = np.eye(self.n_tasks, dtype=np.float32)[self.task]
        if self.kind == "box":
            return np.concatenate([self.goal, one_hot])
        return {"goal": self.goal, "which": self.task if self.kind == "dict" else one_hot.astype(np.int8)}


def make_env(tasks=(0, 1, 2), normalize: bool = True, **kwargs):
    env = DummyVecEnv([lambda task=task: Monitor(TaskEnv(task, **kwargs)) for task in tasks])
    return VecNormalize(env, norm_obs_keys=["goal"] if kwargs.get("kind") else None) if normalize else env


def make_fixpo(env=None, cls=FixPO, **kwargs) -> FixPO:
    policy = "MultiInputPolicy" if env is not None and isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    return cls(policy, make_env() if env is None else env, **(SMALL | BETAS | {"tasks": 3} | kwargs))


def logs_of(model, updates: int = 1) -> list[dict]:
    recorder = Recorder()
    model.learn(updates * model.n_steps * model.n_envs, callback=recorder)
    return recorder.logs


# --- who is of which task ---


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("tasks", "kwargs"),
    [(3, {}), ((2, 5), {}), ("task", {}), ("which", {"kind": "dict"}), ("which", {"kind": "hot"})],
)
def test_the_task_of_every_state(tasks, kwargs, normalize):
    """Of environments that change it from episode to episode, in the order of the rollout's tensors."""
    model = make_fixpo(make_env(normalize=normalize, turns=True, **kwargs), tasks=tasks).learn(120)
    rollout = model._rollout()
    expected = (th.arange(3)[:, None] + th.arange(40) // 10).reshape(-1) % 3  # ten steps to an episode
    assert rollout.tasks.tolist() == expected.tolist()
    assert model._task_names == NAMES


def test_the_task_of_every_state_where_sb3_collects():
    model = make_fixpo(make_env(turns=True), use_sde=True).learn(120)
    expected = (th.arange(3)[:, None] + th.arange(40) // 10).reshape(-1) % 3
    assert model._rollout().tasks.tolist() == expected.tolist()


def test_several_rollouts_are_told_apart():
    """A rollout that ends in the middle of an episode goes on with it, also where ``learn`` is called again."""
    model = make_fixpo(make_env((0,), turns=True), n_steps=25, batch_size=25)
    found = []
    for _ in range(2):
        model.learn(25, reset_num_timesteps=False)
        found += model._rollout().tasks.tolist()
    assert found == [step // 10 % 3 for step in range(50)]


# --- one multiplier for each ---


def test_every_beta_takes_the_steps_of_a_dual_of_its_own(monkeypatch):
    """Also of the fixup phase; a minibatch without a state of its task is no step."""
    model = make_fixpo(make_env((0, 0, 0, 1)), batch_size=4, max_fixup_steps=5)
    duals = [BetaDual(0.05, 3.0, 1.0, 0.01) for _ in range(3)]
    seen = []

    def looked_at(name):
        loss = getattr(model, name)

        def look(forward, *arguments):
            value, scalars = loss(forward, *arguments)
            seen.append(scalars["kl"].isfinite().tolist())
            tasks = arguments[0].tasks if name == "_primary_loss" else arguments[2]
            assert seen[-1] == [bool((tasks == k).any()) for k in range(3)]
            for dual, kl in zip(duals, scalars["kl"], strict=True):
                dual.update(kl) if kl.isfinite() else None
            return value, scalars

        monkeypatch.setattr(model, name, look)

    looked_at("_primary_loss")
    looked_at("_fixup_loss")
    log = logs_of(model)[0]
    assert log["fixpo/fixup_steps"] > 0
    assert th.equal(model.dual.state, th.stack([dual.state for dual in duals]))
    assert any(not second for _, second, _ in seen), "a minibatch without the second task"
    assert model.dual.state[2].tolist() == [1, 0, 0, 0], "a task that never occurs"
    assert len(set(model.dual.state[:, 0].tolist())) == 3


def test_each_state_is_weighed_by_its_own_task():
    model = make_fixpo().learn(120)
    rollout, old = model._rollout(), model._action_parameters(model._rollout().observations)
    with th.no_grad():
        for p in model.policy.parameters():
            p += 0.01 * th.randn_like(p)
    new = model._action_parameters(rollout.observations)
    model.dual.state[:, 0] = th.tensor([3.0, 0.0, 7.0])
    loss, scalars = model._fixup_loss(lambda _: new, None, old, rollout.tasks, *model.dual.rule["extra"])
    kl = old.kl(new)
    assert loss.item() == pytest.approx((th.tensor([3.0, 0.0, 7.0])[rollout.tasks] * kl).mean().item(), rel=1e-5)
    assert scalars["kl"].tolist() == [kl[rollout.tasks == k].max().item() for k in range(3)]


@pytest.mark.parametrize("statistic", ["max", "mean"])
def test_one_task_is_none(statistic):
    """The same numbers as without tasks, to the last digit."""
    env = (0, 0)
    plain, single = (
        make_fixpo(make_env(env, n_tasks=1), tasks=tasks, kl_statistic=statistic, max_fixup_steps=20).learn(240)
        for tasks in (None, 1)
    )
    assert all_equal(parameters(plain), parameters(single))
    assert th.equal(plain.dual.state, single.dual.state[0])
    assert plain.dual.value != 1


@pytest.mark.parametrize("cls", [FixPO, RecurrentFixPO])
def test_no_state_of_any_task_moves_further_than_the_bound(cls):
    """With rewards of 1, 100 and 10 000 that nobody normalises, and steps that are far too long."""
    options = {"learning_rate": 3e-2, "normalize_advantage": False, "max_grad_norm": None, "max_fixup_steps": 30}
    options |= {"cls": cls} if cls is FixPO else {"cls": cls, "policy_kwargs": {"lstm_hidden_size": 8}}
    env = make_env(normalize=False)
    if cls is FixPO:
        model = make_fixpo(env, **options)
    else:
        settings = {key: value for key, value in (SMALL | BETAS | options).items() if key not in ("compile", "cls")}
        model = RecurrentFixPO("MlpLstmPolicy", env, tasks=3, **settings)
    for log in logs_of(model, 3):
        assert log["trust_region/violation_fraction"] == 0
        assert log["fixpo/kl_max"] <= 0.05
        assert max(log[f"fixpo/kl_max/{name}"] for name in NAMES) == log["fixpo/kl_max"]
    assert len({log[f"fixpo/beta/{name}"] for name in NAMES}) == 3


@pytest.mark.parametrize("cls", [FixPO, RecurrentFixPO])
def test_one_beta_of_all_tasks(cls):
    """The same numbers as without tasks, to the last digit; and what each task did is logged."""
    policy = "MlpPolicy" if cls is FixPO else "MlpLstmPolicy"
    settings = {key: value for key, value in (SMALL | BETAS).items() if cls is FixPO or key != "compile"}
    settings |= {"beta_per_task": False, "max_fixup_steps": 20}
    plain = cls(policy, make_env(), **settings).learn(120)
    told = cls(policy, make_env(), tasks=3, **settings)
    log = logs_of(told)[0]
    assert all_equal(parameters(plain), parameters(told))
    assert th.equal(plain.dual.state, told.dual.state)
    assert log["fixpo/beta"] == plain.dual.value.item() != 1
    assert {"fixpo/kl_max/far", "trust_region/kl_mean/near", "trust_region/kl_max/farther"} <= log.keys()
    assert not [key for key in log if key.startswith(("fixpo/beta/", "fixpo/fixup_steps/"))]


# --- tasks that info names as they come ---


def test_tasks_that_come_later():
    """β of those that were there stays, and what is saved is what is loaded."""
    model = make_fixpo(make_env((0,), turns=True), n_steps=10, batch_size=10, tasks="task")
    for met in (1, 2, 3):
        before = model.dual.state.clone()
        model.learn(10, reset_num_timesteps=False)
        assert model._task_names == NAMES[:met]
        others = [k for k in range(len(before)) if k != met - 1]
        assert th.equal(model.dual.state[others], before[others])
        assert model.dual.state[met - 1, 3] > 0
    assert model.dual.state.shape == (4, 4), "room for a power of two"


@pytest.mark.parametrize("tasks", [3, "task"])
def test_saved_and_loaded(tasks, tmp_path):
    model = make_fixpo(tasks=tasks).learn(240)
    model.save(tmp_path / "model")
    loaded = FixPO.load(tmp_path / "model", env=make_env(), device="cpu")
    assert th.equal(loaded.dual.state, model.dual.state)
    assert loaded._task_names == NAMES
    loaded.learn(120, reset_num_timesteps=False)
    assert (loaded.dual.state[:3, 3] > model.dual.state[:3, 3]).all()
    assert FixPO.load(tmp_path / "model", device="cpu").dual.state.shape == model.dual.state.shape


def test_what_was_trained_with_one_beta_goes_on_with_several(tmp_path):
    model = make_fixpo(tasks=None).learn(120)
    model.save(tmp_path / "model")
    loaded = FixPO.load(tmp_path / "model", env=make_env(), device="cpu", tasks=3)
    assert th.equal(loaded.dual.state, model.dual.state.expand(3, 4))
    assert "fixpo/beta/far" in logs_of(loaded)[0]


@pytest.mark.parametrize("kwargs", [{"tasks": None}, {"beta_per_task": False}])
def test_what_was_trained_with_several_betas_goes_on_with_their_mean(kwargs, tmp_path):
    model = make_fixpo().learn(120)
    model.save(tmp_path / "model")
    loaded = FixPO.load(tmp_path / "model", env=make_env(), device="cpu", **kwargs)
    assert th.equal(loaded.dual.state, model.dual.state.mean(0))
    assert loaded.learn(120).dual.state.shape == (4,)


# --- compiled, and in batches ---


@pytest.mark.traced
@pytest.mark.parametrize("tasks", ["task", *further(3)])
def test_compiled_is_eager_and_nothing_is_compiled_again(tasks):
    """Where most minibatches have no state of some task."""
    th._dynamo.utils.counters.clear()
    compiled, eager = (make_fixpo(batch_size=3, n_steps=30, tasks=tasks, compile=c).learn(270) for c in (True, False))
    assert th._dynamo.utils.counters["stats"]["unique_graphs"] == 2, "the step, and the divergence of the fixup phase"
    assert not any(step._is_broken for step in compiled._compiled_steps.values())
    assert th.allclose(compiled.dual.state, eager.dual.state, rtol=1e-3)
    assert (compiled.dual.state[:3, 3] < compiled.dual.state[:3, 3].sum() / 2).all(), "not every step is every task's"
    for name, p in parameters(eager).items():
        assert th.allclose(parameters(compiled)[name], p, rtol=1e-2, atol=1e-4), name


@pytest.mark.traced
@pytest.mark.parametrize("cls", [FixPO, *further(TRPL)])
def test_a_batch_of_seeds_is_each_seed_alone(cls):
    options = SMALL | {"learning_rate": 1e-3, "batch_size": 30, "tasks": "task", "normalize_advantage": "task"}
    options |= {"kl_bound": 0.05} if cls is FixPO else {}
    del options["compile"], options["seed"]

    def env(seed: int) -> VecNormalize:
        vec_env = make_env((seed % 3, 1, 2))  # the seeds number the tasks in orders of their own
        vec_env.seed(seed)
        return vec_env

    batch = SeedBatch(cls, "MlpPolicy", env, [3, 4], **options).learn(240)
    for seed, model in zip((3, 4), batch.models, strict=True):
        single = cls("MlpPolicy", env(seed), seed=seed, compile=False, **options).learn(240)
        assert model._task_names == single._task_names == [NAMES[seed % 3], *NAMES[1:][seed % 3 :]]
        for name, p in parameters(single).items():
            assert th.allclose(parameters(model)[name], p, rtol=1e-3, atol=1e-4), name
        if cls is FixPO:
            assert th.allclose(model.dual.state, single.dual.state, rtol=1e-3)


# --- advantages ---


def test_advantages_are_normalised_among_those_of_a_task():
    tasks = th.tensor([0, 1, 1, 0, 2, 1, 0])
    advantages = th.tensor([1.0, 500.0, -300.0, 3.0, 9.0, 70.0, 8.0])
    result = normalize_by_task(advantages, tasks)
    for k in (0, 1):
        assert result[tasks == k].mean().abs() < 1e-6
        assert result[tasks == k].std() == pytest.approx(1, rel=1e-5)
    assert result[4] == 0


@pytest.mark.parametrize("cls", [FixPO, TRPL])
def test_updates_take_advantages_of_each_task(cls):
    options = SMALL | {"tasks": 3, "normalize_advantage": "task"}
    model = cls("MlpPolicy", make_env(normalize=False), **options).learn(120)
    rollout = model._rollout()
    for k in range(3):
        assert rollout.advantages[rollout.tasks == k].std() == pytest.approx(1, rel=1e-3)


def test_recurrent_fixpo_takes_raw_advantages():
    """It took those that rewards were normalised for."""
    settings = {key: value for key, value in (SMALL | BETAS).items() if key != "compile"}
    settings |= {"raw_advantage": True, "normalize_advantage": False, "policy_kwargs": {"lstm_hidden_size": 4}}
    env = make_env()
    model = RecurrentFixPO("MlpLstmPolicy", env, **settings).learn(120)
    buffer = model.rollout_buffer
    raw = buffer.swap_and_flatten(buffer.advantages).flatten() * np.sqrt(env.ret_rms.var + env.epsilon)
    np.testing.assert_allclose(model._rollout().advantages.numpy(), raw, rtol=1e-5)


# --- the log ---


def test_what_is_logged_of_each_task():
    model = make_fixpo(make_env((0, 1)), stats_window_size=2)
    log = logs_of(model)[0]
    per_task = {key.rpartition("/")[0] for key in log if key.endswith("/far")}
    assert per_task >= {"fixpo/beta", "fixpo/kl_max", "fixpo/fixup_steps", "trust_region/kl_mean"}
    assert not [key for key in log if key.endswith("farther")], "which nobody has met"
    assert log["fixpo/beta"] == pytest.approx(model.dual.value.mean().item())
    assert log["fixpo/fixup_steps/near"] <= log["fixpo/fixup_steps"]
    mean = (log["trust_region/kl_mean/near"] + log["trust_region/kl_mean/far"]) / 2
    assert log["trust_region/kl_mean"] == pytest.approx(mean)


@pytest.mark.parametrize("cls", [FixPO, TRPL, RecurrentTRPL])
def test_returns_and_successes_of_each_task(cls, capsys):
    """Over as many of its last episodes as the mean of all is over; the console does not show them."""
    settings = {key: value for key, value in SMALL.items() if key != "compile" or cls is not RecurrentTRPL}
    policy, env = ("MlpLstmPolicy" if cls is RecurrentTRPL else "MlpPolicy"), make_env(turns=True)
    model = cls(policy, env, tasks=3, stats_window_size=100, verbose=1, **settings)
    logged, dump = {}, type(model).dump_logs

    def kept(iteration=0):
        logged.update(model.logger.name_to_value)
        dump(model, iteration)

    model.dump_logs = kept
    model.learn(240)
    episodes = [
        (reward, (start + index) % 3)
        for index, rewards in enumerate(zip(*(e.get_episode_rewards() for e in env.venv.envs), strict=True))
        for start, reward in enumerate(rewards)
    ]
    for number, name in enumerate(NAMES):
        own = [reward for reward, task in episodes if task == number]
        assert logged[f"rollout/ep_rew_mean/{name}"] == pytest.approx(np.mean(own), rel=1e-5)
        assert logged[f"rollout/success_rate/{name}"] == (number == 1)
    assert len(episodes) == len(model.ep_info_buffer)
    printed = capsys.readouterr().out
    assert "ep_rew_mean " in printed
    assert "farther" not in printed


def test_tasks_without_names_have_numbers(monkeypatch):
    monkeypatch.setattr("sb3_trl.rollouts.tasks._NAME", "nothing")
    log = logs_of(make_fixpo())[0]
    assert {"fixpo/beta/0", "fixpo/beta/1", "fixpo/beta/2"} <= log.keys()


def test_a_bound_for_each_task_of_trpl():
    """Though observations, and the ones among them, are normalised."""
    bounds = th.tensor([0.01, 0.03, 0.05])
    bound = StateBound(lambda observations: bounds[observations[:, -3:].argmax(1)])
    env = make_env((0, 1, 2, 2), turns=True)
    model = TRPL("MlpPolicy", env, mean_bound=bound, hard=True, tasks=3, **SMALL)
    for log in logs_of(model, 3):
        assert log["trust_region/violation_fraction"] == 0
        for name, own in zip(NAMES, bounds.tolist(), strict=True):
            assert log[f"trust_region/mean_bound/{name}"] == pytest.approx(own)
            assert log[f"trust_region/mean_distance_max/{name}"] <= own


# --- what is refused ---


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"tasks": 6}, "tasks=6 is outside the observation, which has 5 entries"),
        ({"tasks": (3, 6)}, "is outside the observation"),
        ({"tasks": (4, 4)}, "is outside the observation"),
        ({"tasks": 0}, "tasks=0: give K for"),
        ({"tasks": True}, "tasks=True: give K for"),
        ({"tasks": 2.5}, "tasks=2.5: give K for"),
        ({"tasks": (1, 2, 3)}, "give K for"),
        ({"tasks": None, "normalize_advantage": "task"}, "normalize_advantage='task' needs tasks"),
        ({"normalize_advantage": "tasks"}, "normalize_advantage='tasks' is unknown: choose True, False or 'task'"),
        ({"normalize_advantage": "task", "raw_advantage": True}, "which would undo it"),
        ({"env": make_env(kind="dict"), "tasks": 3}, "are entries of a vector, but observations are Dict"),
        ({"env": make_env(kind="dict"), "tasks": "goal"}, "in 'goal', where a task should be a one among zeros"),
        ({"tasks": 2}, r"An observation has \[0. 0.\] in entries 3 to 4, where a task should be a one among zeros"),
        ({"tasks": (0, 3)}, "in entries 0 to 2, where"),
        ({"tasks": "name"}, "tasks='name' is no key of info, which has 'task', 'is_success'"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_fixpo(**kwargs).learn(40)
