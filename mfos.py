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
"""M-FOS: an agent that plays a game of policies, and learns by PPO to shape learners.

Lu, Willi, Letcher and Foerster (2022), Model-Free Opponent Shaping, on exact games with
returns f_1, f_2. A step of the meta-game is a whole inner game. Its state is the pair
of policies that was played last, x(t), which networks see as `game.features`. The
agent, say player 1, draws its next policy from a normal distribution, with the mean and
the variance that a network makes of that state. The other player takes a step of its
own learning:

    x_1(t + 1) ~ N(mu(x(t)), sigma^2(x(t)))
    x_2(t + 1) = x_2(t) + lr g_2(x(t))
    reward(t) = f_1(x(t + 1))

where g_2 is what the other follows, its naive gradient or LOLA's. PPO (Schulman et al.,
2017, Eqs. 7 and 9) makes those actions more likely after which reward(t) + gamma
reward(t + 1) + ... was more than a critic expects. It need not know how the other
learns. All steps of an episode count alike: the gradient of the episode's discounted
sum of rewards would have a factor gamma^t before the term of step t, which PPO leaves
out, as is usual. So it does not ascend that sum.

--opponent says who the other is: a naive learner, LOLA, or a second agent that draws
its policies likewise. (The authors train such a pair against naive learners at first,
and against each other in more and more episodes; and with a smaller learning rate.)

    python mfos.py --game ipd          4096 starts for each episode, as the authors
                                       have: a minute on a GPU, 20 to 40 on two cores
    python mfos.py --game ipd --quick  256 starts: one to three minutes on two cores

What to expect on the IPD, as means over a meta-episode, agent : other. Of eight models
of 4096 starts three extort naive learners, at -.48 : -2.16, and four are still on a
plateau at about -.87 : -1.5. After the authors' 1000 episodes all three models of 1024
starts extort. With LOLA the agent cooperates, -1.02 each; pairs of agents defect
(`python report.py --table mfos`). A run prints a table and writes results/mfos_GAME.npz and
figures/mfos_GAME.png.
"""

import argparse
import dataclasses
from functools import partial
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.stats import norm

