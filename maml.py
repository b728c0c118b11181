# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "jax>=0.8",
#     "chex>=0.1.90",
#     "optax>=0.2.6",
#     "numpy>=2.0",
#     "matplotlib>=3.10.8",
# ]
# ///
"""M-MAML: learn where to start and how fast to learn, so that naive learning ends well.

"Multi-agent MAML". It is from Al-Shedivat et al. (2018), Continuous Adaptation via
Meta-Learning, with their learned step sizes; Lu et al. (2022), Model-Free Opponent
Shaping, use it on exact games. An agent learns a policy to start from and a step size
s. From there on it is a naive learner (Eq. 1 of Cooijmans, Aghajohari and Courville,
2023, Learning with Learning Awareness using Meta-Values), and so is its opponent, which
starts at a random policy and has the step size lr. With the agent as player 1:

    x_1(t + 1) = x_1(t) + s d/dx_1 f_1(x(t))
    x_2(t + 1) = x_2(t) + lr d/dx_2 f_2(x(t))

Adam ascends, by x_1(0) and s, the mean of f_1(x(1)), ..., f_1(x(T)) over a batch of
random x_2(0). The gradient goes through all T joint steps, and so through the
opponent's learning, whose rule has to be known. A step size may become negative.
Another agent is trained likewise as player 2; the two meet only in the evaluation.

    python maml.py --game ipd          half a minute to two minutes on two cores
    python maml.py --game imp --quick  a small run, 20 to 30 seconds

On the iterated prisoner's dilemma (ipd; -1 if both cooperate, -2 if both defect) expect
agents whose step size is near 0 or negative. Beside a naive learner they mostly get
-.96, and the learner gets -1.09. In self-play both defect. With --lr 25, the look-ahead
step of LOLA there, the seed decides: the mean return in training is -.9 to -2. A run
prints a table and writes results/maml_GAME.npz and figures/maml_GAME.png.
"""

import argparse
import dataclasses
import functools
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from games import (
    Game,
    checked_policies,
    evaluate_game,
    find_game,
    flatten,
    load_model,
    make_folders,
    print_progress,
    print_settings,
    report,
    run_script,
    simultaneous_gradient,
)


# --- shared: flags (the same lines in every script) ---
def flag(default, description, low=None, high=None, **settings):
    """A field of `Config` that is also a flag, a number from `low` to `high` if given.

    `settings` are argparse's.
    """
    settings = {"type": type(default), "help": f"{description} ({default})"} | settings
    metadata = {"low": low, "high": high, "argparse": settings}
    return dataclasses.field(default=default, metadata=metadata)


def check_settings(config):
    """Raise ValueError, which names the flag, if a value is not one that it takes."""
    for field in dataclasses.fields(config):
        name = field.name.replace("_", "-")
        value = getattr(config, field.name)
        choices = field.metadata["argparse"].get("choices")
        if choices is not None and value not in choices:
            raise ValueError(f"--{name} takes {', '.join(choices)}, not {value}")
        low, high = field.metadata["low"], field.metadata["high"]
        if low is None or value is None:
            continue
        numbers = np.ravel(value)
        if not all(low <= number <= high for number in numbers):
            given = " ".join(str(number) for number in numbers)
            raise ValueError(f"--{name} takes {low} to {high}, not {given}")


# --- end shared -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a run. The defaults are for the IPD: see `make_config`."""

    game: str = flag(
        "ipd", "the game, or a variant of it such as ipd+mlp: see games.py"
    )
    seed: int = flag(0, "first random seed", 0, 2**31 - 1)
    num_seeds: int = flag(
        1, "number of trained pairs of agents: seed, seed + 1, ...", 1, 1000
    )
    lr: float = flag(
        2.0, "step size of opponents, and at first of the agents", 1e-30, 1e30
    )
    outer_steps: int = flag(1000, "steps of Adam", 1, 1_000_000)
    batch_size: int = flag(64, "opponents of an agent in a step of Adam", 1, 65_536)
    rollout_length: int = flag(300, "joint naive steps T", 1, 1_000_000)
    model_lr: float = flag(0.1, "learning rate of Adam", 0, 1e30)
    eval_pairs: int = flag(256, "random opponents in the evaluation", 1, 100_000)
    eval_steps: int = flag(500, "joint steps in the evaluation", 1, 1_000_000)

    def __post_init__(self):
        check_settings(self)


def make_config(game: str | Game = "ipd", quick: bool = False, **changes) -> Config:
    """The settings for a game, with changes. ValueError if out of range."""
    played = find_game(game)
    if played.sample is not None:
        raise ValueError(f"maml.py needs exact returns, not those of {played.name}")
    settings = {"game": played.name, "lr": played.lr}
    # Adam moves a step size s by about model_lr, so it must be smaller than s is at
    # first. (--lr does not change model_lr: only the game does.)
    settings["model_lr"] = min(0.1, 0.1 * played.lr)
    if played.planar:
        settings.update(eval_pairs=32, eval_steps=200)
    if quick:
        settings.update(outer_steps=200, rollout_length=100, eval_pairs=16)
    settings.update(changes)
    return Config(**settings)


