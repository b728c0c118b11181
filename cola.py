"""COLA, consistent LOLA: a learned gradient that looks ahead at itself.

Willi et al. (2022), as in Cooijmans, Aghajohari and Courville, Learning with Learning Awareness using Meta-Values,
App. B. Where HOLA(n) always looks one step further ahead than it takes the other to look, COLA's gradient g stays
right when both players follow it, a fixed point of HOLA's recursion (cf. Eq. 3),

    g_1(x) = d/dx_1 f_1(x_1, x_2 + alpha g_2(x)),    g_2(x) = d/dx_2 f_2(x_1 + alpha g_1(x), x_2).

A network learns g for all alpha in [0, alpha_max] by minimising the squared distance between the two sides (cf. Eq. 4).

    python cola.py --game ipd          a minute on a 2-core CPU
    python cola.py --game logistic     the paper's Fig. 2, COLA's rows: half a minute
    python cola.py --game logistic --outer-steps 500 --eval-alphas 10      to see it run, barely trained: 15 seconds

The paper does not say how long to train, with which batch, optimiser or learning rate, how the squared distance is
averaged, and whether the right side is held constant. Here the distance is summed over both players' parameters and
averaged over 128 policies from the game's `init`, each with an alpha ~ U[0, alpha_max]; both sides are differentiated,
without which the model does not become consistent at large alpha; and Adam takes 10000 steps, its learning rate
decaying to 0 by a cosine.

What to expect on the IPD: defection (-2) at alpha = 0 and cooperation (-1) at alpha = 10, which a best response
exploits. On the Logistic Game: the basin of B, the better of two solutions, grows around the edges and around the
origin, to 62 % of the grid at alpha = 10. A run prints a table and writes results/cola_GAME.npz and
figures/cola_GAME.png, which shows how consistent the model is, too.
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
    make_folders,
    report,
    run_script,
    write_file,
)

NAME = "cola"  # of the files
HELD_OUT = 1024  # joint policies that the consistency is judged on
ORDERS = (0, 1, 2, 3)  # of HOLA, beside it

Count = Annotated[int, 1, 2**31 - 1]  # the least and the greatest value of a setting
Step = Annotated[float, 0.0, 1e30]
Switch = Annotated[bool, False, True]


# fmt: off
@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run, and so all flags, for the IPD; `make_config` has those for other games."""

    game: str = "ipd"  # the game, or a variant of it
    seed: Annotated[int, 0, 2**31 - 1] = 0  # first seed
    num_seeds: Annotated[int, 1, 1000] = 1  # number of seeds, each a model of its own: seed, seed + 1, ...
    lr: Step = 2.0  # step size of the policies, the paper's alpha in Eq. 1
    hidden: Count = 64  # width of the model (App. D)
    blocks: Annotated[int, 1, 1000] = 2  # residual blocks in each of the model's two MLPs (App. D, E)
    layer_norm: Switch = True  # layer normalisation in the model (App. D)
    last_activation: Annotated[str, "gelu", "tanh"] = "gelu"  # the model's last nonlinearity (App. D)
    share_params: Switch = True  # one parameter set for both players, theta_1 = theta_2 (App. D)
    alpha_max: Annotated[float, 1e-30, 1e30] = 10.0  # train for alpha ~ U[0, alpha_max] (App. D), and evaluate there
    outer_steps: Count = 10000  # steps of training, best a multiple of 500
    batch_size: Count = 128  # joint policies in a step
    semi_gradient: Switch = False  # hold the right side of the equation constant (the paper does not say)
    model_lr: Step = 1e-2  # first learning rate of the model; it decays to 0 by a cosine
    eval_alphas: Annotated[tuple[float, ...], 0.0, 1e30] = (0.0, 1.0, 2.0, 5.0, 10.0)  # look-ahead steps (Fig. 2)
    eval_pairs: Count = 256  # policy pairs for each alpha and seed (Sec. 5.2)
    eval_steps: Count = 500  # steps that they are followed for

    def __post_init__(self):
        check(self)
        if max(self.eval_alphas) > self.alpha_max:
            most = max(self.eval_alphas)
            raise ValueError(f"eval-alphas: takes numbers up to --alpha-max {self.alpha_max}, not {most}")
# fmt: on


PLANAR = dict(blocks=1, model_lr=3e-3, eval_pairs=32, eval_steps=200)
TANDEM = dict(
    alpha_max=0.5, eval_alphas=(0.0, 0.1, 0.2, 0.3, 0.5)
)  # HOLA(n) tends to COLA below 3/8


