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
"""Meta-Value Learning (MeVa): follow the gradient of a learned sum of future returns.

Cooijmans, Aghajohari and Courville (2023), Learning with Learning Awareness using
Meta-Values. Naive learners ascend their returns f. MeVa learners ascend the meta-value
(Eq. 5, normalised as in App. A)

    V(x) = (1 - gamma) f(x) + gamma V(x'),    x' = x + lr grad V(x),

the discounted mean of the returns that this very way of learning will bring. Row i of
grad V is the derivative of V_i by x_i. A network learns V by temporal differences along
such trajectories (Eqs. 6 and 7). Form U (Sec. 4.1, Algorithm 1), the default on
iterated games, learns the future part U(x) = V(x'). Policies then follow grad f + gamma
grad U, with f not normalised, as in Algorithm 1.

    python meva.py --game ipd          one model, for Fig. 3a: 4 to 20 minutes, 2 cores
    python meva.py --game logistic     one model, for Fig. 2: a minute or two
    python meva.py --game ipd --preset reliable      an eighth of the training
    python meva.py --game logistic --outer-steps 50 --eval-gammas 0.95   barely trained

The other player in training is MeVa as well. With --opponent it is a naive learner or
LOLA, and player 1's model learns to shape it; --game imp+swapped --opponent naive, say,
trains a model for the other seat. --normalized-step follows (1 - gamma) grad f + gamma
grad U, as the authors' later code does: the future counts for more, and opponents are
shaped more strongly.

On the IPD expect defection (-2) at gamma = 0. With gamma near 1 expect cooperation (-1)
by policies like tit-for-tat: no best response exploits them, and naive learners learn
to cooperate with them. On the Logistic Game every starting point leads to B, the better
of two solutions, from gamma = .92 on. A run prints a table and writes
results/meva_GAME.npz and figures/meva_GAME.png.
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

from games import (
    Game,
    beside,
    checked_policies,
    evaluate_game,
    find_game,
    flatten,
    follow,
    load_model,
    make_folders,
    mean_over_devices,
    over_devices,
    over_seeds,
    planar_grid,
    print_settings,
    report,
    robust_limits,
    run_script,
    simultaneous_gradient,
    train_in_chunks,
    trajectory,
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


def switch(default, description):
    """A field of `Config` that is on or off: the flags --name and --no-name."""
    settings = {
        "action": argparse.BooleanOptionalAction,
        "help": f"{description} ({'on' if default else 'off'})",
    }
    metadata = {"low": None, "high": None, "argparse": settings}
    return dataclasses.field(default=default, metadata=metadata)


LESS_THAN_1 = 0.9999999


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a run. The defaults are for the IPD (App. E): see `make_config`."""

    # --- Run ---
    game: str = flag(
        "ipd", "the game, or a variant of it such as ipd+mlp: see games.py"
    )
    seed: int = flag(0, "first random seed", 0, 2**31 - 1)
    num_seeds: int = flag(1, "number of models: seed, seed + 1, ...", 1, 1000)
    preset: str = flag(
        "paper",
        "the paper's settings, or those of RELIABLE, an eighth of the training",
        choices=["paper", "reliable"],
    )
    # --- Policies ---
    lr: float = flag(2.0, "step size of the policies, alpha in Eq. 6", 0, 1e30)
    form: str = flag("U", "learn V or its future part U (Sec. 4.1)", choices=["V", "U"])
    normalized_step: bool = switch(
        False, "form U: follow (1 - gamma) grad f + gamma grad U"
    )
    # --- The other player in training ---
    opponent: str = flag(
        "self", "MeVa as well, or this learner", choices=["self", "naive", "lola"]
    )
    alpha: float = flag(10.0, "look-ahead step of --opponent lola (Eq. 2)", 0, 1e30)
    variant: str = flag(
        "exact",
        "form of --opponent lola, as in lola.py",
        choices=["exact", "taylor-stop"],
    )
    # --- Model (App. D) ---
    hidden: int = flag(64, "width", 1, 8192)
    blocks: int = flag(2, "residual blocks in each of the two MLPs", 0, 100)
    quantiles: int = flag(
        32, "quantiles M; 1 is regression with half the Huber loss", 1, 1000
    )
    layer_norm: bool = switch(True, "normalise layers")
    last_activation: str = flag(
        "tanh", "last nonlinearity (App. E)", choices=["tanh", "gelu"]
    )
    share_params: bool = switch(True, "one parameter set for both players")
    # --- Training (Algorithm 1) ---
    outer_steps: int = flag(2000, "outer loops", 1, 1_000_000)
    batch_size: int = flag(128, "trajectories in an outer loop", 1, 65_536)
    rollout_length: int = flag(
        100, "length T of an exploration trajectory", 1, 1_000_000
    )
    stride: int = flag(10, "length k of an on-policy stretch; divides T", 1, 10_000)
    explore: bool = switch(
        True, "start stretches on exploration trajectories; else as in Sec. 3.3"
    )
    flip_prob: float = flag(1 / 16, "probability of a sign flip (Sec. 4.3)", 0, 1)
    fixed_gamma: float = flag(
        None,
        "train for this gamma alone, not for Beta(1/2, 1/2) (Sec. 4.2)",
        0,
        LESS_THAN_1,
        type=float,
    )
    bootstrap: float = flag(0.9, "lambda of the TD targets; 0 is TD(0)", 0, 1)
    target_inertia: float = flag(
        0.99, "rho of the target network; 0: none", 0, LESS_THAN_1
    )
    semi_gradient: bool = switch(
        True, "hold TD targets constant; else Eq. 7 is minimised by both sides"
    )
    model_lr: float = flag(1e-4, "learning rate eta of AdamW", 0, 1e30)
    adam_b2: float = flag(0.99, "decay of AdamW's second moment", 0, LESS_THAN_1)
    weight_decay: float = flag(1e-2, "weight decay of AdamW (App. E)", 0, 1e30)
    # --- Evaluation (Sec. 5) ---
    eval_gammas: tuple = flag(
        (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999),
        "meta-discounts (Figs. 2, 3a)",
        0,
        LESS_THAN_1,
        type=float,
        nargs="+",
    )
    eval_pairs: int = flag(256, "policy pairs for each gamma and seed", 1, 100_000)
    eval_steps: int = flag(500, "steps that policies are followed for", 1, 1_000_000)

    def __post_init__(self):
        check_settings(self)
        if self.rollout_length % self.stride > 0:
            raise ValueError(
                f"--stride takes divisors of --rollout-length {self.rollout_length}, "
                f"not {self.stride}"
            )
        if self.target_inertia > 0 and not self.semi_gradient:
            raise ValueError("--no-semi-gradient takes --target-inertia 0 beside it")

    @property
    def name(self) -> str:
        """What files are named after, with the opponent if there is one."""
        return "meva" if self.opponent == "self" else f"meva-{self.opponent}"