# --- M-MAML: what an agent ascends ----------------------------------------------------


class Agents(NamedTuple):
    """What is learned: row 0 is of the agent that is player 1, row 1 of the other."""

    policy: jax.Array  # where it starts, (2, n)
    step_size: jax.Array  # s, (2,)


def meta_return(
    params: Agents, game: Game, opponent: jax.Array, agent: int, lr: float, steps: int
) -> jax.Array:
    """Mean return of an agent over its first `steps` joint steps with a naive learner.

    Args:
      params: where agents start, and their step sizes.
      game: the game.
      opponent: (2, n), where the opponent starts in its row. The agent's is not used.
      agent: which agent plays, 0 (as player 1) or 1 (as player 2).
      lr: the opponent's step size.
      steps: joint naive steps T.

    Returns:
      (), the mean of f_i(x(1)), ..., f_i(x(T)) of the player i that the agent is. Its
      gradient with respect to `params` is what the agent ascends.
    """
    policy = checked_policies(params.policy, game.n)
    opponent = checked_policies(opponent, game.n)
    start = opponent.at[agent].set(policy[agent])
    step_sizes = jnp.full(2, lr, start.dtype).at[agent].set(params.step_size[agent])

    # Each step is computed again in the backward pass: on CPUs twice as fast as to
    # store and read all that the gradient needs of it.
    @jax.checkpoint
    def step(x, _):
        x = x + step_sizes[:, None] * simultaneous_gradient(game.f, x)
        return x, game.f(x)[agent]

    _, returns = jax.lax.scan(step, start, length=steps)
    return returns.mean()


# --- Training -------------------------------------------------------------------------


class TrainState(NamedTuple):
    """What changes in training."""

    params: Agents
    opt_state: optax.OptState
    step: jax.Array  # steps of Adam done


def model_init(key: jax.Array, game: Game, config: Config) -> Agents:
    """What training begins with: random policies, and the opponents' step size."""
    policy = game.init(key)
    return Agents(policy, jnp.full(2, config.lr, policy.dtype))


def train_init(key: jax.Array, game: Game, config: Config) -> TrainState:
    """The state before the first step of Adam. `key` is the seed's."""
    params = model_init(jax.random.fold_in(key, 0), game, config)
    opt_state = optax.adam(config.model_lr).init(params)
    return TrainState(params, opt_state, jnp.int32(0))


def outer_step(key: jax.Array, state: TrainState, game: Game, config: Config):
    """A step of Adam for both agents, each against opponents of its own.

    Returns (state, metrics).
    """
    keys_1, keys_2 = jax.random.split(key, (2, config.batch_size))
    opponents_1 = jax.vmap(game.init)(keys_1)  # (batch, 2, n), of player 1's agent
    opponents_2 = jax.vmap(game.init)(keys_2)

    def mean_return(params, opponents, agent):
        def one(opponent):
            return meta_return(
                params, game, opponent, agent, config.lr, config.rollout_length
            )

        return jax.vmap(one)(opponents).mean()

    def loss(params):
        return_1 = mean_return(params, opponents_1, 0)
        return_2 = mean_return(params, opponents_2, 1)
        returns = jnp.stack([return_1, return_2])
        return -returns.mean(), returns  # each return has a gradient in its row alone

    (value, returns), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
    change, opt_state = optax.adam(config.model_lr).update(gradient, state.opt_state)
    params = optax.apply_updates(state.params, change)
    metrics = {
        "loss": value,
        "mean_return": returns,
        "step_size": state.params.step_size,
    }
    return TrainState(params, opt_state, state.step + 1), metrics


def train_chunk(key: jax.Array, state: TrainState, game: Game, config: Config, count):
    """`count` steps of Adam. Returns (state, curves), the metrics of each step.

    `key` is the seed's, in all chunks. "loss" is (count,); "mean_return" and
    "step_size" are (count, 2), player 1's agent first.
    """

    def step(state, _):
        key_step = jax.random.fold_in(key, 1 + state.step)
        return outer_step(key_step, state, game, config)

    return jax.lax.scan(step, state, length=count)


def train(key: jax.Array, game: Game, config: Config):
    """Train one pair of agents. Returns (params, curves), as `train_chunk` of all steps.

    For use from Python: jit it with `game` and `config` static, and map it over keys.
    """
    state = train_init(key, game, config)
    state, curves = train_chunk(key, state, game, config, config.outer_steps)
    return state.params, curves


# --- Evaluation -----------------------------------------------------------------------