def make_config(game: str | Game = "ipd", quick: bool = False, **changes) -> Config:
    """The settings for a game, one of `GAMES` or one's own, with changes."""
    played = find_game(game)
    if played.sample is not None:
        raise ValueError(
            f"game: {NAME} needs exact returns, not those of {played.name}"
        )
    alphas = tuple(alpha for alpha in played.alphas if alpha <= 10) or played.alphas
    settings = dict(game=played.name, lr=played.lr, share_params=played.symmetric)
    settings |= dict(alpha_max=max(alphas) or 10.0, eval_alphas=alphas)
    settings |= PLANAR if played.planar else {}
    settings |= TANDEM if played.name == "tandem" else {}
    settings |= dict(outer_steps=5000) if quick else {}
    if "alpha_max" in changes:
        settings["eval_alphas"] = tuple(
            share * changes["alpha_max"] for share in (0.0, 0.1, 0.2, 0.5, 1.0)
        )
    return Config(**settings | changes)


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
    """Parameters theta of App. D's model without quantiles: embed each policy, combine own and other's, read off."""

    embed: dict  # MLP, (x_i, alpha) -> z_i
    combine: dict  # MLP, (z_i, z_j) -> h_i
    readout: dict  # linear, h_i -> gradient for player i
    alpha_max: float = dataclasses.field(
        metadata={"static": True}
    )  # the model sees alpha / alpha_max
    layer_norm: bool = dataclasses.field(metadata={"static": True})
    activation: str = dataclasses.field(metadata={"static": True})  # the last one


def model_init(
    key: jax.Array, game: Game, config: Config
) -> Model | tuple[Model, Model]:
    """Parameters of the gradient: one model for both players, or one for each where they share none."""

    def one(key):
        key_embed, key_combine, key_readout = jax.random.split(key, 3)
        inputs = jax.eval_shape(game.features, jnp.zeros((2, game.n))).shape[1] + 1
        embed = mlp_init(key_embed, inputs, config.hidden, config.blocks)
        combine = mlp_init(key_combine, 2 * config.hidden, config.hidden, config.blocks)
        readout = linear_init(key_readout, config.hidden, game.n)
        return Model(
            embed,
            combine,
            readout,
            config.alpha_max,
            config.layer_norm,
            config.last_activation,
        )

    return one(key) if config.share_params else tuple(map(one, jax.random.split(key)))


def model_gradient(
    params, game: Game, own: jax.Array, other: jax.Array, alpha: jax.Array
) -> jax.Array:
    """The model's gradient, row i for player i with its policy in row i of `own` and the other's in `other`. (2, n)."""
    if isinstance(params, tuple):
        return jnp.stack(
            [model_gradient(params[i], game, own, other, alpha)[i] for i in (0, 1)]
        )

    def embed(x):  # (2, n) -> (2, hidden)
        share = jnp.full((2, 1), alpha / params.alpha_max, x.dtype)
        return mlp(
            params.embed,
            jnp.concatenate([game.features(x), share], -1),
            params.layer_norm,
        )

    both = jnp.concatenate([embed(own), embed(other)[::-1]], -1)  # (2, 2 hidden)
    return linear(
        params.readout, mlp(params.combine, both, params.layer_norm, params.activation)
    ).astype(own.dtype)


def cola_gradient(params, game: Game, x: jax.Array, alpha: jax.Array) -> jax.Array:
    """COLA's update direction, the model g(x; theta) of App. B, in units of return per unit of policy parameter.

    `params` is a `Model`, or a pair of them where the players share none; x, (2, n); `alpha`, () in [0, alpha_max], is
    the look-ahead step of both players. Returns (2, n).
    """
    x = 1.0 * jnp.asarray(x)  # integers become floats
    chex.assert_shape(x, (2, game.n))
    return model_gradient(params, game, x, x, alpha)


def both_sides(
    params, game: Game, x: jax.Array, alpha: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Both sides of COLA's equation (App. B): g(x), and with row i d/dx_i f_i(x_i, x_j + alpha g_j(x)). (2, n) each."""
    x = 1.0 * jnp.asarray(x)  # integers become floats
    chex.assert_shape(x, (2, game.n))
    alpha = jnp.asarray(alpha, x.dtype)
    # Row i by the chain rule: df_i/dx_i, and alpha df_i/dx_j pulled back through g_j to x_i, the other's policy to it.
    left, pull_back = jax.vjp(
        lambda other: model_gradient(params, game, x, other, alpha), x
    )

    def surrogate(own, ahead):
        return (
            game.f(jnp.stack([own[0], ahead[1]]))[0]
            + game.f(jnp.stack([ahead[0], own[1]]))[1]
        )

    by_own, by_ahead = jax.grad(surrogate, argnums=(0, 1))(x, x + alpha * left)
    return left, by_own + alpha * pull_back(by_ahead)[0]


def consistency_loss(
    params, game: Game, x: jax.Array, alpha: jax.Array, semi_gradient: bool = False
) -> jax.Array:
    """The squared distance between the two sides of COLA's equation at one joint policy (App. B, Eq. 4), ().

    The arguments are those of `cola_gradient`; `semi_gradient` holds the right side constant.
    """
    left, right = both_sides(params, game, x, alpha)
    if semi_gradient:
        right = jax.lax.stop_gradient(right)
    return ((left - right) ** 2).sum()


class TrainState(NamedTuple):
    """What changes while a model is trained."""

    params: Model | tuple[Model, Model]  # theta
    opt_state: optax.OptState
    step: jax.Array  # steps done


def make_optimizer(config: Config) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(config.model_lr, config.outer_steps))


