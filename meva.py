"""Meta-Value Learning (MeVa): policies follow the gradient of a learned, discounted sum of their future returns.

Cooijmans, Aghajohari and Courville, Learning with Learning Awareness using Meta-Values. Where naive learners follow the
gradient of their returns f, MeVa's follow that of the meta-value (Eq. 5, normalised as in App. A),

    V(x) = (1 - gamma) f(x) + gamma V(x + lr grad V(x)),

the return averaged over the future of this very optimisation. A network learns V by TD along such trajectories (Eqs. 6
and 7). Form U (Sec. 4.1, Algorithm 1) learns U(x) = V(x'), x' the next policies, and follows grad f + gamma grad U.

The other player in training is MeVa as well, or with --opponent a naive learner or LOLA, whom the model then shapes
(with --normalized-step, which gives the future its full weight, much more so).

    python meva.py --game ipd          the paper's Fig. 3a, one model: 4 to 12 minutes on a 2-core CPU
    python meva.py --game logistic     the paper's Fig. 2, MeVa's rows: under a minute
    python meva.py --game logistic --outer-steps 50 --eval-gammas 0.95    to see it run, barely trained: 15 seconds

What to expect on the IPD: defection (-2) at gamma = 0, cooperation (-1) near 1, by policies like tit-for-tat that no
best response exploits and that lead naive learners into cooperating. On the Logistic Game: everything ends at B, the
better of two solutions, from gamma = .92 on. A run prints a table and writes results/meva_GAME.npz and
figures/meva_GAME.png.
"""

import contextlib
import dataclasses
import inspect
import itertools
import json
import os
import pathlib
import re
import sys
import time
from argparse import (
    SUPPRESS,
    ArgumentParser,
    ArgumentTypeError,
    BooleanOptionalAction,
    RawDescriptionHelpFormatter,
)
from functools import partial
from typing import Annotated, NamedTuple, get_origin, get_type_hints

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.multihost_utils import process_allgather
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from games import (
    GAMES,
    VARIANTS_HELP,
    Game,
    check_devices,
    evaluate_game,
    find_game,
    follow,
    make_folders,
    planar_grid,
    report,
    run_script,
    simultaneous_gradient,
    swapped,
    trajectory,
    write_file,
)

NAME = "meva"  # of the files

Count = Annotated[int, 1, 2**31 - 1]  # the least and the greatest value of a setting
Few = Annotated[int, 1, 1000]
Step = Annotated[float, 0.0, 1e30]
Share = Annotated[float, 0.0, 1.0]
Gamma = Annotated[float, 0.0, 0.9999999]
Gammas = Annotated[tuple[float, ...], 0.0, 0.9999999]
Switch = Annotated[bool, False, True]


