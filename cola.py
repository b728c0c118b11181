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
"""COLA, consistent LOLA: a learned gradient that looks ahead at itself.

Willi et al. (2022), as in App. B of Cooijmans, Aghajohari and Courville (2023), whose
equations and figures are meant below. A player of HOLA(n), higher-order LOLA (hola.py),
takes the other to be one of HOLA(n - 1). COLA's gradient g is what players should
follow if both follow it, a fixed point of that recursion (cf. Eq. 3). With f_i the
return of player i, x_i its policy and alpha a look-ahead step,

    g_1(x) = d/dx_1 f_1(x_1, x_2 + alpha g_2(x))
    g_2(x) = d/dx_2 f_2(x_1 + alpha g_1(x), x_2)

where d/dx_1 goes through g_2, and d/dx_2 through g_1. A network learns g for all alpha
in [0, alpha_max]: it minimises the squared distance between both sides (cf. Eq. 4).

    python cola.py --game ipd          1 to 3 minutes on two cores
    python cola.py --game logistic     COLA in the paper's Fig. 2, 30 to 80 seconds
    python cola.py --game logistic --outer-steps 500    barely trained, 15 to 50 seconds

The paper leaves open how long to train, with which batch, optimiser and learning rate,
how the squared distance is averaged, and whether the right side is held constant. Here
it is summed over both players' parameters and averaged over 128 joint policies from the
game's `init`, each with an alpha ~ U[0, alpha_max]. Gradients flow through both sides:
otherwise the model does not become consistent at large alpha. Adam takes 10000 steps,
with a learning rate that decays to 0 by a cosine. COLA's authors train at one alpha
(`--alpha-min` and `--alpha-max`), on policies from a square (`--train-extent`);
results/paper/ has their numbers beside ours.

On the IPD both players defect at alpha = 0, a return of -2 each, and cooperate at
alpha = 10, -1.04 each. They can be exploited: a best response to these policies gets
-.96, and leaves them -1.6. With Eq. 4 itself (`--variant joint`: one's own step counts
as well) they cooperate at alpha = 5. On the Logistic Game, of a grid of starting points
a half leads to B, the better of two stable solutions, at alpha = 0. At alpha = 10 it is
62 %: more of the points near the edges and near the origin do. With Eq. 4 it is 72 %.
A run prints a table and writes results/cola_GAME.npz and figures/cola_GAME.png, which
also shows how consistent the model is.
"""

import argparse
import dataclasses
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
    mean_over_devices,
    over_devices,
    over_seeds,
    print_settings,
    report,
    run_script,
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