def train_init(key: jax.Array, game: Game, config: Config) -> TrainState:
    """The state before the first step."""
    params = model_init(jax.random.fold_in(key, 0), game, config)
    return TrainState(
        params, make_optimizer(config).init(params), jnp.zeros((), jnp.int32)
    )


def outer_step(
    key: jax.Array, state: TrainState, game: Game, config: Config, axis=None
):
    """One step of the model on a batch of joint policies, each with an alpha of its own. Returns (state, metrics)."""
    key_x, key_alpha = jax.random.split(key)
    xs = jax.vmap(game.init)(
        jax.random.split(key_x, config.batch_size)
    )  # (batch, 2, n)
    alphas = jax.random.uniform(
        key_alpha, (config.batch_size,), maxval=config.alpha_max
    )
    x, alpha = own_share(
        (xs, alphas), axis
    )  # of this device, if some along `axis` of `jax.shard_map` share the batch

    def batch_loss(params):
        def loss(x, alpha):
            return consistency_loss(params, game, x, alpha, config.semi_gradient)

        return jax.vmap(loss)(x, alpha).mean()

    loss, gradient = device_mean(jax.value_and_grad(batch_loss)(state.params), axis)
    step, opt_state = make_optimizer(config).update(gradient, state.opt_state)
    metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
    return TrainState(
        optax.apply_updates(state.params, step), opt_state, state.step + 1
    ), metrics


def chunk_length(config: Config) -> int:
    """Steps between two checkpoints: the largest divisor of `outer_steps` up to 500, so that all chunks are alike."""
    return max(length for length in range(1, 501) if config.outer_steps % length == 0)