# App. D. But the network is that of the authors' code, which is not normalised and ends
# in tanh.
PLANAR = {
    "form": "V",
    "blocks": 1,
    "quantiles": 16,
    "layer_norm": False,
    "outer_steps": 1000,
    "rollout_length": 50,
    "stride": 50,
    "explore": False,
    "bootstrap": 0.0,
    "target_inertia": 0.0,
    "semi_gradient": False,
    "model_lr": 1e-3,
    "weight_decay": 0.0,
    "eval_gammas": (0.0, 0.8, 0.85, 0.9, 0.95, 0.99),
    "eval_pairs": 32,
    "eval_steps": 200,
}
QUICK_PLANAR = {"outer_steps": 600, "model_lr": 2e-3}
# `--preset reliable`: an eighth of the training, with larger steps and more sign flips.
# At gamma = .99 its agents do as well as those of the paper's settings, and at .999
# somewhat better (results/paper/README.md).
RELIABLE = {
    "outer_steps": 500,
    "batch_size": 64,
    "flip_prob": 1 / 4,
    "model_lr": 1e-3,
}
# On the IPD players cooperate after 75 outer loops of this; with the paper's slower
# target network (rho = .99) hardly before 150, in larger batches as well.
QUICK = {
    "outer_steps": 125,
    "batch_size": 16,
    "target_inertia": 0.9,
    "model_lr": 2e-3,
    "eval_gammas": (0.0, 0.5, 0.9, 0.95, 0.99),
    "eval_pairs": 64,
}
QUICK_SAMPLED = {  # of few trajectories, as each needs its own episodes
    "outer_steps": 250,
    "batch_size": 4,
    "target_inertia": 0.99,
    "model_lr": 1e-3,
}


def make_config(game: str | Game = "ipd", quick: bool = False, **changes) -> Config:
    """The paper's settings for a game, with changes. ValueError if out of range."""
    played = find_game(game)
    settings = {
        "game": played.name,
        "lr": played.lr,
        "share_params": played.symmetric,
        "alpha": played.alphas[:5][-1],  # 10 on the IPD, where LOLA does best
        "eval_gammas": Config.eval_gammas,
    }
    if played.planar:
        settings.update(PLANAR)
    if changes.get("preset") == "reliable":
        if played.planar or quick:
            raise ValueError("--preset reliable takes an iterated game, and no --quick")
        settings.update(RELIABLE)
    if quick:
        settings.update(QUICK_PLANAR if played.planar else QUICK)
    if quick and played.sample is not None:
        settings.update(QUICK_SAMPLED)
    if changes.get("fixed_gamma") is not None:
        settings["eval_gammas"] = (changes["fixed_gamma"],)
    settings.update(changes)
    settings["eval_gammas"] = tuple(settings["eval_gammas"])
    return Config(**settings)