# fmt: off
@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run, and so all flags, those of App. E for the IPD; `make_config` has those for other games."""

    game: str = "ipd"  # the game, or a variant of it
    seed: Annotated[int, 0, 2**31 - 1] = 0  # first seed
    num_seeds: Few = 1  # number of seeds, each a model of its own: seed, seed + 1, ...
    lr: Step = 2.0  # step size of the policies, the paper's alpha (Eq. 6)
    opponent: Annotated[str, "self", "naive", "lola"] = "self"  # the other in training: MeVa as well, or this learner
    alpha: Step = 10.0  # look-ahead step of --opponent lola (Eq. 2)
    variant: Annotated[str, "exact", "taylor-stop"] = "exact"  # form of --opponent lola, as in lola.py (App. B)
    form: Annotated[str, "V", "U"] = "U"  # the meta-value V (Eq. 5) or the correction U (Sec. 4.1)
    normalized_step: Switch = False  # form U: follow (1 - gamma) grad f + gamma grad U, as f and U are normalised
    hidden: Count = 64  # width of the model (App. D)
    blocks: Annotated[int, 0, 1000] = 2  # residual blocks in each of the model's two MLPs (App. D, E)
    quantiles: Few = 32  # quantiles M of the meta-value; 1 is regression with half the Huber loss (Sec. 4)
    layer_norm: Switch = True  # layer normalisation in the model (App. D); off on planar games, see README
    last_activation: Annotated[str, "tanh", "gelu"] = "tanh"  # the model's last nonlinearity (App. E; see README)
    share_params: Switch = True  # one parameter set for both players, theta_1 = theta_2 (App. D); if not, for each seat
    outer_steps: Count = 2000  # outer loops of Algorithm 1, best a multiple of 25, as chunks are
    batch_size: Count = 128  # trajectories in an outer loop; 4 with --quick and a --game of episodes
    rollout_length: Count = 100  # length T of an exploration trajectory (Algorithm 1)
    stride: Count = 10  # length k of an on-policy stretch (Algorithm 1); it must divide T
    explore: Switch = True  # stretches start on exploration trajectories (Algorithm 1); if not, as in Sec. 3.3
    flip_prob: Share = 1 / 16  # probability of a sign flip in exploration (Sec. 4.3)
    fixed_gamma: Annotated[float | None, 0.0, 0.9999999] = None  # train for this alone, not Beta(1/2, 1/2) (Sec. 4.2)
    bootstrap: Share = 0.9  # bootstrapping rate lambda of the TD targets; 0 is TD(0) (Sec. 4)
    target_inertia: Gamma = 0.99  # inertia rho of the target network; 0: no target network (Sec. 4)
    semi_gradient: Switch = True  # hold the TD target constant; if not, Eq. 7 is minimised by both sides
    model_lr: Step = 1e-4  # learning rate eta of the model (Algorithm 1)
    adam_b2: Gamma = 0.99  # Adam's decay of the second moment (the authors' code, not in the paper)
    weight_decay: Step = 1e-2  # weight decay of AdamW (App. E)
    eval_gammas: Gammas = (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999)  # meta-discounts (Figs. 2, 3a)
    eval_pairs: Count = 256  # policy pairs for each gamma and seed (Sec. 5.2)
    eval_steps: Count = 500  # steps that they are followed for

    def __post_init__(self):
        check(self)
        if self.rollout_length % self.stride:
            raise ValueError(f"stride: takes a divisor of --rollout-length {self.rollout_length}, not {self.stride}")
        if self.target_inertia and not self.semi_gradient:
            raise ValueError("no-semi-gradient: takes --target-inertia 0, no target network, beside it")

    @property
    def name(self) -> str:
        """What files are named after, with the opponent if there is one."""
        return NAME if self.opponent == "self" else f"{NAME}-{self.opponent}"

    @property
    def players(self) -> slice:
        """Whose meta-values are learned: both players', or with an opponent player 1's."""
        return slice(2 if self.opponent == "self" else 1)
# fmt: on


PLANAR = dict(
    form="V", blocks=1, quantiles=16, outer_steps=1000, rollout_length=50, stride=50, explore=False,
    layer_norm=False, bootstrap=0.0, target_inertia=0.0, semi_gradient=False, model_lr=1e-3, weight_decay=0.0,
    eval_gammas=(0.0, 0.8, 0.85, 0.9, 0.95, 0.99), eval_pairs=32, eval_steps=200,
)  # fmt: skip
QUICK = dict(
    outer_steps=250,
    batch_size=64,
    model_lr=1e-3,
    eval_gammas=(0.0, 0.5, 0.9, 0.95, 0.99),
    eval_pairs=64,
)


def make_config(game: str | Game = "ipd", quick: bool = False, **changes) -> Config:
    """The paper's settings for a game (App. D if planar, else App. E), one of `GAMES` or one's own, with changes."""
    played = find_game(game)
    settings = dict(game=played.name, lr=played.lr, share_params=played.symmetric)
    settings |= dict(alpha=played.alphas[:5][-1])
    settings |= PLANAR if played.planar else {}
    settings |= (
        (dict(outer_steps=600, model_lr=2e-3) if played.planar else QUICK)
        if quick
        else {}
    )
    settings |= dict(batch_size=4) if quick and played.sample else {}
    settings |= (
        {}
        if changes.get("fixed_gamma") is None
        else dict(eval_gammas=(changes["fixed_gamma"],))
    )
    config = Config(**settings | changes)
    if config.opponent != "self" and config.share_params and not played.symmetric:
        raise ValueError(
            f"share-params: takes a symmetric --game beside --opponent, not {config.game}"
        )
    return config


# --- shared: network ---
def linear_init(key: jax.Array, inputs: int, outputs: int) -> dict:
    return {
        "w": jax.random.normal(key, (inputs, outputs)) / inputs**0.5,
        "b": jnp.zeros(outputs),
    }


def linear(params: dict, x: jax.Array) -> jax.Array:
    return (
        jnp.matmul(x, params["w"], precision="highest") + params["b"]
    )  # a GPU's default, TF32, has 10 bits


def normed_linear(params: dict, x: jax.Array) -> jax.Array:
    """Linear, then layer normalisation: zero mean, unit variance over the units. No learned scale and shift."""
    # The mean over the units is linear in weights and biases and taken out there, which saves a sixth of all time.
    h = linear(
        jax.tree.map(lambda leaf: leaf - leaf.mean(-1, keepdims=True), params), x
    )
    return h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + 1e-6)


def mlp_init(key: jax.Array, inputs: int, width: int, blocks: int) -> dict:
    first, last, *keys = jax.random.split(key, 2 + 2 * blocks)
    layers = [linear_init(key, width, width) for key in keys]
    gated = [
        {"in": a, "out": b, "gate": jnp.zeros(width)}
        for a, b in zip(layers[::2], layers[1::2])
    ]
    return {
        "first": linear_init(first, inputs, width),
        "blocks": gated,
        "last": linear_init(last, width, width),
    }


def mlp(
    params: dict, x: jax.Array, layer_norm: bool, activation: str = "gelu"
) -> jax.Array:
    """Residual blocks between two layers, normalised or not (App. D), GELU by tanh. (..., inputs) -> (..., width)."""
    layer = normed_linear if layer_norm else linear
    h = jax.nn.gelu(layer(params["first"], x))
    for block in params["blocks"]:
        gate = jax.nn.sigmoid(
            block["gate"]
        )  # learned, one for each unit; half open at first
        h = gate * h + (1 - gate) * linear(
            block["out"], jax.nn.gelu(layer(block["in"], h))
        )
    return getattr(jax.nn, activation)(layer(params["last"], h))


# --- end shared ---


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    """Parameters theta of the meta-value of App. D: embed each policy, combine own and other's, read off quantiles."""

    embed: dict  # MLP, (x_i, gamma_i) -> z_i
    combine: dict  # MLP, (z_i, z_j) -> h_i
    readout: dict  # linear, h_i -> M quantiles
    layer_norm: bool = dataclasses.field(metadata={"static": True})
    activation: str = dataclasses.field(metadata={"static": True})  # the last one


def model_init(
    key: jax.Array, game: Game, config: Config
) -> Model | tuple[Model, Model]:
    """Parameters of the meta-value: one model for both players, or one for each where they share none."""

    def one(key):
        key_embed, key_combine, key_readout = jax.random.split(key, 3)
        inputs = jax.eval_shape(game.features, jnp.zeros((2, game.n))).shape[1] + 1
        embed = mlp_init(key_embed, inputs, config.hidden, config.blocks)
        combine = mlp_init(key_combine, 2 * config.hidden, config.hidden, config.blocks)
        readout = linear_init(key_readout, config.hidden, config.quantiles)
        return Model(embed, combine, readout, config.layer_norm, config.last_activation)

    return one(key) if config.share_params else tuple(map(one, jax.random.split(key)))