def train_chunk(
    key: jax.Array, state: TrainState, game: Game, config: Config, axis=None
):
    """One chunk of training, for one seed. `key` is the seed's, whatever the chunk. Returns (state, metrics)."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(
        1 + state.step + jnp.arange(chunk_length(config))
    )
    return jax.lax.scan(
        lambda state, key: outer_step(key, state, game, config, axis), state, keys
    )


def train(key: jax.Array, game: Game, config: Config):
    """Train one model: (parameters, metrics of all steps). Jit it with game and config static, map it over keys."""
    chunks, state = (
        config.outer_steps // chunk_length(config),
        train_init(key, game, config),
    )
    state, metrics = jax.lax.scan(
        lambda state, _: train_chunk(key, state, game, config), state, length=chunks
    )
    return state.params, jax.tree.map(jnp.ravel, metrics)


def evaluate_consistency(
    key: jax.Array, params, game: Game, alpha: jax.Array
) -> dict[str, jax.Array]:
    """How consistent the model is on held-out policies, beside HOLA(n), and how alike their gradients are.

    HOLA(n)'s own distance from consistency, put in for g in COLA's equation, is that from HOLA(n) to HOLA(n + 1).
    """

    def hola_row(i, x, order):  # player i's gradient by HOLA(n), App. B
        def surrogate(own):
            joint = x.at[i].set(own)
            if order > 0:
                joint = joint.at[1 - i].add(alpha * hola_row(1 - i, joint, order - 1))
            return game.f(joint)[i]

        return jax.grad(surrogate)(x[i])

    xs = jax.vmap(game.init)(jax.random.split(key, HELD_OUT))
    cola = jax.vmap(lambda x: cola_gradient(params, game, x, alpha))(
        xs
    )  # (point, 2, n)
    hola = [
        jax.vmap(lambda x: jnp.stack([hola_row(i, x, order) for i in (0, 1)]))(xs)
        for order in ORDERS
    ]

    def dot(one, two):
        return (one * two).sum((1, 2))  # (point,)

    return {
        "consistency": jax.vmap(lambda x: consistency_loss(params, game, x, alpha))(xs),
        "hola_consistency": jnp.stack(
            [dot(b - a, b - a) for a, b in itertools.pairwise(hola)]
        ),
        "hola_cosine": jnp.stack(
            [dot(cola, h) * jax.lax.rsqrt(dot(cola, cola) * dot(h, h)) for h in hola]
        ),
        "squared_norm": dot(cola, cola),
    }


def evaluate(
    key: jax.Array, params, game: Game, config: Config, axis=None
) -> dict[str, jax.Array]:
    """Evaluate a model on the policies that `key` draws, at every alpha of the sweep (Fig. 2). Arrays (sweep, ...)."""

    def one(alpha):
        step = lambda x: x + config.lr * cola_gradient(params, game, x, alpha)
        settings = dict(lr=config.lr, steps=config.eval_steps, pairs=config.eval_pairs)
        held_out = evaluate_consistency(jax.random.fold_in(key, 1), params, game, alpha)
        return held_out | evaluate_game(key, game, step, **settings)

    return jax.lax.map(one, own_share(jnp.array(config.eval_alphas), axis))


def loop_flops(params, config: Config) -> int:
    """FLOPs of the model's matrix products in a step for all seeds whose parameters these are.

    Both players go through all matrices, 2 FLOPs for each weight. The left side of the equation is one such pass, and
    the right side takes one back to x. By theta, each of these products has two in the backward pass (with a constant
    right side those of the left alone), and the embedding's two more: it is one's own as well as the other's.
    """
    embedding = [
        model.embed
        for model in jax.tree.leaves(
            params, is_leaf=lambda node: isinstance(node, Model)
        )
    ]
    whole, embedding = (
        sum(x.size for x in jax.tree.leaves(tree) if x.ndim == 3)
        for tree in (params, embedding)
    )
    return (
        4
        * config.batch_size
        * ((4 if config.semi_gradient else 6) * whole + 2 * embedding)
    )


def draw_consistency(figure, results: dict, config: Config):
    """Training, consistency on held-out policies beside HOLA(n)'s, and how alike COLA's and HOLA(n)'s gradients are."""
    left, middle, right = figure.subplots(1, 3)
    steps = np.linspace(0, config.outer_steps, results["loss"].shape[1] + 1)[1:]
    left.plot(
        steps, results["loss"].T, color="tab:purple", linewidth=0.5
    )  # a line for each seed
    left.set(xlabel="steps", ylabel="consistency loss", yscale="log")
    sweep, hola = (
        results["sweep"],
        results["hola_consistency"].mean((1, 3)),
    )  # (sweep, order)
    middle.plot(
        sweep, results["consistency"].mean(2), color="tab:purple", linewidth=0.5
    )
    middle.plot(
        sweep,
        results["consistency"].mean((1, 2)),
        "o-",
        color="tab:purple",
        label="COLA",
    )
    cosine = results["hola_cosine"].mean((1, 3))
    for order, style in zip(ORDERS, ("-", "--", "-.", ":")):
        line = dict(
            linestyle=style, color="tab:green", marker=".", label=f"HOLA({order})"
        )
        right.plot(sweep, cosine[:, order], **line)
        if order in ORDERS[:-1]:  # at alpha = 0 all of HOLA is consistent
            middle.plot(sweep, np.where(hola > 0, hola, np.nan)[:, order], **line)
    limit = 1e3 * hola[:, 0].max()  # where HOLA(n) explodes it leaves the picture
    middle.set(
        xlabel=r"$\alpha$",
        ylabel="consistency loss, held out",
        yscale="log",
        ylim=(None, limit or None),
    )
    right.set(xlabel=r"$\alpha$", ylabel="cosine of COLA to HOLA")
    middle.legend()
    right.legend()


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
        finite = np.isfinite(new["loss"] + new["gradient_norm"]).all(0)  # (step,)
        if not (
            finite.all()
            and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(whole))
        ):
            step = (
                done - length + 1 + np.append(finite[:-1], False).argmin()
            )  # the last if only the state shows it
            sys.exit(
                f"{NAME}.py: training diverged at step {step}; {path} has the state after {done - length}"
            )
        curves = {name: np.concatenate([curves[name], new[name]], 1) for name in curves}
        save(whole, curves)
        rate = (done - first) / (time.perf_counter() - begin)
        shown = "  ".join(
            f"{name} {curve[:, -1].mean():.4g}" for name, curve in curves.items()
        )
        speed = f"{rate:.3g} steps/s  {rate * flops / 1e9:.3g} GFLOP/s  {(config.outer_steps - done) / rate:.0f} s left"
        print(f"{done:6d} / {config.outer_steps}  {shown}  {speed}", flush=True)

    evaluation = gather(final(seeds, state.params))  # (seed, sweep, ...)
    # What `own_share` repeats comes last, and goes.
    results = {
        name: array.swapaxes(0, 1)[: len(config.eval_alphas)]
        for name, array in evaluation.items()
    }
    results |= (
        {"sweep": np.float32(config.eval_alphas)}
        | curves
        | flatten("params", gather(state.params))
    )
    if jax.process_index() > 0:
        return
    report(
        NAME,
        game,
        described,
        config.eval_alphas,
        results,
        symbol=r"$\alpha$",
        color="tab:purple",
        out=args.out,
        draw_below=lambda figure: draw_consistency(figure, results, config),
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