def switch(default, description):
    """A field of `Config` that is on or off: the flags --name and --no-name."""
    settings = {
        "action": argparse.BooleanOptionalAction,
        "help": f"{description} ({'on' if default else 'off'})",
    }
    metadata = {"low": None, "high": None, "argparse": settings}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a run. The defaults are for the IPD: see `make_config`."""

    # --- Run ---
    game: str = flag(
        "ipd", "the game, or a variant of it such as ipd+mlp: see games.py"
    )
    seed: int = flag(0, "first random seed", 0, 2**31 - 1)
    num_seeds: int = flag(1, "number of models: seed, seed + 1, ...", 1, 1000)
    lr: float = flag(2.0, "step size of the policies, alpha in Eq. 1", 0, 1e30)
    # --- Model (App. D) ---
    hidden: int = flag(64, "width", 1, 8192)
    blocks: int = flag(2, "residual blocks in each of the two MLPs", 0, 100)
    layer_norm: bool = switch(True, "normalise layers")
    last_activation: str = flag("gelu", "last nonlinearity", choices=["gelu", "tanh"])
    share_params: bool = switch(True, "one parameter set for both players")
    # --- Training (App. B) ---
    alpha_min: float = flag(0.0, "smallest look-ahead step to train for", 0, 1e30)
    alpha_max: float = flag(10.0, "largest look-ahead step", 1e-30, 1e30)
    outer_steps: int = flag(10_000, "steps of training", 1, 1_000_000)
    batch_size: int = flag(128, "joint policies in a step", 1, 65_536)
    train_extent: float = flag(
        0.0,
        "train on policies uniform from minus this to this, or 0: from the game's init",
        0,
        1e30,
    )
    variant: str = flag(
        "exact",
        "the equation of App. B, or Eq. 4 in which one's own step counts as well",
        choices=["exact", "joint"],
    )
    semi_gradient: bool = switch(False, "hold the right side of the equation constant")
    model_lr: float = flag(1e-2, "first learning rate of Adam; it decays to 0", 0, 1e30)
    # --- Evaluation (Sec. 5) ---
    eval_alphas: tuple = flag(
        (0.0, 1.0, 2.0, 5.0, 10.0),
        "look-ahead step sizes (Fig. 2)",
        0,
        1e30,
        type=float,
        nargs="+",
    )
    eval_pairs: int = flag(256, "policy pairs for each alpha and seed", 1, 100_000)
    eval_steps: int = flag(500, "steps that policies are followed for", 1, 1_000_000)

    def __post_init__(self):
        check_settings(self)
        if self.alpha_min > self.alpha_max:
            raise ValueError(
                f"--alpha-min takes numbers up to --alpha-max {self.alpha_max}, "
                f"not {self.alpha_min}"
            )
        largest = max(self.eval_alphas)
        if largest > self.alpha_max:
            raise ValueError(
                f"--eval-alphas takes numbers up to --alpha-max {self.alpha_max}, "
                f"not {largest}"
            )
        smallest = min(self.eval_alphas)
        if smallest < self.alpha_min:
            raise ValueError(
                f"--eval-alphas takes numbers from --alpha-min {self.alpha_min}, "
                f"not {smallest}"
            )


PLANAR = {"blocks": 1, "model_lr": 3e-3, "eval_pairs": 32, "eval_steps": 200}


def make_config(game: str | Game = "ipd", quick: bool = False, **changes) -> Config:
    """The settings for a game, with changes. ValueError if out of range."""
    played = find_game(game)
    if played.sample is not None:
        raise ValueError(f"cola.py needs exact returns, not those of {played.name}")
    # One model is for all alphas up to the largest: the paper's is 10 (App. D).
    alphas = [alpha for alpha in played.alphas if alpha <= 10] or played.alphas
    if played.name == "tandem":  # HOLA(n) tends to COLA below 3/8, not above
        alphas = [0.0, 0.1, 0.2, 0.3, 0.5]
    alpha_max = max(alphas) or 10.0
    if "alpha_min" in changes or "alpha_max" in changes:
        ends = changes.get("alpha_min", 0.0), changes.get("alpha_max", alpha_max)
        between = np.interp((0.0, 0.1, 0.2, 0.5, 1.0), (0, 1), ends)
        alphas = list(dict.fromkeys(between.tolist()))  # each once: ends can be equal
    settings = {
        "game": played.name,
        "lr": played.lr,
        "share_params": played.symmetric,
        "alpha_max": alpha_max,
        "eval_alphas": alphas,
    }
    if played.planar:
        settings.update(PLANAR)
    if quick:
        settings.update(outer_steps=5000)
    settings.update(changes)
    settings["eval_alphas"] = tuple(settings["eval_alphas"])
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


# --- The model of g (App. D, without quantiles) ---------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    """The network's parameters theta, and three settings that its functions need."""

    embed: dict  # MLP: a policy and alpha -> z
    combine: dict  # MLP: one's own z and the other's -> h
    readout: dict  # linear: h -> one's own row of g
    alpha_max: float = dataclasses.field(metadata={"static": True})
    layer_norm: bool = dataclasses.field(metadata={"static": True})
    activation: str = dataclasses.field(metadata={"static": True})  # the last one


# Wherever a function takes `params`, they are a `Model` for both players, or a pair of
# them, one for each player.


def model_init(key: jax.Array, game: Game, config: Config):
    """Random parameters: a `Model`, or a pair of them."""
    features = jax.eval_shape(game.features, jnp.zeros((2, game.n)))

    def init(key):
        key_embed, key_combine, key_readout = jax.random.split(key, 3)
        inputs = features.shape[1] + 1  # and alpha
        width, blocks = config.hidden, config.blocks
        return Model(
            embed=mlp_init(key_embed, inputs, width, blocks),
            combine=mlp_init(key_combine, 2 * width, width, blocks),
            readout=linear_init(key_readout, width, game.n),
            alpha_max=config.alpha_max,
            layer_norm=config.layer_norm,
            activation=config.last_activation,
        )

    if config.share_params:
        return init(key)
    key_1, key_2 = jax.random.split(key)
    return init(key_1), init(key_2)


def models_of(params) -> tuple[Model, Model]:
    """Player 1's model and player 2's, which are the same one if they share it."""
    if isinstance(params, tuple):
        return params
    return params, params