def meta_quantiles(
    params, game: Game, x, gamma, signs=1.0, detach=False, players=slice(2)
) -> jax.Array:
    """Quantiles of the players' meta-values, normalised (App. A) to units of return: V or U, as it was trained.

    `params` is a `Model`, or a pair of them where the players share none, x (2, n), and `gamma` (2,), or () for both.
    `signs`, (2, hidden) of -1 and 1, flips the last hidden layer's units (Sec. 4.3). `detach` holds each player's
    representation of the other constant: the gradient of the sum over players by x is then the simultaneous gradient,
    in one backward pass for both players. Returns (2, M), or the rows of `players` alone.
    """
    if isinstance(params, tuple):
        own = (
            meta_quantiles(params[i], game, x, gamma, signs, detach, slice(i, i + 1))
            for i in (0, 1)
        )
        return jnp.concatenate([*own][players])
    x = 1.0 * jnp.asarray(x)  # integers become floats
    gamma = jnp.broadcast_to(jnp.asarray(gamma, x.dtype), 2)
    chex.assert_shape(x, (2, game.n))
    z = mlp(
        params.embed,
        jnp.concatenate([game.features(x), gamma[:, None]], -1),
        params.layer_norm,
    )  # (2, hidden)
    z_other = jax.lax.stop_gradient(z[::-1]) if detach else z[::-1]
    both = jnp.concatenate([z, z_other], -1)[players]  # own representation first
    h = mlp(
        params.combine, both, params.layer_norm, params.activation
    )  # (players, hidden)
    return linear(params.readout, jnp.broadcast_to(signs, z.shape)[players] * h).astype(
        x.dtype
    )


def meta_value(params, game: Game, x: jax.Array, gamma: jax.Array) -> jax.Array:
    """The players' meta-values V(x; theta, gamma) (or U), the mean of the quantiles. (2, n), (2,) or () -> (2,)."""
    return meta_quantiles(params, game, x, gamma).mean(-1)


def model_gradient(
    params, game: Game, x: jax.Array, gamma: jax.Array, signs=1.0, players=slice(2)
) -> jax.Array:
    """The simultaneous gradient of `meta_value` by one backward pass, the units' signs flipped by `signs`. (2, n).

    Of `players` alone: the others' rows are 0.
    """
    values = partial(
        meta_quantiles,
        params,
        game,
        gamma=gamma,
        signs=signs,
        detach=True,
        players=players,
    )
    return jax.grad(lambda x: values(x).mean(-1).sum())(jnp.asarray(x))


def returns_of(game: Game, key=None):
    """What learners ascend, (2, n) -> (2,): f, or with a key the estimate that is sampled by it."""
    return game.f if key is None else partial(game.sample, key)


def meva_gradient(
    params, game: Game, x, gamma, config: Config, players=slice(2), key=None
) -> jax.Array:
    """The field that policies follow: grad V (Eq. 6), or grad f + gamma grad U (Sec. 4.1). (2, n), (2,) -> (2, n).

    As in Algorithm 1 U is normalised and f is not, which weighs the future less than Sec. 4.1 does. A model that was
    trained with an opponent sees, as in training, its player's gamma and 0 for the other, whoever that is. With a key
    grad f is estimated.
    """
    x = 1.0 * jnp.asarray(x)
    gamma = jnp.broadcast_to(jnp.asarray(gamma, x.dtype), 2)
    if config.opponent == "self":
        gradient = model_gradient(params, game, x, gamma, players=players)
    else:
        of = partial(model_gradient, params, game, x)
        gradient = sum(
            of(gamma.at[1 - i].set(0), players=slice(i, i + 1))
            for i in range(2)[players]
        )
    if config.form == "U":
        gamma, naive = gamma[:, None], simultaneous_gradient(returns_of(game, key), x)
        gradient = (1 - gamma * config.normalized_step) * naive + gamma * gradient
    return gradient


def opponent_gradient(game: Game, x: jax.Array, config: Config, key=None) -> jax.Array:
    """What an opponent follows: its naive gradient (Eq. 1), or LOLA's with its alpha (App. B). Both rows, (2, n).

    With a key both are estimated, LOLA's imagined step apart, as in lola.py.
    """
    if config.opponent == "naive":
        return simultaneous_gradient(returns_of(game, key), x)
    f, f_ahead = (
        (game.f, game.f)
        if key is None
        else (returns_of(game, key) for key in jax.random.split(key))
    )

    def surrogate(own, i):  # i's return after j's next naive step
        joint, j = x.at[i].set(own), 1 - i
        by_other = lambda f, of: jax.grad(lambda other: f(joint.at[j].set(other))[of])(
            joint[j]
        )
        slope, gradient = (
            by_other(f, i),
            by_other(f_ahead, j),
        )  # d f_i / d x_j, d f_j / d x_j
        if config.variant == "exact":
            return f(joint.at[j].add(config.alpha * gradient))[i]
        return (
            f(joint)[i] + config.alpha * (jax.lax.stop_gradient(slope) * gradient).sum()
        )

    return jnp.stack([jax.grad(surrogate)(x[i], i) for i in (0, 1)])


def training_step(field, game: Game, config: Config):
    """The step of both players in training along `field`: with an opponent player 2 has its rule instead."""

    def step(x, *key):
        gradient = field(x, *key)
        if config.opponent != "self":
            gradient = jnp.stack(
                [gradient[0], opponent_gradient(game, x, config, *key)[1]]
            )
        return x + config.lr * gradient

    return step


def lambda_returns(
    rewards: jax.Array, values: jax.Array, gamma: jax.Array, bootstrap: float
) -> jax.Array:
    """TD targets of Algorithm 1, for each quantile, by the normalised Bellman equation of App. A:

        Y(t) = (1 - gamma) r(t) + gamma ((1 - lambda) U(x(t + 1)) + lambda Y(t + 1)),    Y(k) = U(x(k)).

    r(0), ..., r(k - 1), (k, 2); U(x(1)), ..., U(x(k)), (k, 2, M); gamma, (2,) -> Y(0), ..., Y(k - 1), (k, 2, M).
    """
    chex.assert_equal_shape_prefix([rewards, values], 2)
    gamma = gamma[:, None]

    def back_up(target, step):
        reward, value = step
        target = (1 - gamma) * reward[:, None] + gamma * (
            (1 - bootstrap) * value + bootstrap * target
        )
        return target, target

    return jax.lax.scan(back_up, values[-1], (rewards, values), reverse=True)[1]