def evaluate(
    key: jax.Array, params: Agents, game: Game, config: Config
) -> dict[str, jax.Array]:
    """Play from where the agents start, beside opponents that start where `key` draws.

    The arrays are those of `evaluate_game` with an axis of length 1 before, as that of
    a sweep. In self-play nothing is drawn: all pairs of a seed are the same.
    """

    def step(x):  # each player has a step size of its own
        return x + params.step_size[:, None] * simultaneous_gradient(game.f, x)

    results = evaluate_game(
        key,
        game,
        step,
        lr=config.lr,
        steps=config.eval_steps,
        pairs=config.eval_pairs,
        agent_start=params.policy,
    )
    return jax.tree.map(lambda leaf: leaf[None], results)


# --- Command line ---------------------------------------------------------------------


# --- shared: command line (the same lines in every script) ---
def parse_args(argv=None) -> tuple[Config, str]:
    """Settings from the command line, a flag for each field of `Config`; and --out."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage=argparse.SUPPRESS,  # so that an error is one line
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--quick", action="store_true", help="a small run")
    parser.add_argument("--out", default=".", help="folder of results/ and figures/")
    for field in dataclasses.fields(Config):
        name = "--" + field.name.replace("_", "-")
        settings = field.metadata["argparse"]
        # Only what is given is a change: defaults depend on the game.
        parser.add_argument(name, default=argparse.SUPPRESS, **settings)
    arguments = vars(parser.parse_args(argv))
    out = arguments.pop("out")
    try:
        config = make_config(**arguments)
        make_folders(out)
    except ValueError as error:
        parser.error(str(error))
    return config, out


# --- end shared -----------------------------------------------------------------------


def load(path: str | Path, seed: int | None = None, game: Game | None = None):
    """The agents of results/maml_GAME.npz. Returns (params, config).

    Args:
      path: of the file.
      seed: which pair of agents, if the file has several; the first if None.
      game: the game, if it is not one of games.py.
    """
    return load_model(path, Config, model_init, seed, game)


CHUNK = 25  # steps of Adam between two lines of progress


def train_seeds(seeds: np.ndarray, game: Game, config: Config):
    """Train a pair of agents for each seed. Returns (params, curves), seeds on axis 0.

    Nothing is saved before the end. SystemExit, status 1, if training diverges.
    """
    keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed))[0])(seeds)
    state = jax.vmap(lambda key: train_init(key, game, config))(keys)
    parts = []

    @functools.cache
    def compiled(count):  # a program for chunks of so many steps
        chunk = partial(train_chunk, game=game, config=config, count=count)
        return jax.jit(jax.vmap(chunk)).lower(keys, state).compile()

    for done in range(0, config.outer_steps, CHUNK):
        count = min(CHUNK, config.outer_steps - done)
        run = compiled(count)
        begin = time.perf_counter()
        state, curves = jax.device_get(run(keys, state))
        rate = count / (time.perf_counter() - begin)
        finite = [np.isfinite(leaf).all() for leaf in jax.tree.leaves((state, curves))]
        if not all(finite):
            steps = f"between steps {done} and {done + count}"
            raise SystemExit(f"training diverged {steps}")
        parts.append(curves)
        print_progress(done + count, config.outer_steps, curves, rate)

    curves = {}
    for name in parts[0]:
        curves[name] = np.concatenate([part[name] for part in parts], axis=1)
    return state.params, curves


def draw_curves(figure, curves: dict, config: Config):
    """How training went, two lines for each seed."""
    left, right = figure.subplots(1, 2)
    steps = np.arange(1, config.outer_steps + 1)
    for axis, name in ((left, "mean_return"), (right, "step_size")):
        curve = curves[name]  # (seed, step, 2)
        axis.plot(steps, curve[..., 0].T, "-", color="tab:red", linewidth=1)
        axis.plot(steps, curve[..., 1].T, ":", color="tab:red", linewidth=1.5)
        axis.set(xlabel="steps of Adam")
    left.set(ylabel="mean return in training")
    right.set(ylabel="step size of the agent")
    lines = [right.lines[0], right.lines[-1]]
    names = ["agent, player 1", "agent, player 2"]
    right.legend(lines, names, loc="upper left", bbox_to_anchor=(1, 1))


def main(argv=None):
    config, out = parse_args(argv)
    game = find_game(config.game)
    settings = print_settings(config)
    seeds = np.arange(config.num_seeds, dtype=np.uint32) + config.seed
    params, curves = train_seeds(seeds, game, config)

    def evaluate_one(seed, params):
        _, key = jax.random.split(jax.random.key(seed))  # the first is for training
        return evaluate(key, params, game, config)

    evaluate_all = jax.jit(jax.vmap(evaluate_one, out_axes=1))
    results = jax.device_get(evaluate_all(seeds, params))
    results |= curves | flatten("params", params)
    report(
        "maml",
        game,
        settings,
        [config.lr],
        results,
        symbol="step size lr",
        color="tab:red",
        out=out,
        draw_below=lambda figure: draw_curves(figure, curves, config),
    )


if __name__ == "__main__":
    run_script(main)