def model_row(model: Model, own: jax.Array, other: jax.Array, alpha) -> jax.Array:
    """A player's row of g, from what the model sees of its policy and of the other's.

    `own` and `other` are rows of `game.features`, (m,). Returns (n,).
    """
    scaled_alpha = jnp.full(1, alpha / model.alpha_max, own.dtype)

    def embed(seen):
        inputs = jnp.concatenate([seen, scaled_alpha])
        return mlp(model.embed, inputs, model.layer_norm)

    z = jnp.concatenate([embed(own), embed(other)])
    h = mlp(model.combine, z, model.layer_norm, model.activation)
    return linear(model.readout, h).astype(own.dtype)


def cola_gradient(params, game: Game, x: jax.Array, alpha) -> jax.Array:
    """COLA's update direction, the model g(x; theta) (App. B).

    Args:
      params: a `Model` for both players, or a pair of them.
      game: the game.
      x: joint policy, (2, n).
      alpha: look-ahead step of both players, (), from 0 to alpha_max.

    Returns:
      (2, n), in units of return per unit of policy parameter.
    """
    x = checked_policies(x, game.n)
    model_1, model_2 = models_of(params)
    seen_1, seen_2 = game.features(x)
    row_1 = model_row(model_1, seen_1, seen_2, alpha)
    row_2 = model_row(model_2, seen_2, seen_1, alpha)
    return jnp.stack([row_1, row_2])


# --- COLA's equation (App. B; Eq. 4) --------------------------------------------------


def both_sides(
    params, game: Game, x: jax.Array, alpha, variant: str = "exact"
) -> tuple[jax.Array, jax.Array]:
    """Both sides of COLA's equation, (2, n) each. Arguments as in `cola_gradient`.

    On the left g(x). On the right d/dx_1 f_1(x_1, x_2 + alpha g_2(x)) in row 1, and
    d/dx_2 f_2(x_1 + alpha g_1(x), x_2) in row 2. With `variant` "joint" both policies
    take their steps, d/dx_i f_i(x + alpha g(x)) (Eq. 4).
    """
    if variant not in ("exact", "joint"):
        raise ValueError(f"variant is exact or joint, not {variant}")
    x = checked_policies(x, game.n)
    alpha = jnp.asarray(alpha, x.dtype)
    model_1, model_2 = models_of(params)
    x_1, x_2 = x
    seen_1, seen_2 = game.features(x)

    # A surrogate is what a player ascends, a function of its `own` policy: its return
    # after the other's step. The step depends on `own` as well, as the other's model
    # sees it. A row of `game.features` depends on that player's policy alone. So seen_1
    # is constant in `own` of player 2, and seen_2 in that of player 1: computed once,
    # out here, they save an eighth of all operations.
    def surrogate_1(own):
        seen_own = game.features(jnp.stack([own, x_2]))[0]
        g_2 = model_row(model_2, seen_2, seen_own, alpha)
        if variant == "joint":
            own = own + alpha * model_row(model_1, seen_own, seen_2, alpha)
        return game.f(jnp.stack([own, x_2 + alpha * g_2]))[0], g_2

    def surrogate_2(own):
        seen_own = game.features(jnp.stack([x_1, own]))[1]
        g_1 = model_row(model_1, seen_1, seen_own, alpha)
        if variant == "joint":
            own = own + alpha * model_row(model_2, seen_own, seen_1, alpha)
        return game.f(jnp.stack([x_1 + alpha * g_1, own]))[1], g_1

    # With `has_aux` the other's row of g comes out, too: it is not computed twice.
    right_1, g_2 = jax.grad(surrogate_1, has_aux=True)(x_1)
    right_2, g_1 = jax.grad(surrogate_2, has_aux=True)(x_2)
    return jnp.stack([g_1, g_2]), jnp.stack([right_1, right_2])


def consistency_loss(
    params,
    game: Game,
    x: jax.Array,
    alpha,
    variant: str = "exact",
    semi_gradient: bool = False,
) -> jax.Array:
    """The squared distance between both sides of COLA's equation. ().

    The arguments are those of `both_sides`, for one joint policy; `semi_gradient` holds
    the right side constant.
    """
    left, right = both_sides(params, game, x, alpha, variant)
    if semi_gradient:
        right = jax.lax.stop_gradient(right)
    return ((left - right) ** 2).sum()


# --- Training -------------------------------------------------------------------------


class TrainState(NamedTuple):
    """What changes in training."""

    params: Model | tuple[Model, Model]  # theta
    opt_state: optax.OptState
    step: jax.Array  # steps done


def make_optimizer(config: Config) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(config.model_lr, config.outer_steps)
    return optax.adam(schedule)


def train_init(key: jax.Array, game: Game, config: Config) -> TrainState:
    """The state before the first step. `key` is the seed's."""
    params = model_init(jax.random.fold_in(key, 0), game, config)
    opt_state = make_optimizer(config).init(params)
    return TrainState(params, opt_state, jnp.int32(0))