# --- shared: network (the same lines in meva.py and cola.py) ---
def linear_init(key: jax.Array, inputs: int, outputs: int) -> dict:
    w = jax.random.normal(key, (inputs, outputs)) / inputs**0.5
    return {"w": w, "b": jnp.zeros(outputs)}


def linear(params: dict, x: jax.Array) -> jax.Array:
    # "highest": by default a GPU rounds the factors to 10 bits (TF32).
    return jnp.matmul(x, params["w"], precision="highest") + params["b"]


def normed_linear(params: dict, x: jax.Array) -> jax.Array:
    """`linear`, then layer normalisation without learned scale and shift."""
    # To centre the outputs, centre what makes them: it saves a tenth of the training's
    # time on a CPU.
    w = params["w"] - params["w"].mean(axis=-1, keepdims=True)
    b = params["b"] - params["b"].mean()
    h = linear({"w": w, "b": b}, x)
    return h * jax.lax.rsqrt((h * h).mean(axis=-1, keepdims=True) + 1e-6)


def mlp_init(key: jax.Array, inputs: int, width: int, blocks: int) -> dict:
    keys = iter(jax.random.split(key, 2 + 2 * blocks))
    params = {
        "first": linear_init(next(keys), inputs, width),
        "last": linear_init(next(keys), width, width),
        "blocks": [],
    }
    for _ in range(blocks):
        block = {
            "in": linear_init(next(keys), width, width),
            "out": linear_init(next(keys), width, width),
            "gate": jnp.zeros(width),
        }
        params["blocks"].append(block)
    return params


ACTIVATIONS = {"gelu": jax.nn.gelu, "tanh": jnp.tanh}


def mlp(params: dict, x: jax.Array, layer_norm: bool, activation="gelu") -> jax.Array:
    """Gated residual blocks between two layers (App. D). (..., in) -> (..., width)."""
    layer = normed_linear if layer_norm else linear
    h = jax.nn.gelu(layer(params["first"], x))
    for block in params["blocks"]:
        gate = jax.nn.sigmoid(block["gate"])  # learned, one for each unit
        inner = jax.nn.gelu(layer(block["in"], h))
        h = gate * h + (1 - gate) * linear(block["out"], inner)
    return ACTIVATIONS[activation](layer(params["last"], h))


# --- end shared -----------------------------------------------------------------------


# --- The meta-value and its gradient (Eqs. 5 and 6, App. D) ---------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    """The network's parameters theta, and two settings that its functions need.

    The settings are static: the leaves of this pytree are the parameters alone.
    """

    embed: dict  # MLP: a policy and its gamma -> z
    combine: dict  # MLP: one's own z and the other's -> h
    readout: dict  # linear: h -> M quantiles
    layer_norm: bool = dataclasses.field(metadata={"static": True})
    activation: str = dataclasses.field(metadata={"static": True})  # the last one


# Wherever a function takes `params`, they are a `Model` for both players, or a pair of
# them, one for each player.


def has_one_model(config: Config) -> bool:
    """One model for both players? Beside an opponent player 1 alone has one.

    (In evaluations of symmetric games it plays itself as well, in both seats.)
    """
    return config.share_params or config.opponent != "self"


def model_init(key: jax.Array, game: Game, config: Config):
    """Random parameters: a `Model`, or a pair of them."""
    features = jax.eval_shape(game.features, jnp.zeros((2, game.n)))

    def init(key):
        key_embed, key_combine, key_readout = jax.random.split(key, 3)
        inputs = features.shape[1] + 1  # and gamma
        width, blocks = config.hidden, config.blocks
        return Model(
            embed=mlp_init(key_embed, inputs, width, blocks),
            combine=mlp_init(key_combine, 2 * width, width, blocks),
            readout=linear_init(key_readout, width, config.quantiles),
            layer_norm=config.layer_norm,
            activation=config.last_activation,
        )

    if has_one_model(config):
        return init(key)
    key_1, key_2 = jax.random.split(key)
    return init(key_1), init(key_2)


def embed(model: Model, game: Game, x: jax.Array, gamma: jax.Array) -> jax.Array:
    """What the model makes of each player's policy and gamma. (2, hidden)."""
    inputs = jnp.concatenate([game.features(x), gamma[:, None]], axis=-1)
    return mlp(model.embed, inputs, model.layer_norm)