from games import (
    Game,
    evaluate_game,
    find_game,
    flatten,
    load_model,
    make_folders,
    mean_over_devices,
    over_devices,
    over_seeds,
    print_settings,
    report,
    robust_limits,
    run_script,
    simultaneous_gradient,
    train_in_chunks,
    use_devices,
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
    """Settings of a run: the authors' for the IPD, except half as many episodes."""

    # --- Run ---
    game: str = flag(
        "ipd", "the game, or a variant of it such as ipd+mlp: see games.py"
    )
    seed: int = flag(0, "first random seed", 0, 2**31 - 1)
    num_seeds: int = flag(1, "number of seeds: seed, seed + 1, ...", 1, 1000)
    # --- The other player in training ---
    opponent: str = flag(
        "naive",
        "this learner, or a second agent of M-FOS",
        choices=["naive", "lola", "self"],
    )
    lr: float = flag(25.0, "step size of learners", 0, 1e30)
    alpha: float = flag(
        25.0, "look-ahead step of --opponent lola, whatever --lr is", 0, 1e30
    )
    # --- Meta-game ---
    outer_steps: int = flag(
        500, "meta-episodes; an update by PPO follows each", 1, 1_000_000
    )
    batch_size: int = flag(
        4096, "random pairs of policies that each meta-episode starts from", 1, 65_536
    )
    rollout_length: int = flag(100, "meta-steps T in an episode", 1, 10_000)
    gamma: float = flag(0.99, "meta-discount", 0, 1)
    # --- PPO ---
    hidden: int = flag(256, "width of the networks", 1, 8192)
    model_lr: float = flag(2e-3, "learning rate of Adam", 0, 1e30)
    epochs: int = flag(
        4, "steps of Adam in an update, each on the whole batch", 1, 1000
    )
    clip: float = flag(0.2, "epsilon of PPO (its Eq. 7)", 0, 1)
    value_weight: float = flag(0.5, "c_1 of PPO (its Eq. 9)", 0, 1e30)
    entropy_weight: float = flag(0.01, "c_2 of PPO (its Eq. 9)", 0, 1e30)
    # --- Evaluation ---
    eval_pairs: int = flag(256, "policy pairs for each seed", 1, 100_000)
    eval_steps: int = flag(100, "steps that policies are followed for", 1, 1_000_000)

    def __post_init__(self):
        check_settings(self)

    @property
    def name(self) -> str:
        """What files are named after, with the opponent if it is not naive."""
        return "mfos" if self.opponent == "naive" else f"mfos-{self.opponent}"


def make_config(game: str | Game = "ipd", quick: bool = False, **changes) -> Config:
    """The settings for a game, with changes. ValueError if out of range."""
    played = find_game(game)
    if played.sample is not None:
        raise ValueError(f"mfos.py needs exact returns, not those of {played.name}")
    lr = played.lr
    if played.iterated:
        # The authors' learners take steps of 1 on returns that are not multiplied by
        # 1 - discount, which are steps of 25 here on the IPD. On other games as many
        # times `played.lr`, which is 2 on the IPD.
        lr = 12.5 * played.lr
    settings = {"game": played.name, "lr": lr, "alpha": lr}
    if played.planar:
        settings.update(eval_pairs=32)
    if quick:
        settings.update(batch_size=256, eval_pairs=16)
    settings.update(changes)
    return Config(**settings)


# --- Networks -------------------------------------------------------------------------


class Agent(NamedTuple):
    """Parameters of an agent, two networks. Both see the state of the meta-game.

    A network is two layers, and a layer is weights, (inputs + 1, outputs), whose last
    row has the biases.
    """

    # -> the mean of the agent's next policy, and its variance before softplus, (2 n,)
    actor: tuple[jax.Array, jax.Array]
    # -> the agent's normalised return from there on, (1,)
    critic: tuple[jax.Array, jax.Array]


# Wherever a function takes `agents`, they are a list: one agent for each player, or a
# single one that plays in either place. Players are 0 and 1, rows of x. Comments on
# shapes have n for the parameters of a policy, and m for its features.


def layer_init(key: jax.Array, inputs: int, outputs: int) -> jax.Array:
    """Weights and biases as PyTorch draws them. (inputs + 1, outputs)."""
    weights = jax.random.uniform(key, (inputs + 1, outputs), minval=-1)
    return weights / inputs**0.5


def network_init(key: jax.Array, inputs: int, hidden: int, outputs: int) -> tuple:
    key_first, key_last = jax.random.split(key)
    return layer_init(key_first, inputs, hidden), layer_init(key_last, hidden, outputs)


def model_init(key: jax.Array, game: Game, config: Config) -> list[Agent]:
    """Random agents: a single one beside a learner in a symmetric game, else two."""
    count = 1 if game.symmetric and config.opponent != "self" else 2
    features = jax.eval_shape(game.features, jnp.zeros((2, game.n)))
    inputs, hidden = features.size, config.hidden
    agents = []
    for key_actor, key_critic in jax.random.split(key, (count, 2)):
        actor = network_init(key_actor, inputs, hidden, 2 * game.n)
        critic = network_init(key_critic, inputs, hidden, 1)
        agents.append(Agent(actor, critic))
    return agents


def layer(weights: jax.Array, inputs: jax.Array) -> jax.Array:
    # "highest": by default a GPU rounds the factors to 10 bits (TF32).
    return jnp.matmul(inputs, weights[:-1], precision="highest") + weights[-1]


def network(weights: tuple[jax.Array, jax.Array], state: jax.Array) -> jax.Array:
    """One hidden layer of tanh units. (..., inputs) -> (..., outputs)."""
    first, last = weights
    return layer(last, jnp.tanh(layer(first, state)))


# --- The meta-game --------------------------------------------------------------------


def own_first(rows: jax.Array, player: int) -> jax.Array:
    """Rows of both players as one of them sees them, its own first. (2, ...)."""
    if player == 0:
        return rows
    return rows[::-1]


def distribution(agent: Agent, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of the agent's next policy, independent normals.

    (..., 2 m) -> (..., n) twice.
    """
    mean, raw_variance = jnp.split(network(agent.actor, state), 2, axis=-1)
    return mean, jnp.sqrt(jax.nn.softplus(raw_variance))


def act(
    key: jax.Array, agents: list[Agent], game: Game, x: jax.Array, player: int
) -> tuple:
    """A player's agent draws its next policy.

    Args:
      key: to draw by.
      agents: of the players.
      game: the game.
      x: joint policy, (2, n).
      player: 0 or 1.

    Returns:
      the state as the agent sees it, (2 m,), the policy, (n,), and its log density, ().
    """
    chex.assert_shape(x, (2, game.n))
    agent = agents[0] if player == 0 else agents[-1]
    state = own_first(game.features(x), player).ravel()
    mean, sigma = distribution(agent, state)
    policy = mean + sigma * jax.random.normal(key, mean.shape, mean.dtype)
    return state, policy, norm.logpdf(policy, mean, sigma).sum()


def opponent_gradient(game: Game, x: jax.Array, config: Config) -> jax.Array:
    """What both players would follow if they were learners like the opponent. (2, n).

    Row i of the naive gradient is the derivative of f_i by x_i. LOLA's is the same of
    its return after the other's naive step, to first order in that step: `taylor` in
    lola.py. For player 1 it is f_1 + alpha (d f_1 / d x_2) . (d f_2 / d x_2).
    """

    def surrogate(x):
        slopes = jax.jacrev(game.f)(x)  # d f_j / d x_i at [j, i], (2, 2, n)
        gain_1 = (slopes[0, 1] * slopes[1, 1]).sum()
        gain_2 = (slopes[1, 0] * slopes[0, 0]).sum()
        return game.f(x) + config.alpha * jnp.stack([gain_1, gain_2])

    if config.opponent == "lola":
        return simultaneous_gradient(surrogate, x)
    return simultaneous_gradient(game.f, x)


def learner_step(game: Game, x: jax.Array, config: Config) -> jax.Array:
    """One step of two learners like the opponent. (2, n) -> (2, n)."""
    return x + config.lr * opponent_gradient(game, x, config)


class Episode(NamedTuple):
    """What a player's agent saw and did in a meta-episode."""

    states: jax.Array  # (T, 2 m)
    policies: jax.Array  # its actions, (T, n)
    log_probs: jax.Array  # their log densities, (T,)
    returns: jax.Array  # f after each step, the agent's own first, (T, 2)


def meta_episode(
    key: jax.Array, agents: list[Agent], game: Game, config: Config, player: int
) -> Episode:
    """T meta-steps from random policies, as the agent of a player, 0 or 1, sees them.

    As in the authors' code an agent draws x_i(t + 1) before it has seen the other's
    step from x(t). By the same key two agents see the same episode, each in a
    simulation of its own.
    """
    other = 1 - player

    def step(x, key):
        keys = jax.random.split(key)  # one for each player
        state, policy, log_prob = act(keys[player], agents, game, x, player)
        if config.opponent == "self":
            _, other_policy, _ = act(keys[other], agents, game, x, other)
        else:
            other_policy = learner_step(game, x, config)[other]
        x = x.at[player].set(policy).at[other].set(other_policy)
        returns = own_first(game.f(x), player)
        return x, Episode(state, policy, log_prob, returns)

    key_start, key_steps = jax.random.split(key)
    keys = jax.random.split(key_steps, config.rollout_length)
    _, episode = jax.lax.scan(step, game.init(key_start), keys)
    return episode


def meta_episodes(keys, agents, game: Game, config: Config, player: int) -> Episode:
    """`meta_episode` by each of the keys, (batch,). Arrays (T, batch, ...)."""

    def play(key):
        return meta_episode(key, agents, game, config, player)

    return jax.vmap(play, out_axes=1)(over_devices(keys))


# --- PPO (Schulman et al., 2017) ------------------------------------------------------


def discounted_returns(rewards: jax.Array, gamma: float) -> jax.Array:
    """r(t) + gamma r(t + 1) + ... to the end of the episode. (T, ...) -> (T, ...).

    Less is to come near the end of an episode. A critic cannot know it, as states do
    not tell the time (nor do the authors'), and is a poorer baseline there.
    """

    def back_up(later, reward):
        total = reward + gamma * later
        return total, total

    _, totals = jax.lax.scan(back_up, jnp.zeros_like(rewards[0]), rewards, reverse=True)
    return totals


def ppo_loss(
    agent: Agent, states, policies, log_probs, targets, config: Config
) -> jax.Array:
    """PPO's loss, its Eq. 9 with the other sign.

    Args:
      agent: the agent.
      states: that it saw, (batch, 2 m).
      policies: that it drew, (batch, n).
      log_probs: their log densities when they were drawn, (batch,).
      targets: its returns from there on, normalised, (batch,).
      config: settings.

    Returns:
      the mean over the batch, ().
    """
    mean, sigma = distribution(agent, states)
    ratio = jnp.exp(norm.logpdf(policies, mean, sigma).sum(axis=-1) - log_probs)
    value = network(agent.critic, states)[..., 0]
    # By the critic as it is now, not as it was in the episode (the authors' code).
    advantage = targets - jax.lax.stop_gradient(value)

    clipped = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
    surrogate = jnp.minimum(ratio * advantage, clipped * advantage)  # Eq. 7
    value_loss = (value - targets) ** 2
    entropy = jnp.log(sigma * (2 * jnp.pi * jnp.e) ** 0.5).sum(axis=-1)
    loss = config.value_weight * value_loss - surrogate
    return (loss - config.entropy_weight * entropy).mean()


def loss_and_gradient(agent: Agent, *batch, config: Config):
    """PPO's loss and its derivatives by the agent's parameters.

    `batch` is what `ppo_loss` takes, of all meta-steps, (T, batch, ...).
    """

    def of_step(batch):
        return jax.value_and_grad(ppo_loss)(agent, *batch, config)

    losses_and_gradients = jax.lax.map(of_step, batch)  # one after another: less memory
    return jax.tree.map(partial(jnp.mean, axis=0), losses_and_gradients)


def ppo_update(agent: Agent, opt_state, episodes: Episode, config: Config) -> tuple:
    """Steps of Adam, each on all that an agent saw, arrays (T, batch, ...).

    Returns the agent, the state of its optimizer, and the losses on the way, (epochs,).
    """
    states, policies, log_probs, returns = episodes
    targets = discounted_returns(returns[..., 0], config.gamma)
    # Normalised over all steps and episodes.
    targets = (targets - targets.mean()) / (targets.std() + 1e-5)
    batch = states, policies, log_probs, targets

    def epoch(carry, _):
        agent, opt_state = carry
        function = partial(loss_and_gradient, config=config)
        loss, gradient = mean_over_devices(function, agent, *batch, axis=1)
        change, opt_state = optax.adam(config.model_lr).update(gradient, opt_state)
        return (optax.apply_updates(agent, change), opt_state), loss

    carry = agent, opt_state
    (agent, opt_state), losses = jax.lax.scan(epoch, carry, length=config.epochs)
    return agent, opt_state, losses


# --- Training -------------------------------------------------------------------------


class TrainState(NamedTuple):
    """What changes in training."""

    params: list[Agent]
    opt_state: list[optax.OptState]  # of each agent
    step: jax.Array  # outer loops done: meta-episodes


def train_init(key: jax.Array, game: Game, config: Config) -> TrainState:
    """The state before the first outer loop. `key` is the seed's."""
    agents = model_init(jax.random.fold_in(key, 0), game, config)
    opt_state = [optax.adam(config.model_lr).init(agent) for agent in agents]
    return TrainState(agents, opt_state, jnp.int32(0))


def outer_step(key: jax.Array, state: TrainState, game: Game, config: Config):
    """A meta-episode from each of many starts, and PPO's update of each agent.

    Returns (state, metrics): "loss", (), the mean over PPO's epochs, summed over
    agents; and "mean_return", (agent, 2), each agent's own first.
    """
    keys = jax.random.split(key, config.batch_size)
    agents, opt_states, losses, mean_returns = [], [], [], []
    for player, agent in enumerate(state.params):
        episodes = meta_episodes(keys, state.params, game, config, player)
        agent, opt_state, loss = ppo_update(
            agent, state.opt_state[player], episodes, config
        )
        agents.append(agent)
        opt_states.append(opt_state)
        losses.append(loss.mean())
        mean_returns.append(episodes.returns.mean(axis=(0, 1)))
    metrics = {"loss": sum(losses), "mean_return": jnp.stack(mean_returns)}
    return TrainState(agents, opt_states, state.step + 1), metrics


def train_chunk(key: jax.Array, state: TrainState, game: Game, config: Config, count):
    """`count` outer loops. Returns (state, curves).

    `key` is the seed's, in all chunks. The curves are the metrics of each loop,
    (count, ...).
    """

    def loop(state, _):
        # Keys depend on the step alone: a resumed run goes on with its own.
        key_loop = jax.random.fold_in(key, 1 + state.step)
        return outer_step(key_loop, state, game, config)

    return jax.lax.scan(loop, state, length=count)


def train(key: jax.Array, game: Game, config: Config):
    """Train agents. Returns (params, curves), as `train_chunk` of all outer loops.

    Jit it with `game` and `config` static, and map it over keys for several seeds.
    """
    state = train_init(key, game, config)
    state, curves = train_chunk(key, state, game, config, config.outer_steps)
    return state.params, curves


# --- Evaluation -----------------------------------------------------------------------


def evaluate(
    key: jax.Array, params: list[Agent], game: Game, config: Config
) -> dict[str, jax.Array]:
    """Evaluate agents as `evaluate_game` does, and in the meta-game. Arrays (1, ...).

    `key` draws the policies that they start from. A step of self-play is the jump to
    what both players' agents draw. The arrays are those of `evaluate_game`, and
    "episode_returns", (1, pair, T, 2): returns in meta-episodes beside the opponent of
    the training, player 1's agent first. "episode_returns_2" are those of player 2's
    agent, its own first, in games that are not symmetric.
    """

    def step(x, key):
        key_1, key_2 = jax.random.split(key)
        _, policy_1, _ = act(key_1, params, game, x, player=0)
        _, policy_2, _ = act(key_2, params, game, x, player=1)
        return jnp.stack([policy_1, policy_2])

    opponent_step = None
    if config.opponent == "lola":  # a naive learner is evaluated in any case
        opponent_step = partial(learner_step, game, config=config)
    results = evaluate_game(
        key,
        game,
        step,
        lr=config.lr,
        steps=config.eval_steps,
        pairs=config.eval_pairs,
        opponent_step=opponent_step,
        draws=True,
    )

    # eval_pairs + 1: `evaluate_game` uses the keys before it.
    key_episodes = jax.random.fold_in(key, config.eval_pairs + 1)
    keys = jax.random.split(key_episodes, config.eval_pairs)
    episodes = meta_episodes(keys, params, game, config, player=0)
    results["episode_returns"] = episodes.returns.swapaxes(0, 1)
    if not game.symmetric:
        episodes = meta_episodes(keys, params, game, config, player=1)
        results["episode_returns_2"] = episodes.returns.swapaxes(0, 1)
    return {name: array[None] for name, array in results.items()}


# --- Command line ---------------------------------------------------------------------


def load(path: str | Path, seed: int | None = None, game: Game | None = None):
    """The trained agents of results/mfos_GAME.npz. Returns (params, config).

    Args:
      path: of the file.
      seed: which agents, if the file has those of several; the first if None.
      game: the game, if it is not one of games.py.
    """
    return load_model(path, Config, model_init, seed, game)


CHUNK = 10  # outer loops between two checkpoints


# --- shared: command line of scripts that train (the same lines in each) ---
def parse_args(argv=None):
    """Settings, a flag for each field of `Config`; and how to run.

    Returns config, a mesh of devices, whether to resume, and the folder for results.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage=argparse.SUPPRESS,  # so that an error is one line
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--quick", action="store_true", help="a small run")
    parser.add_argument("--out", default=".", help="folder of results/ and figures/")
    parser.add_argument("--resume", action="store_true", help="go on from a checkpoint")
    parser.add_argument("--devices", type=int, help="devices of a process, at most")
    distributed = (
        "share the work with other processes: HOST:PORT COUNT INDEX, or nothing"
    )
    parser.add_argument("--distributed", nargs="*", help=f"{distributed} on a cluster")
    for field in dataclasses.fields(Config):
        name = "--" + field.name.replace("_", "-")
        settings = field.metadata["argparse"]
        # Only what is given is a change: defaults depend on the game.
        parser.add_argument(name, default=argparse.SUPPRESS, **settings)
    arguments = vars(parser.parse_args(argv))
    out = arguments.pop("out")
    resume = arguments.pop("resume")
    devices = arguments.pop("devices")
    distributed = arguments.pop("distributed")
    try:
        config = make_config(**arguments)
        mesh = use_devices(config.batch_size, devices, distributed)
        make_folders(out)
    except ValueError as error:
        parser.error(str(error))
    return config, mesh, resume, Path(out)


# --- end shared -----------------------------------------------------------------------


def draw_returns(axis, returns: np.ndarray, times: str):
    """Player 1's returns and the other's, (seed, time, 2), a line for each seed."""
    axis.plot(returns[..., 0].T, color="tab:pink", linewidth=1)
    axis.plot(returns[..., 1].T, ":", color="black", linewidth=1)
    axis.set(title="player 1, the agent (dotted: player 2)")
    axis.set(xlabel=times, ylabel="mean return")
    axis.set_ylim(robust_limits(returns, least=0.1))


def draw_curves(figure, curves: dict, results: dict):
    """Returns in the course of training, and in the course of an episode after it."""
    left, right = figure.subplots(1, 2)
    draw_returns(left, curves["mean_return"][:, :, 0], "meta-episodes of training")
    of_steps = results["episode_returns"][0].mean(axis=1)
    draw_returns(right, of_steps, "meta-steps of an episode after training")


def main(argv=None):
    config, mesh, resume, out = parse_args(argv)
    game = find_game(config.game)
    settings = print_settings(config, mesh.size)
    seeds = np.arange(config.num_seeds, dtype=np.uint32) + config.seed

    with jax.set_mesh(mesh):
        state, curves = train_in_chunks(
            seeds,
            init=lambda key: train_init(key, game, config),
            chunk=lambda key, state, count: train_chunk(
                key, state, game, config, count
            ),
            mesh=mesh,
            steps=config.outer_steps,
            length=CHUNK,
            config=config,
            settings=settings,
            path=out / "results" / f"{config.name}_{game.name}.checkpoint.npz",
            resume=resume,
        )
        evaluate_seeds = over_seeds(
            lambda _, key, params: evaluate(key, params, game, config), mesh
        )
        results = jax.device_get(evaluate_seeds(seeds, state.params))

    results = {name: np.swapaxes(array, 0, 1) for name, array in results.items()}
    for key in ("episode_returns", "episode_returns_2"):
        if key in results:
            own, other = results[key].mean(axis=(0, 1, 2, 3))
            print(f"{key} beside {config.opponent}: {own:.3f} : {other:.3f}")
    results |= curves | flatten("params", state.params)
    report(
        config.name,
        game,
        settings,
        [config.lr],
        results,
        symbol="step size lr",
        color="tab:pink",
        out=out,
        draw_below=lambda figure: draw_curves(figure, curves, results),
        jumps=True,
    )


if __name__ == "__main__":
    run_script(main)