def quantile_loss(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Quantile regression with the Huber loss, D of App. C (Dabney et al., 2018, Eq. 10). (..., M), (..., M) -> (...).

    sum_i mean_j |tau_i - [e_ij < 0]| huber(e_ij), e_ij = target_j - prediction_i, tau_i = (i + 1/2) / M, kappa = 1.
    """
    predictions, targets = jnp.asarray(predictions), jnp.asarray(targets)
    chex.assert_equal_shape([predictions, targets])
    count = predictions.shape[-1]
    tau = jnp.asarray((np.arange(count) + 0.5) / count, predictions.dtype)
    loss = jnp.zeros_like(predictions)
    for j in range(
        count
    ):  # unrolled: ten times faster on a CPU than one (..., M, M) broadcast
        error = targets[..., j : j + 1] - predictions
        loss += jnp.abs(tau - (error < 0)) * optax.losses.huber_loss(error)
    mean = jnp.full(count, 1 / count, loss.dtype)
    return jnp.matmul(
        loss, mean, precision="highest"
    )  # loss.sum(-1) would be fused into scalar code


def td_loss(
    params,
    target_params,
    game: Game,
    xs: jax.Array,
    gamma: jax.Array,
    config: Config,
    key=None,
):
    """Loss L of Algorithm 1 (Eq. 7) on one on-policy stretch x(0), ..., x(k). (k + 1, 2, n), (2,) -> loss, TD error.

    The TD error is mean |E target - E prediction|, in units of return. With a key rewards are estimated.
    """
    chex.assert_shape(xs, (config.stride + 1, 2, game.n))
    quantiles = jax.vmap(
        partial(meta_quantiles, players=config.players), (None, None, 0, None)
    )
    predictions = quantiles(
        params, game, xs[:-1] if config.target_inertia else xs, gamma
    )  # (k or k + 1, 2, M)
    values = (
        quantiles(target_params, game, xs[1:], gamma)
        if config.target_inertia
        else predictions[1:]
    )
    predictions = predictions[: config.stride]
    keys = None if key is None else jax.random.split(key, config.stride)
    rewarded = xs[1:] if config.form == "U" else xs[:-1]  # U(x) looks one step ahead
    rewards = jax.vmap(lambda key, x: returns_of(game, key)(x))(keys, rewarded)
    targets = lambda_returns(
        rewards[:, config.players], values, gamma[config.players], config.bootstrap
    )
    if config.semi_gradient:  # Eq. 7 does not say; on the Logistic Game the authors differentiate both of its sides
        targets = jax.lax.stop_gradient(targets)
    error = jnp.abs(targets.mean(-1) - predictions.mean(-1)).mean()
    return quantile_loss(predictions, targets).mean(), error


class TrainState(NamedTuple):
    """What changes while a model is trained."""

    params: Model | tuple[Model, Model]  # theta
    target_params: Model | tuple[Model, Model]  # theta bar
    opt_state: optax.OptState
    step: jax.Array  # outer loops done


def make_optimizer(config: Config) -> optax.GradientTransformation:
    return optax.adamw(
        config.model_lr, b2=config.adam_b2, weight_decay=config.weight_decay
    )


def seats(key: jax.Array, game: Game, config: Config) -> list[tuple]:
    """What trains the model of each seat, where it takes two: its key, the game as its seat sees it, settings. Or [].

    With an opponent players learn apart, each as player 1 beside an opponent that is player 2, and where they do not
    share parameters that makes two trainings. (Without, one training has both players' models.)
    """
    if config.opponent == "self" or config.share_params:
        return []
    keys = jax.random.split(jax.random.fold_in(key, 2 + config.outer_steps))
    alone = dataclasses.replace(config, share_params=True)
    return [(key, seen, alone) for key, seen in zip(keys, (game, swapped(game)))]


def join(states: list[TrainState]) -> TrainState:
    """The states of both seats' models as one, of pairs."""
    *pairs, (step, _) = zip(*states)
    return TrainState(*pairs, step)


def train_init(key: jax.Array, game: Game, config: Config) -> TrainState:
    """The state before the first outer loop."""
    # What is folded into a seed's key: 0 here, 1, 2, ... for outer loops, then one for the monitor, one for seats.
    if by_seat := seats(key, game, config):
        return join([train_init(*seat) for seat in by_seat])
    params = model_init(jax.random.fold_in(key, 0), game, config)
    return TrainState(
        params, params, make_optimizer(config).init(params), jnp.zeros((), jnp.int32)
    )


def draw_gammas(key: jax.Array, config: Config) -> jax.Array:
    """Meta-discounts of both players for each trajectory (Sec. 4.2), an opponent's is 0. (batch, 2)."""
    are_agents = jnp.array([1.0, config.opponent == "self"])
    if config.fixed_gamma is not None:
        return jnp.full((config.batch_size, 2), config.fixed_gamma) * are_agents
    # Beta(1/2, 1/2) is the arcsine distribution: its quantile function is much cheaper than jax.random.beta.
    return (
        jnp.sin(jnp.pi / 2 * jax.random.uniform(key, (config.batch_size, 2))) ** 2
        * are_agents
    )


def sample_keys(
    key: jax.Array, game: Game, config: Config, axis=None
) -> list[jax.Array | None]:
    """Keys of a stretch's estimates, (batch,) each: in exploration, on-policy, of rewards; nones where f is exact."""
    if game.sample is None:
        return [None] * 3
    # The key itself draws gammas, as it does without samples.
    return [
        own_share(jax.random.split(jax.random.fold_in(key, i), config.batch_size), axis)
        for i in range(3)
    ]


def count_groups(batch: int, stride: int) -> int:
    """The fewest equal groups of a batch whose activations fit in a CPU's cache, 256 policy pairs; elsewhere one."""
    cached = max(256 // stride, 1) if jax.default_backend() == "cpu" else batch
    return next(
        count for count in range(-(-batch // cached), batch + 1) if batch % count == 0
    )


def update(
    state: TrainState,
    game: Game,
    xs: jax.Array,
    gamma: jax.Array,
    config: Config,
    axis=None,
    keys=None,
):
    """A step of AdamW on a batch of stretches, (batch, k + 1, 2, n) and (batch, 2). Returns (state, metrics).

    With `axis`, of `jax.shard_map`, these are one device's part of the batch. `keys`, (batch,), are `td_loss`'s.
    """

    @partial(jax.value_and_grad, has_aux=True)
    def mean_loss(params, xs, gamma, keys):
        one = jax.vmap(td_loss, (None, None, None, 0, 0, None, 0))
        return jax.tree.map(
            jnp.mean, one(params, state.target_params, game, xs, gamma, config, keys)
        )

    # The mean gradient of groups: passes that fit in a CPU's cache save a third of the time of an update there.
    count = count_groups(len(xs), config.stride)
    groups = jax.tree.map(
        lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:]), (xs, gamma, keys)
    )
    gradients = jax.lax.map(lambda group: mean_loss(state.params, *group), groups)
    (loss, error), gradient = device_mean(
        jax.tree.map(lambda leaf: leaf.mean(0), gradients), axis
    )
    step, opt_state = make_optimizer(config).update(
        gradient, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, step)
    target_params = optax.incremental_update(
        params, state.target_params, 1 - config.target_inertia
    )
    metrics = {
        "loss": loss,
        "td_error": error,
        "gradient_norm": optax.tree.norm(gradient),
    }
    return TrainState(params, target_params, opt_state, state.step), metrics


def outer_step(
    key: jax.Array, state: TrainState, game: Game, config: Config, axis=None
):
    """One outer loop of Algorithm 1: T / k stretches, a model update on each. Returns (state, metrics).

    Without exploration it is the loop of Sec. 3.3: the on-policy trajectory itself goes on from stretch to stretch.
    Devices along `axis`, of `jax.shard_map`, share the batch, which is the same however many they are.
    """
    key_x, key_gamma, key_signs, key_stretches = jax.random.split(key, 4)
    x = own_share(
        jax.vmap(game.init)(jax.random.split(key_x, config.batch_size)), axis
    )  # (batch, 2, n)
    # The perturbed model is held for all T steps: parameters, gamma and signs (Sec. 4.3).
    explorer, explorer_gamma = (
        state.params,
        own_share(draw_gammas(key_gamma, config), axis),
    )
    flips = jax.random.bernoulli(
        key_signs, config.flip_prob, (config.batch_size, 2, config.hidden)
    )
    signs = 1.0 - 2.0 * own_share(flips, axis)

    @jax.vmap  # k steps along the model's gradient alone (footnote 2); what Algorithm 1 says, literally, makes k + 1
    def off_policy(x, gamma, signs, key):
        field = lambda x, *_: model_gradient(
            explorer, game, x, gamma, signs, config.players
        )
        return follow(training_step(field, game, config), x, config.stride, key)

    def stretch(carry, key):
        state, x = carry
        off_keys, on_keys, reward_keys = sample_keys(key, game, config, axis)
        if config.explore:
            x = off_policy(x, explorer_gamma, signs, off_keys)
        gamma = own_share(draw_gammas(key, config), axis)

        @jax.vmap
        def rollout(x, gamma, key):  # k steps on-policy (Eq. 6)
            field = lambda x, key=None: meva_gradient(
                state.params, game, x, gamma, config, config.players, key
            )
            return trajectory(training_step(field, game, config), x, config.stride, key)

        xs = rollout(x, gamma, on_keys)  # (batch, k + 1, 2, n)
        state, metrics = update(state, game, xs, gamma, config, axis, reward_keys)
        return (state, x if config.explore else xs[:, -1]), metrics

    keys = jax.random.split(key_stretches, config.rollout_length // config.stride)
    (state, _), metrics = jax.lax.scan(stretch, (state, x), keys)
    return state._replace(step=state.step + 1), jax.tree.map(jnp.mean, metrics)


def chunk_length(config: Config) -> int:
    """Outer loops between two checkpoints: the largest divisor of `outer_steps` up to 25, so all chunks are alike."""
    return max(length for length in range(1, 26) if config.outer_steps % length == 0)


def train_chunk(
    key: jax.Array, state: TrainState, game: Game, config: Config, axis=None
):
    """One chunk of training, for one seed. `key` is the seed's, whatever the chunk. Returns (state, metrics).

    The metrics are `loss`, `td_error` and `gradient_norm`, one for each outer loop, and `self_play_curve`, (1,), the
    mean return of 32 agents after 200 steps at gamma = .95 (or at --fixed-gamma), of player 1 where they are not alike,
    beside the opponent if there is one. With a model for each seat, all are means over both.
    """
    if by_seat := seats(key, game, config):
        states = [TrainState(*parts, state.step) for parts in zip(*state[:-1])]
        chunks = [
            train_chunk(key, state, *seat, axis)
            for (key, *seat), state in zip(by_seat, states)
        ]
        states, metrics = zip(*chunks)
        return join(states), jax.tree.map(lambda *both: sum(both) / 2, *metrics)
    keys = jax.vmap(partial(jax.random.fold_in, key))(
        1 + state.step + jnp.arange(chunk_length(config))
    )
    state, metrics = jax.lax.scan(
        lambda state, key: outer_step(key, state, game, config, axis), state, keys
    )
    gamma = 0.95 if config.fixed_gamma is None else config.fixed_gamma
    monitor_key = jax.random.fold_in(
        key, 1 + config.outer_steps
    )  # always the same, to see the change of the model
    starts = jax.vmap(game.init)(jax.random.split(monitor_key, 32))
    field = partial(meva_gradient, state.params, game, gamma=gamma, config=config)
    step = training_step(field, game, config)
    returns = jax.vmap(lambda x: game.f(follow(step, x, 200)))(starts)  # (pair, 2)
    alike = game.symmetric and config.opponent == "self"
    return state, metrics | {
        "self_play_curve": (returns if alike else returns[:, 0]).mean()[None]
    }


def train(key: jax.Array, game: Game, config: Config):
    """Train one model: (parameters, metrics of all loops). Jit it with game and config static, map it over keys."""
    chunks, state = (
        config.outer_steps // chunk_length(config),
        train_init(key, game, config),
    )
    state, metrics = jax.lax.scan(
        lambda state, _: train_chunk(key, state, game, config), state, length=chunks
    )
    return state.params, jax.tree.map(jnp.ravel, metrics)


def evaluate(
    key: jax.Array, params, game: Game, config: Config, axis=None
) -> dict[str, jax.Array]:
    """Evaluate a model on policies that `key` draws, at every gamma of the sweep (Figs. 2, 3). Arrays (sweep, ...)."""

    def one(gamma):
        gradient = partial(meva_gradient, params, game, config=config)
        step = lambda x: x + config.lr * gradient(x, gamma)

        def step_beside(agent):  # models see a learner's meta-discount as 0
            gammas = jnp.zeros(2).at[agent].set(gamma)
            return lambda x: x + config.lr * gradient(x, gammas)

        opponent_step = lambda x: x + config.lr * opponent_gradient(game, x, config)
        results = evaluate_game(
            key,
            game,
            step,
            lr=config.lr,
            steps=config.eval_steps,
            pairs=config.eval_pairs,
            step_beside=step_beside,
            opponent_step=None if config.opponent == "self" else opponent_step,
        )
        if game.planar:
            values = jax.vmap(jax.vmap(lambda x: meta_value(params, game, x, gamma)))
            results["values"] = values(planar_grid(game)[..., None])
        return results

    return jax.lax.map(one, own_share(jnp.array(config.eval_gammas), axis))


def loop_flops(params, config: Config) -> int:
    """FLOPs of the model's matrix products in an outer loop of all seeds whose parameters these are.

    Both policies of a pair are embedded, and combined for each player whose value a model has, 2 FLOPs for a weight; a
    gradient by x takes as many again, one by theta twice as many. Exploration, rollout, predictions and the target
    network see each of T steps once.
    """
    weights = lambda tree: sum(
        leaf.size for leaf in jax.tree.leaves(tree) if leaf.ndim == 3
    )  # (seed, input, output)
    models = params if isinstance(params, tuple) else (params,)
    players = 2 if len(models) == 1 and config.opponent == "self" else 1
    products = sum(
        2 * weights(model.embed) + players * weights((model.combine, model.readout))
        for model in models
    )
    passes = 2 * config.explore + 2 + 3 + (config.target_inertia > 0)
    return 2 * products * passes * config.batch_size * config.rollout_length


def main(argv=None):
    config, game, args = parse(argv, **SWITCHES)
    mesh, seeds = make_mesh(config, args)
    make_output_folders(args)  # JAX has started by now
    sys.stdout = (
        open(os.devnull, "w") if jax.process_index() > 0 else sys.stdout
    )  # process 0 prints and writes
    run_on = f"jax {jax.__version__} on {mesh.size} x {jax.devices()[0].device_kind}"
    print(
        described := json.dumps(dataclasses.asdict(config) | {"run_on": run_on}),
        flush=True,
    )
    init = over_devices(lambda key, _: train_init(key, game, config), mesh)
    chunk = over_devices(
        lambda key, _, state: train_chunk(key, state, game, config, "batch"), mesh
    )
    final = over_devices(
        lambda _, key, params: evaluate(key, params, game, config, "batch"),
        mesh,
        "batch",
    )

    path, state, begin = (
        args.results.with_suffix(".checkpoint.npz"),
        init(seeds),
        time.perf_counter(),
    )

    def save(state, curves):  # all that is needed to go on
        arrays = (
            flatten("state", state) | flatten("curves", curves) | {"config": described}
        )
        if jax.process_index() == 0:
            write_file(path, partial(np.savez_compressed, **arrays))

    metrics = jax.eval_shape(chunk, seeds, state)[1]
    curves = {
        name: np.zeros((config.num_seeds, 0), metric.dtype)
        for name, metric in metrics.items()
    }
    if args.resume and path.exists():
        state, curves = load_checkpoint(path, state, metrics, config, args)
    first, length, flops = (
        int(gather(state.step)[0]),
        chunk_length(config),
        loop_flops(state.params, config),
    )
    save(gather(state), curves)
    chunk = chunk.lower(seeds, state).compile()
    print(
        f"compiled in {time.perf_counter() - begin:.1f} s; checkpoints in {path}, for --resume",
        flush=True,
    )
    begin = time.perf_counter()
    for done in range(first + length, config.outer_steps + 1, length):
        state, metrics = chunk(seeds, state)
        whole, new = gather((state, metrics))
        finite = np.isfinite(new["loss"] + new["gradient_norm"]).all(
            0
        )  # (step,), of all seeds
        if not (
            finite.all()
            and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(whole))
        ):
            step = (
                done - length + 1 + np.append(finite[:-1], False).argmin()
            )  # the last if only the state shows it
            sys.exit(
                f"{NAME}.py: training diverged at outer loop {step}; {path} has the state after {done - length}"
            )
        curves = {name: np.concatenate([curves[name], new[name]], 1) for name in curves}
        save(whole, curves)
        rate = (done - first) / (time.perf_counter() - begin)
        shown = "  ".join(
            f"{name} {curve[:, -1].mean():.4g}" for name, curve in curves.items()
        )
        speed = f"{rate:.3g} loops/s  {rate * flops / 1e9:.3g} GFLOP/s  {(config.outer_steps - done) / rate:.0f} s left"
        print(f"{done:6d} / {config.outer_steps}  {shown}  {speed}", flush=True)

    evaluation = gather(final(seeds, state.params))  # (seed, sweep, ...)
    # What `own_share` repeats comes last, and goes.
    results = {
        name: array.swapaxes(0, 1)[: len(config.eval_gammas)]
        for name, array in evaluation.items()
    }
    results |= curves | flatten("params", gather(state.params))
    if jax.process_index() > 0:
        return

    def draw_curves(figure):
        for axis, name in zip(
            figure.subplots(1, 3), ("loss", "td_error", "self_play_curve")
        ):
            steps = np.linspace(0, config.outer_steps, curves[name].shape[1] + 1)[1:]
            axis.plot(
                steps, curves[name].T, color="tab:blue", linewidth=0.6
            )  # a line for each seed
            axis.set(
                xlabel="outer loops",
                ylabel=name,
                yscale="log" if (curves[name] > 0).all() else "linear",
            )

    if game.sample:
        print(
            "trained on estimates; policies followed the exact gradient here, and returns are exact"
        )
    report(
        config.name,
        game,
        described,
        config.eval_gammas,
        results,
        symbol=r"$\gamma$",
        color="tab:blue",
        out=args.out,
        draw_below=draw_curves,
    )


# --- shared: devices and checkpoints ---
SWITCHES = {
    "devices": dict(
        type=int,
        help="devices of this process at most (default: all; of a CPU as many as cores)",
    ),
    "resume": dict(
        action="store_true", help="go on from the checkpoint, if there is one"
    ),
    "distributed": dict(
        nargs="*",
        help="share work with other processes: HOST:PORT COUNT INDEX, or as JAX detects",
    ),
}
gather = partial(
    process_allgather, tiled=True
)  # arrays of all devices, in numpy, in every process


def make_mesh(config, args) -> tuple[Mesh, jax.Array]:
    """A mesh of as many devices as divide seeds and batch, for seeds rather than batch; and the seeds on it."""
    if args.devices is not None and not 1 <= args.devices <= 256:
        args.refuse(
            f"argument --devices: takes numbers from 1 to 256, not {args.devices}"
        )
    if jax.config.jax_num_cpu_devices < 0 and "device_count" not in os.environ.get(
        "XLA_FLAGS", ""
    ):
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count()
        )
        with contextlib.suppress(
            RuntimeError
        ):  # JAX has started, with the devices that it has
            jax.config.update("jax_num_cpu_devices", args.devices or cores)
    try:
        if args.distributed is not None:
            words = zip(
                (str, int, int), args.distributed, strict=bool(args.distributed)
            )
            jax.distributed.initialize(*(kind(word) for kind, word in words))
    except (ValueError, IndexError, RuntimeError) as error:
        args.refuse(
            f"argument --distributed: takes HOST:PORT COUNT INDEX, or a cluster ({error})".splitlines()[
                0
            ]
        )
    check_devices()
    hosts = [
        [device for device in jax.devices() if device.process_index == i]
        for i in range(jax.process_count())
    ]
    most = min(args.devices or 256, *map(len, hosts)) * len(hosts)
    divisors = lambda number: [
        count for count in range(1, most + 1) if number % count == 0
    ]
    pairs = itertools.product(divisors(config.num_seeds), divisors(config.batch_size))
    sizes = [
        (seeds * batch, seeds, batch)
        for seeds, batch in pairs
        if seeds * batch in range(0, most + 1, len(hosts))
    ]
    if not sizes:
        args.refuse(
            f"argument --num-seeds: it and --batch-size do not divide among {len(hosts)} processes"
        )
    count, *shape = max(sizes)
    mesh = Mesh(
        np.reshape([host[: count // len(hosts)] for host in hosts], shape),
        ("seed", "batch"),
    )
    seeds = np.arange(config.num_seeds, dtype=np.uint32) + config.seed
    sharding = NamedSharding(mesh, PartitionSpec("seed"))
    return mesh, jax.make_array_from_callback(seeds.shape, sharding, seeds.__getitem__)


def over_devices(function, mesh: Mesh, *split):
    """Jit `function(key to train with, key to evaluate with, ...)` of one seed for all: each device has its share.

    Its results must be the same on all devices that share a seed, or, with "batch" as `split`, parts of a whole.
    """

    def share(seeds, *args):
        keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed)))(seeds)
        if jax.default_backend() == "cpu":  # in turn: batched weights are slow there
            return jax.lax.map(
                lambda one: function(*one), (keys[:, 0], keys[:, 1], *args)
            )
        return jax.vmap(function)(keys[:, 0], keys[:, 1], *args)

    # With check_vma JAX would sum gradients by what is alike on all devices, such as a grid, over all of them.
    specs = dict(
        in_specs=PartitionSpec("seed"), out_specs=PartitionSpec("seed", *split)
    )
    return jax.jit(jax.shard_map(share, mesh=mesh, check_vma=False, **specs))


def own_share(batch, axis: str | None):
    """This device's part of what all along the axis have; the last element again where it does not divide evenly."""

    def part(leaf):
        size = -(-len(leaf) // jax.lax.axis_size(axis))
        return leaf.take(
            jax.lax.axis_index(axis) * size + jnp.arange(size), axis=0, mode="clip"
        )

    return jax.tree.map(part, batch) if axis else batch


def device_mean(tree, axis: str | None):
    """The mean over the devices that share a batch. Of all leaves at once: one by one costs a tenth of all time."""
    flat, unravel = ravel_pytree(tree)
    return unravel(jax.lax.pmean(flat, axis)) if axis else tree


def flatten(prefix: str, tree) -> dict[str, np.ndarray]:
    """The leaves of a pytree by name, `prefix/path/to/leaf`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        f"{prefix}/{jax.tree_util.keystr(path, simple=True, separator='/')}": leaf
        for path, leaf in leaves
    }


def load_checkpoint(path, state, metrics: dict, config, args):
    """State and curves of a checkpoint, like this state and a chunk's metrics, and made with the same settings."""
    settings, reason = (
        json.loads(json.dumps(dataclasses.asdict(config))),
        "it is damaged",
    )  # tuples as JSON's lists
    try:
        arrays = dict(np.load(path, allow_pickle=False))
        had = dataclasses.asdict(Config()) | json.loads(
            str(arrays["config"])
        )  # new options were at their default
        differ = [
            name
            for name in settings
            if had.get(name) != settings[name] and not name.startswith("eval_")
        ]
        reason = (
            ", ".join(
                f"it has --{name.replace('_', '-')} {had.get(name)}" for name in differ
            )
            or reason
        )
        saved = jax.tree.unflatten(
            jax.tree.structure(state), map(arrays.get, flatten("state", state))
        )
        curves = {name: arrays[f"curves/{name}"] for name in metrics}
        chunks = range(0, config.outer_steps + 1, chunk_length(config)).index(
            int(saved.step[0])
        )
        expected = {
            name: np.tile(np.zeros(metric.shape, metric.dtype), chunks)
            for name, metric in metrics.items()
        }
        chex.assert_trees_all_equal_shapes_and_dtypes(
            (saved, curves), (state, expected)
        )
        chex.assert_tree_all_finite((saved, curves["loss"], curves["gradient_norm"]))
        chex.assert_trees_all_equal(
            (saved.step, differ), (0 * saved.step + saved.step[0], [])
        )
    except Exception:  # whatever is raised on a damaged file
        args.refuse(
            f"argument --resume: takes a whole checkpoint of these settings, not {path} ({reason})"
        )
    return jax.device_put(
        saved, jax.tree.map(lambda leaf: leaf.sharding, state)
    ), curves


# --- end shared ---


# --- shared: command line of scripts that train ---
def check(config):
    """Raise ValueError where a field is out of the range in its type: flag, what it takes. Lists become tuples."""
    for name, hint in list(get_type_hints(Config, include_extras=True).items())[
        1:
    ]:  # all but the game
        value, takes = getattr(config, name), hint.__metadata__
        if get_origin(hint.__origin__) is tuple:
            object.__setattr__(
                config, name, value := tuple(np.ravel(value).tolist())
            )  # jit hashes static arguments
        each = [
            one
            for one in np.ravel(value)
            if one is not None or getattr(Config, name) is not None
        ]
        if not all(
            one in takes if isinstance(one, str) else takes[0] <= one <= takes[1]
            for one in each
        ):
            words = (
                " or ".join(takes)
                if isinstance(takes[0], str)
                else "numbers from {:g} to {:.10g}".format(*takes)
            )
            raise ValueError(
                f"{name.replace('_', '-')}: takes {words}, not {' '.join(map(str, each))}"
            )


def game_name(text: str) -> str:
    """The name of a game, for argparse."""
    try:
        return find_game(text).name
    except ValueError as error:
        raise ArgumentTypeError(str(error).removeprefix("game ")) from None


def parse(argv, **switches):
    """The command line, a flag for each field of Config and for `switches`: (config, game, arguments)."""
    # argparse takes -1e6 for a flag, but not with a space before it.
    argv = [
        re.sub(r"^-(?=[\d.])", " -", word)
        for word in (sys.argv[1:] if argv is None else argv)
    ]
    layout = dict(
        usage=SUPPRESS,
        formatter_class=RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser = ArgumentParser(f"{NAME}.py", description=__doc__, **layout)
    shown = f"the game: {', '.join(sorted(GAMES))}; or a variant of it: {VARIANTS_HELP} (default: ipd)"
    parser.add_argument("--game", default="ipd", type=game_name, help=shown)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a small run that shows the phenomenon in minutes",
    )
    known = parser.parse_known_args(argv)[
        0
    ]  # --help shows the defaults that go with these two
    parser.add_argument("-h", "--help", action="help", help="show this and exit")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=".",
        help="where results/ and figures/ go (default: .)",
    )
    for name, settings in switches.items():
        parser.add_argument(f"--{name}", **settings)
    try:
        defaults = make_config(known.game, known.quick)
    except ValueError as error:
        parser.error(f"argument --{error}")
    hints = get_type_hints(Config, include_extras=True)
    for name, comment in re.findall(
        r"^    (\w+): .*  # (.*)$", inspect.getsource(Config), re.MULTILINE
    )[1:]:
        value, takes = getattr(defaults, name), hints[name].__metadata__
        settings = dict(
            type=type(takes[0]), nargs="+" if isinstance(value, tuple) else None
        )
        settings = {
            bool: dict(action=BooleanOptionalAction),
            str: dict(choices=takes),
        }.get(type(takes[0]), settings)
        shown = f"{comment} (default: {' '.join(map(str, np.ravel(value))) or None})"
        parser.add_argument(
            f"--{name.replace('_', '-')}", default=SUPPRESS, help=shown, **settings
        )
    args = parser.parse_args(argv)
    args.refuse = parser.error
    try:
        config = make_config(
            **{
                name: value
                for name, value in vars(args).items()
                if name in (*hints, "quick")
            }
        )
    except ValueError as error:
        parser.error(f"argument --{error}")
    args.results = (
        args.out / f"results/{getattr(config, 'name', NAME)}_{config.game}.npz"
    )
    return config, find_game(config.game), args


def make_output_folders(args):
    """Make results/ and figures/ once arguments and devices are checked, or refuse --out."""
    try:
        make_folders(args.out)
    except ValueError as error:
        args.refuse(str(error))


# --- end shared ---


if __name__ == "__main__":
    run_script(main)