def combine(model: Model, z: jax.Array, z_other: jax.Array, signs=1.0) -> jax.Array:
    """Quantiles of each player's meta-value, of its own z and the other's. (2, M).

    `signs`, (2, hidden) of -1 and 1, flips some of the last hidden units, in
    exploration (Sec. 4.3).
    """
    inputs = jnp.concatenate([z, z_other], axis=-1)
    h = mlp(model.combine, inputs, model.layer_norm, model.activation)
    return linear(model.readout, signs * h)


def as_arrays(game: Game, x, gamma) -> tuple[jax.Array, jax.Array]:
    """x as floats, (2, n), and gamma, one for both players or one for each, as (2,)."""
    x = checked_policies(x, game.n)
    return x, jnp.broadcast_to(jnp.asarray(gamma, x.dtype), 2)


def meta_quantiles(params, game: Game, x: jax.Array, gamma) -> jax.Array:
    """Quantiles of both players' meta-values V or U, as it was trained. (2, M).

    Args:
      params: a `Model` for both players, or a pair of them.
      game: the game.
      x: joint policy, (2, n).
      gamma: meta-discounts of the players, (2,), or () for both.

    Returns:
      (2, M), normalised (App. A): in units of return.
    """
    if isinstance(params, tuple):
        model_1, model_2 = params
        row_1 = meta_quantiles(model_1, game, x, gamma)[0]
        row_2 = meta_quantiles(model_2, game, x, gamma)[1]
        return jnp.stack([row_1, row_2])
    x, gamma = as_arrays(game, x, gamma)
    z = embed(params, game, x, gamma)
    return combine(params, z, z[::-1]).astype(x.dtype)


def meta_value(params, game: Game, x: jax.Array, gamma) -> jax.Array:
    """The meta-values V(x; theta, gamma) (or U) of both players. (2,).

    They are the means of the quantiles. Arguments are those of `meta_quantiles`.
    """
    return meta_quantiles(params, game, x, gamma).mean(axis=-1)


def model_gradient(params, game: Game, x: jax.Array, gamma, signs=1.0) -> jax.Array:
    """Row i is the derivative by x_i of player i's `meta_value`. (2, n).

    The arguments are those of `meta_quantiles`, and `signs` as in `combine`.
    """
    if isinstance(params, tuple):
        model_1, model_2 = params
        row_1 = model_gradient(model_1, game, x, gamma, signs)[0]
        row_2 = model_gradient(model_2, game, x, gamma, signs)[1]
        return jnp.stack([row_1, row_2])
    x, gamma = as_arrays(game, x, gamma)

    def sum_of_values(x):
        z = embed(params, game, x, gamma)
        # With the other's z held constant V_i depends on x_i alone, as a player's z
        # depends on its own policy alone. So one backward pass from the sum has both
        # players' gradients.
        z_other = jax.lax.stop_gradient(z[::-1])
        return combine(params, z, z_other, signs).mean(axis=-1).sum()

    return jax.grad(sum_of_values)(x)


def known_returns(game: Game, key=None):
    """What learners know of the returns, (2, n) -> (2,): f, or an estimate by a key."""
    if key is None:
        return game.f
    return partial(game.sample, key)


def meva_gradient(
    params, game: Game, x: jax.Array, gamma, config: Config, key=None
) -> jax.Array:
    """What policies follow, (2, n): grad V (Eq. 6) or grad f + gamma grad U (Sec. 4.1).

    U is normalised (App. A): it is 1 - gamma times a sum of returns. The gradient of V
    is then (1 - gamma) grad f + gamma grad U, which `config.normalized_step` gives.
    Algorithm 1 has grad f without the factor. The future counts for less there.

    Args:
      params, game, x, gamma: as in `meta_quantiles`.
      config: settings of the model.
      key: where returns are sampled, draws the estimate of grad f.
    """
    x, gamma = as_arrays(game, x, gamma)
    if config.opponent == "self":
        gradient = model_gradient(params, game, x, gamma)
    else:  # a model was trained with 0 for the other's gamma, whoever that is here
        only_1 = gamma.at[1].set(0)
        only_2 = gamma.at[0].set(0)
        row_1 = model_gradient(params, game, x, only_1)[0]
        row_2 = model_gradient(params, game, x, only_2)[1]
        gradient = jnp.stack([row_1, row_2])
    if config.form == "V":
        return gradient
    naive = simultaneous_gradient(known_returns(game, key), x)
    gamma = gamma[:, None]
    if config.normalized_step:
        naive = (1 - gamma) * naive
    return naive + gamma * gradient