def draw_policies(key: jax.Array, game: Game, extent: float, count: int) -> jax.Array:
    """Joint policies that the model is for, (count, 2, n). See `--train-extent`."""
    if extent > 0:
        shape = (count, 2, game.n)
        return jax.random.uniform(key, shape, minval=-extent, maxval=extent)
    return jax.vmap(game.init)(jax.random.split(key, count))


def outer_step(key: jax.Array, state: TrainState, game: Game, config: Config):
    """One step of Adam on a batch of joint policies. Returns (state, metrics)."""
    key_x, key_alpha = jax.random.split(key)
    xs = draw_policies(key_x, game, config.train_extent, config.batch_size)
    alphas = jax.random.uniform(
        key_alpha,
        (config.batch_size,),
        minval=config.alpha_min,
        maxval=config.alpha_max,
    )

    def mean_loss(params, xs, alphas):
        def loss(x, alpha):
            return consistency_loss(
                params, game, x, alpha, config.variant, config.semi_gradient
            )

        return jax.vmap(loss)(xs, alphas).mean()

    loss, gradient = mean_over_devices(
        jax.value_and_grad(mean_loss), state.params, xs, alphas
    )
    change, opt_state = make_optimizer(config).update(gradient, state.opt_state)
    params = optax.apply_updates(state.params, change)
    metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
    return TrainState(params, opt_state, state.step + 1), metrics


def train_chunk(key: jax.Array, state: TrainState, game: Game, config: Config, count):
    """`count` steps. Returns (state, curves), the metrics of each step, (count,).

    `key` is the seed's, in all chunks.
    """

    def step(state, _):
        # Keys depend on the step alone: a resumed run goes on with its own.
        key_step = jax.random.fold_in(key, 1 + state.step)
        return outer_step(key_step, state, game, config)

    return jax.lax.scan(step, state, length=count)


def train(key: jax.Array, game: Game, config: Config):
    """Train one model. Returns (params, curves), as `train_chunk` of all steps.

    Jit it with `game` and `config` static, and map it over keys for several models.
    """
    state = train_init(key, game, config)
    state, curves = train_chunk(key, state, game, config, config.outer_steps)
    return state.params, curves


# --- How consistent the model is, beside HOLA (App. B) --------------------------------

HELD_OUT = 1024  # joint policies that it is judged on
ORDERS = (0, 1, 2, 3)  # the n of HOLA(n)


def hola_row(f_own, f_other, own, other, alpha, order: int) -> jax.Array:
    """One player's update direction by HOLA(order), as in hola.py. (n,).

    Payoffs take one's own parameters first: f_own(own, other), f_other(other, own).
    """

    def surrogate(own):
        if order == 0:
            return f_own(own, other)
        step = alpha * hola_row(f_other, f_own, other, own, alpha, order - 1)
        return f_own(own, other + step)

    return jax.grad(surrogate)(own)


def hola_gradients(f, x: jax.Array, alpha) -> jax.Array:
    """HOLA(n)'s update direction for each n of `ORDERS`. (2, n) -> (order, 2, n)."""

    def f_1(own, other):
        return f(jnp.stack([own, other]))[0]

    def f_2(own, other):
        return f(jnp.stack([other, own]))[1]

    gradients = []
    for order in ORDERS:
        row_1 = hola_row(f_1, f_2, x[0], x[1], alpha, order)
        row_2 = hola_row(f_2, f_1, x[1], x[0], alpha, order)
        gradients.append(jnp.stack([row_1, row_2]))
    return jnp.stack(gradients)


def evaluate_consistency(
    key: jax.Array,
    params,
    game: Game,
    alpha,
    variant: str = "exact",
    extent: float = 0.0,
) -> dict[str, jax.Array]:
    """How consistent the model and HOLA(n) are on held-out policies, and how alike.

    Args:
      key: draws the joint policies, `HELD_OUT` of them.
      params, game, alpha, variant: as in `both_sides`.
      extent: policies are uniform in [-extent, extent]; 0: from the game's init.

    Returns:
      "consistency", (point,), the loss; "squared_norm", (point,), |g|^2;
      "hola_consistency", (order, point), the loss with HOLA(n) put in for g, which is
      the squared distance from HOLA(n) to HOLA(n + 1) (App. B, whatever the variant is),
      for all orders but the last; and
      "hola_cosine", (order, point), the cosine between g and HOLA(n). A point is a
      joint policy.
    """

    def judge(x):
        cola = cola_gradient(params, game, x, alpha)
        hola = hola_gradients(game.f, x, alpha)  # (order, 2, n)
        squared_norm = (cola**2).sum()
        squared_norms = (hola**2).sum(axis=(1, 2))
        products = (hola * cola).sum(axis=(1, 2))
        return {
            "consistency": consistency_loss(params, game, x, alpha, variant),
            "squared_norm": squared_norm,
            "hola_consistency": (jnp.diff(hola, axis=0) ** 2).sum(axis=(1, 2)),
            "hola_cosine": products * jax.lax.rsqrt(squared_norm * squared_norms),
        }

    x = draw_policies(key, game, extent, HELD_OUT)
    return jax.vmap(judge, out_axes=-1)(over_devices(x))