# --- The other player in training -----------------------------------------------------


def opponent_step(game: Game, x: jax.Array, config: Config, key=None) -> jax.Array:
    """x after a step of player 2 alone, (2, n): naive (Eq. 1), or LOLA's (App. B).

    With a key returns are estimates, an independent one for LOLA's imagined step. See
    lola.py for the forms of LOLA.
    """
    x = checked_policies(x, game.n)
    x_1, x_2 = x
    if config.opponent == "lola" and key is not None:
        key, key_ahead = jax.random.split(key)
        f_ahead = known_returns(game, key_ahead)
    else:
        f_ahead = game.f
    f = known_returns(game, key)

    def f_1_ahead(x_1, x_2):
        return f_ahead(jnp.stack([x_1, x_2]))[0]

    def f_2(x_1, x_2):
        return f(jnp.stack([x_1, x_2]))[1]

    def surrogate(x_2):
        if config.opponent == "naive":
            return f_2(x_1, x_2)
        change = config.alpha * jax.grad(f_1_ahead)(x_1, x_2)
        if config.variant == "exact":
            return f_2(x_1 + change, x_2)
        slope = jax.lax.stop_gradient(jax.grad(f_2)(x_1, x_2))
        return f_2(x_1, x_2) + (slope * change).sum()

    return x.at[1].add(config.lr * jax.grad(surrogate)(x_2))


def training_step(direction, game: Game, config: Config):
    """The rule of both players in training: step(x, key) -> the next x.

    `direction(x, key)`, (2, n), is what MeVa follows; an opponent has player 2's place.
    """

    def step(x, key=None):
        moved = x + config.lr * direction(x, key)
        if config.opponent != "self":  # both estimate returns from the same episodes
            moved = moved.at[1].set(opponent_step(game, x, config, key)[1])
        return moved

    return step


# --- TD learning (Eq. 7, Algorithm 1) -------------------------------------------------


def lambda_returns(
    rewards: jax.Array, values: jax.Array, gamma: jax.Array, bootstrap: float
) -> jax.Array:
    """TD targets of Algorithm 1, by the normalised Bellman equation of App. A:

        Y(t) = (1 - gamma) r(t) + gamma ((1 - lambda) U(x(t + 1)) + lambda Y(t + 1))

    and Y(k) = U(x(k)), for each of P players and each quantile. In form U r(t) is the
    return at x(t + 1); in form V it is that at x(t), and V stands in place of U.

    Args:
      rewards: r(0), ..., r(k - 1), (k, P).
      values: U(x(1)), ..., U(x(k)), (k, P, M).
      gamma: meta-discounts, (P,).
      bootstrap: lambda.

    Returns:
      Y(0), ..., Y(k - 1), (k, P, M).
    """
    chex.assert_equal_shape_prefix([rewards, values], 2)
    gamma = gamma[:, None]

    def back_up(target, inputs):
        reward, value = inputs
        future = (1 - bootstrap) * value + bootstrap * target
        target = (1 - gamma) * reward[:, None] + gamma * future
        return target, target

    last = values[-1]  # Y(k)
    _, targets = jax.lax.scan(back_up, last, (rewards, values), reverse=True)
    return targets


def quantile_loss(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Quantile regression, D of App. C (Dabney et al., 2018, Eq. 10).

    sum_i mean_j |tau_i - [e_ij < 0]| huber(e_ij), with e_ij = target_j - prediction_i
    and tau_i = (i + 1/2) / M. (..., M), (..., M) -> (...).
    """
    predictions, targets = jnp.asarray(predictions), jnp.asarray(targets)
    chex.assert_equal_shape([predictions, targets])
    count = predictions.shape[-1]
    tau = jnp.asarray((np.arange(count) + 0.5) / count, predictions.dtype)
    loss = jnp.zeros_like(predictions)
    for j in range(count):  # ten times faster on a CPU than one (..., M, M) broadcast
        error = targets[..., j : j + 1] - predictions
        loss += jnp.abs(tau - (error < 0)) * optax.losses.huber_loss(error)
    # The mean as a product: XLA would make slow scalar code of a sum here.
    mean = jnp.full(count, 1 / count, loss.dtype)
    return jnp.matmul(loss, mean, precision="highest")


def td_loss(
    params, target_params, game: Game, xs, gamma, config: Config, key=None
) -> tuple[jax.Array, jax.Array]:
    """The loss L of Algorithm 1 (Eq. 7) on one on-policy stretch, and its TD error.

    Args:
      params: of the model, theta.
      target_params: of the target network, theta bar. Without one it is not read.
      game: the game.
      xs: the stretch x(0), ..., x(k), (k + 1, 2, n).
      gamma: meta-discounts of the players, (2,).
      config: settings.
      key: where returns are sampled, draws the estimates of the rewards.

    Returns:
      the loss, (), and mean |E target - E prediction|, (), in units of return.
    """
    chex.assert_shape(xs, (config.stride + 1, 2, game.n))
    # An opponent's value is not learned.
    learners = 2 if config.opponent == "self" else 1

    def along(params, xs):  # (time, learners, M)
        quantiles = jax.vmap(lambda x: meta_quantiles(params, game, x, gamma))(xs)
        return quantiles[:, :learners]

    if config.target_inertia > 0:
        predictions = along(params, xs[:-1])
        values = along(target_params, xs[1:])
    else:  # the same model for both, which sees each x once
        quantiles = along(params, xs)
        predictions, values = quantiles[:-1], quantiles[1:]

    rewarded = xs[:-1]
    if config.form == "U":  # U(x) = (1 - gamma) f(x') + gamma U(x')
        rewarded = xs[1:]
    # vmap takes None for a tree without leaves, here and below.
    keys = None if key is None else jax.random.split(key, config.stride)
    rewards = jax.vmap(lambda key, x: known_returns(game, key)(x))(keys, rewarded)
    targets = lambda_returns(
        rewards[:, :learners], values, gamma[:learners], config.bootstrap
    )
    # The authors' code for planar games differentiates the targets as well.
    if config.semi_gradient:
        targets = jax.lax.stop_gradient(targets)
    td_error = jnp.abs(targets.mean(axis=-1) - predictions.mean(axis=-1)).mean()
    return quantile_loss(predictions, targets).mean(), td_error


# --- Algorithm 1 ----------------------------------------------------------------------


class TrainState(NamedTuple):
    """What changes in training."""

    params: Model | tuple[Model, Model]  # theta
    target_params: Model | tuple[Model, Model]  # theta bar
    opt_state: optax.OptState
    step: jax.Array  # outer loops done


def make_optimizer(config: Config) -> optax.GradientTransformation:
    return optax.adamw(
        config.model_lr, b2=config.adam_b2, weight_decay=config.weight_decay
    )


def train_init(key: jax.Array, game: Game, config: Config) -> TrainState:
    """The state before the first outer loop. `key` is the seed's."""
    params = model_init(jax.random.fold_in(key, 0), game, config)
    opt_state = make_optimizer(config).init(params)
    return TrainState(params, params, opt_state, jnp.int32(0))


def draw_gammas(key: jax.Array, config: Config) -> jax.Array:
    """Meta-discounts, a pair for each trajectory (Sec. 4.2). (batch, 2)."""
    if config.fixed_gamma is not None:
        gammas = jnp.full((config.batch_size, 2), config.fixed_gamma)
    else:
        # Beta(1/2, 1/2) is the arcsine distribution, whose quantile function is this.
        uniform = jax.random.uniform(key, (config.batch_size, 2))
        gammas = jnp.sin(jnp.pi / 2 * uniform) ** 2
    if config.opponent != "self":  # its gamma is 0
        gammas = gammas.at[:, 1].set(0)
    return gammas


def explore(explorer, game: Game, x, gamma, signs, config: Config, key) -> jax.Array:
    """k of the T steps along a perturbed model's gradient (Sec. 4.3). (2, n) -> (2, n).

    In form U that gradient alone, as footnote 2 says; Algorithm 1 prints grad f as well
    (and its loop makes k + 1 steps). `explorer` are the parameters at the start of the
    outer loop. `key` is for an opponent that samples.
    """

    def direction(x, key):
        return model_gradient(explorer, game, x, gamma, signs)

    return follow(training_step(direction, game, config), x, config.stride, key)


def rollout(params, game: Game, x, gamma, config: Config, key) -> jax.Array:
    """k on-policy steps (Eq. 6), x(0), ..., x(k). (2, n) -> (k + 1, 2, n)."""

    def direction(x, key):
        return meva_gradient(params, game, x, gamma, config, key)

    return trajectory(training_step(direction, game, config), x, config.stride, key)


def sample_keys(key: jax.Array, game: Game, config: Config) -> tuple:
    """Keys for exploration, rollout and rewards, (batch,) each, if returns are sampled.

    Elsewhere three times None. (`key`, of a stretch, itself draws the gammas.)
    """
    if game.sample is None:
        return None, None, None
    keys = []
    for i in range(3):
        keys.append(jax.random.split(jax.random.fold_in(key, i), config.batch_size))
    return tuple(keys)


def update(state: TrainState, game: Game, xs, gamma, config: Config, keys=None):
    """One step of AdamW on a batch of stretches. Returns (state, metrics).

    The loss is the mean over players, where Algorithm 1 has a step for each.

    Args:
      state: the state.
      game: the game.
      xs: stretches, (batch, k + 1, 2, n).
      gamma: meta-discounts, (batch, 2).
      config: settings.
      keys: where returns are sampled, those of `td_loss`, (batch,).
    """

    def mean_loss(params, target_params, xs, gamma, keys):
        def loss(xs, gamma, key):
            return td_loss(params, target_params, game, xs, gamma, config, key)

        losses, td_errors = jax.vmap(loss)(xs, gamma, keys)
        return losses.mean(), td_errors.mean()

    def loss_and_gradient(both_params, xs, gamma, keys):
        function = jax.value_and_grad(mean_loss, has_aux=True)  # by params alone
        return function(*both_params, xs, gamma, keys)

    both_params = state.params, state.target_params
    (loss, td_error), gradient = mean_over_devices(
        loss_and_gradient, both_params, xs, gamma, keys
    )
    change, opt_state = make_optimizer(config).update(
        gradient, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, change)
    target_params = optax.incremental_update(
        params, state.target_params, 1 - config.target_inertia
    )
    metrics = {
        "loss": loss,
        "td_error": td_error,
        "gradient_norm": optax.tree.norm(gradient),
    }
    return TrainState(params, target_params, opt_state, state.step), metrics


def outer_step(key: jax.Array, state: TrainState, game: Game, config: Config):
    """One outer loop of Algorithm 1: T / k stretches, and an update after each.

    Returns (state, metrics). Without exploration it is the loop of Sec. 3.3: a stretch
    starts where the one before it ended, with fresh gammas and the updated model.
    """
    key_x, key_gamma, key_signs, key_stretches = jax.random.split(key, 4)
    x = jax.vmap(game.init)(jax.random.split(key_x, config.batch_size))
    x = over_devices(x)  # (batch, 2, n), shared out; all that is mapped with it follows

    # An explorer keeps its parameters, gamma and signs for all T steps (Sec. 4.3).
    # Signs are drawn for each trajectory, player and unit.
    explorer = state.params
    explorer_gamma = draw_gammas(key_gamma, config)
    shape = (config.batch_size, 2, config.hidden)
    flips = jax.random.bernoulli(key_signs, config.flip_prob, shape)
    signs = jnp.where(flips, -1.0, 1.0)

    def explore_one(x, gamma, signs, key):
        return explore(explorer, game, x, gamma, signs, config, key)

    def stretch(carry, key):
        state, x = carry
        explore_keys, rollout_keys, reward_keys = sample_keys(key, game, config)
        if config.explore:
            x = jax.vmap(explore_one)(x, explorer_gamma, signs, explore_keys)

        def rollout_one(x, gamma, key):
            return rollout(state.params, game, x, gamma, config, key)

        gamma = draw_gammas(key, config)  # afresh for every stretch
        xs = jax.vmap(rollout_one)(x, gamma, rollout_keys)  # (batch, k + 1, 2, n)
        state, metrics = update(state, game, xs, gamma, config, reward_keys)

        if not config.explore:  # the trajectory itself goes on (Sec. 3.3)
            x = xs[:, -1]
        return (state, x), metrics

    keys = jax.random.split(key_stretches, config.rollout_length // config.stride)
    (state, _), metrics = jax.lax.scan(stretch, (state, x), keys)
    return state._replace(step=state.step + 1), jax.tree.map(jnp.mean, metrics)


def monitor(key: jax.Array, params, game: Game, config: Config) -> jax.Array:
    """Mean return of 32 agents after 200 steps at gamma = .95 or `fixed_gamma`. ().

    In self-play, or beside the opponent; player 1's where players are not alike.
    """
    gamma = 0.95 if config.fixed_gamma is None else config.fixed_gamma

    def direction(x, key):
        return meva_gradient(params, game, x, gamma, config)

    def play(x):
        return game.f(follow(training_step(direction, game, config), x, 200))

    returns = jax.vmap(play)(jax.vmap(game.init)(jax.random.split(key, 32)))  # (32, 2)
    if game.symmetric and config.opponent == "self":
        return returns.mean()
    return returns[:, 0].mean()


def train_chunk(key: jax.Array, state: TrainState, game: Game, config: Config, count):
    """`count` outer loops. Returns (state, curves).

    `key` is the seed's, in all chunks. The curves are the metrics of each loop,
    (count,), and `self_play_curve`, (1,), of the model after the last (see `monitor`).
    """

    def loop(state, _):
        # Keys depend on the step alone: a resumed run goes on with its own.
        key_loop = jax.random.fold_in(key, 1 + state.step)
        return outer_step(key_loop, state, game, config)

    state, curves = jax.lax.scan(loop, state, length=count)
    # The policies are always the same, to see the change of the model.
    key_monitor = jax.random.fold_in(key, 1 + config.outer_steps)
    returns = monitor(key_monitor, state.params, game, config)
    return state, curves | {"self_play_curve": returns[None]}


def train(key: jax.Array, game: Game, config: Config):
    """Train one model. Returns (params, curves), as `train_chunk` of all outer loops.

    Jit it with `game` and `config` static, and map it over keys for several models.
    """
    state = train_init(key, game, config)
    state, curves = train_chunk(key, state, game, config, config.outer_steps)
    return state.params, curves


# --- Evaluation -----------------------------------------------------------------------


def evaluate(
    key: jax.Array, params, game: Game, config: Config
) -> dict[str, jax.Array]:
    """The model's agents at every gamma (Figs. 2, 3a). Arrays (gamma, ...).

    `key` draws the policies that they start from. The arrays are those of
    `evaluate_game`; in planar games also "values", (gamma, 29, 29, 2), on the grid.
    """

    def make_step(gamma):
        def step(x):
            return x + config.lr * meva_gradient(params, game, x, gamma, config)

        return step

    def evaluate_at(gamma):
        def step_beside(agent):  # beside a naive learner or LOLA, whose gamma is 0
            return make_step(jnp.zeros(2).at[agent].set(gamma))

        rule = partial(opponent_step, game, config=config)
        step, agents = make_step(gamma), (0, 1)
        # A model for one seat cannot play itself in a game that is not symmetric.
        is_alone = config.opponent != "self" and not game.symmetric
        if is_alone:
            step, agents = beside(step, rule), (0,)
        results = evaluate_game(
            key,
            game,
            step,
            lr=config.lr,
            steps=config.eval_steps,
            pairs=config.eval_pairs,
            step_beside=step_beside,
            opponent_step=None if config.opponent == "self" else rule,
            agents=agents,
        )
        if is_alone:
            del results["self_play"]  # which is "versus_opponent"
        if game.planar:
            gammas = gamma if config.opponent == "self" else jnp.stack([gamma, 0])
            values = jax.vmap(jax.vmap(lambda x: meta_value(params, game, x, gammas)))
            results["values"] = values(planar_grid(game)[..., None])
        return results

    return jax.lax.map(evaluate_at, jnp.array(config.eval_gammas))


# --- Command line ---------------------------------------------------------------------


def load(path: str | Path, seed: int | None = None, game: Game | None = None):
    """The trained model of results/meva_GAME.npz. Returns (params, config).

    Args:
      path: of the file.
      seed: which model, if the file has several; the first if None.
      game: the game, if it is not one of games.py.
    """
    return load_model(path, Config, model_init, seed, game)


CHUNK = 25  # outer loops between two checkpoints


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


def draw_curves(figure, curves: dict, config: Config):
    """How training went, a line for each seed."""
    titles = {
        "loss": "loss",
        "td_error": "TD error",
        "self_play_curve": r"mean return at $\gamma$ = .95",
    }
    if config.fixed_gamma is not None:
        titles["self_play_curve"] = "mean return"
    axes = figure.subplots(1, 3)
    for axis, (name, title) in zip(axes, titles.items()):
        curve = curves[name]  # (seed, time)
        steps = np.linspace(0, config.outer_steps, curve.shape[1] + 1)[1:]
        # A point alone, as in a short run, has no line.
        point = "." if len(steps) == 1 else ""
        axis.plot(steps, curve.T, point + "-", color="tab:blue", linewidth=1)
        axis.set(xlabel="outer loops", ylabel=title)
        axis.set_xlim(left=0)
    for axis in axes[:2]:
        axis.set_yscale("log")
    axes[2].set_ylim(robust_limits(curves["self_play_curve"], least=0.1))


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
    results |= curves | flatten("params", state.params)
    if game.sample is not None:
        print("trained on estimates; evaluated with exact gradients and returns")
    report(
        config.name,
        game,
        settings,
        config.eval_gammas,
        results,
        symbol=r"meta-discount $\gamma$",
        color="tab:blue",
        out=out,
        draw_below=lambda figure: draw_curves(figure, curves, config),
    )


if __name__ == "__main__":
    run_script(main)