# --- Evaluation -----------------------------------------------------------------------


def evaluate(
    key: jax.Array, params, game: Game, config: Config
) -> dict[str, jax.Array]:
    """The model's agents at every alpha (Fig. 2). Arrays (alpha, ...).

    `key` draws the policies that they start from. The arrays are those of
    `evaluate_game` and `evaluate_consistency`.
    """

    def evaluate_at(alpha):
        def step(x):
            return x + config.lr * cola_gradient(params, game, x, alpha)

        # This key is not the one that training draws by.
        key_held_out = jax.random.fold_in(key, 1)
        results = evaluate_consistency(
            key_held_out,
            params,
            game,
            alpha,
            config.variant,
            config.train_extent,
        )
        return results | evaluate_game(
            key,
            game,
            step,
            lr=config.lr,
            steps=config.eval_steps,
            pairs=config.eval_pairs,
        )

    return jax.lax.map(evaluate_at, jnp.array(config.eval_alphas))


# --- Command line ---------------------------------------------------------------------


def load(path: str | Path, seed: int | None = None, game: Game | None = None):
    """The trained model of results/cola_GAME.npz. Returns (params, config).

    Args:
      path: of the file.
      seed: which model, if the file has several; the first if None.
      game: the game, if it is not one of games.py.
    """
    return load_model(path, Config, model_init, seed, game)


CHUNK = 500  # steps between two checkpoints


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


def draw_training(figure, results: dict, config: Config):
    """The loss in training, how consistent COLA and HOLA(n) are, and how alike."""
    left, middle, right = figure.subplots(1, 3)
    left.plot(results["loss"].T, color="tab:purple", linewidth=0.8)  # one for each seed
    left.set(xlabel="steps of training", ylabel="consistency loss", yscale="log")

    alphas = np.array(config.eval_alphas)
    by_seed = results["consistency"].mean(axis=2)  # (alpha, seed)
    mean = by_seed.mean(axis=1)
    middle.plot(alphas, by_seed, color="tab:purple", linewidth=0.5)
    lines = middle.plot(alphas, mean, "o-", color="tab:purple", label="COLA")

    consistency = results["hola_consistency"].mean(axis=(1, 3))  # (alpha, order)
    cosine = results["hola_cosine"].mean(axis=(1, 3))
    ahead = alphas > 0  # at 0 each order of HOLA is consistent, with a loss of 0
    for order, style in zip(ORDERS, ("-", "--", "-.", ":")):
        line = {"linestyle": style, "color": "tab:green", "marker": "."}
        lines += right.plot(alphas, cosine[:, order], label=f"HOLA({order})", **line)
        if order < len(ORDERS) - 1:
            middle.plot(alphas[ahead], consistency[ahead, order], **line)
    middle.set(xlabel=r"look-ahead step $\alpha$", yscale="log")
    middle.set(ylabel="consistency loss, held out")
    if consistency[:, 0].max() > 0:  # where HOLA(n) explodes it leaves the picture
        middle.set_ylim(top=1e3 * consistency[:, 0].max())
    right.set(xlabel=r"look-ahead step $\alpha$", ylabel="cosine of COLA to HOLA(n)")
    right.legend(handles=lines, loc="upper left", bbox_to_anchor=(1, 1))


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
            path=out / "results" / f"cola_{game.name}.checkpoint.npz",
            resume=resume,
        )
        evaluate_seeds = over_seeds(
            lambda _, key, params: evaluate(key, params, game, config), mesh
        )
        results = jax.device_get(evaluate_seeds(seeds, state.params))

    results = {name: np.swapaxes(array, 0, 1) for name, array in results.items()}
    results |= curves | flatten("params", state.params)
    report(
        "cola",
        game,
        settings,
        config.eval_alphas,
        results,
        symbol=r"look-ahead step $\alpha$",
        color="tab:purple",
        out=out,
        draw_below=lambda figure: draw_training(figure, results, config),
    )


if __name__ == "__main__":
    run_script(main)
