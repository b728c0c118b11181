"""Tests of mfos.py, with oracles that are independent of it: numpy loops and finite differences in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lola
import mfos
from games import GAMES

SMALL = dict(batch_size=4, rollout_length=5, hidden=6, eval_pairs=3, eval_steps=4)
batched = functools.cache(lambda game: jax.jit(jnp.vectorize(GAMES[game].f, signature="(p,n)->(p)")))


def slope(function, x, step=1e-3):
    """The gradient of a function of vectors, (..., n) -> (...), by five points in each direction. (..., n)."""
    offsets = step * np.eye(x.shape[-1])[:, None] * np.array([-2, -1, 1, 2])[:, None]  # (n, 4, n)
    return function(x[..., None, None, :] + offsets) @ np.array([1, -8, 8, -1]) / (12 * step)


def opponent_step(game, x, j, alpha):
    """How player j steps, naively where alpha is 0, else LOLA's way to first order. (n,)."""

    def returns(own, theirs, k):
        pair = np.broadcast_arrays(own, theirs)[:: 1 - 2 * j]
        return np.asarray(batched(game)(np.stack(pair, -2)))[..., k]

    def surrogate(own):
        theirs, far = np.broadcast_to(x[1 - j], own.shape), own[..., None, None, :]
        one, two = (slope(lambda theirs: returns(far, theirs, k), theirs) for k in (0, 1))
        return returns(own, theirs, j) + alpha * (one * two).sum(-1)

    return slope(surrogate if alpha else lambda own: returns(own, x[1 - j], j), x[j])


def network(weights, state):
    for w, squash in zip(weights, (np.tanh, np.positive)):
        state = squash(np.append(state, 1) @ w)
    return state


def actor(agent, state):
    mean, variance = np.split(network(agent.actor, state), 2)
    return mean, np.log1p(np.exp(variance))


def log_density(x, mean, variance):
    return sum(-((a - m) ** 2) / (2 * s) - 0.5 * np.log(2 * np.pi * s) for a, m, s in zip(x, mean, variance))


@pytest.mark.parametrize("opponent, seat", [("naive", 1), ("naive", 0), ("lola", 1), ("self", 1)])
def test_a_meta_episode_against_a_loop(opponent, seat):
    game, other = GAMES["imp"], 1 - seat  # whose seats differ
    with jax.enable_x64(True):
        config = mfos.make_config("imp", **SMALL | dict(rollout_length=2), opponent=opponent, lr=3.0, alpha=2.0)
        agents = mfos.model_init(jax.random.key(1), game, config)
        seen = mfos.meta_episode(jax.random.key(2), agents, game, config, seat)
        first, key = jax.random.split(jax.random.key(2))
        x, agents = np.asarray(game.init(first)), jax.tree.map(np.asarray, agents)
        assert len(agents) == 2 and not np.allclose(agents[0].actor[0], agents[1].actor[0])
        for t, key in enumerate(jax.random.split(key, 2)):
            states = [1 / (1 + np.exp(-np.concatenate([x[i], x[1 - i]]))) for i in (0, 1)]
            moments = [actor(agent, state) for agent, state in zip(agents, states)]
            draws = [np.asarray(jax.random.normal(key, 5)) for key in jax.random.split(key)]
            policies = [mean + np.sqrt(variance) * draw for (mean, variance), draw in zip(moments, draws)]
            if opponent != "self":
                policies[other] = x[other] + 3.0 * opponent_step("imp", x, other, 2.0 * (opponent == "lola"))
            x, returns = np.stack(policies), np.asarray(game.f(np.stack(policies)))
            expected = states[seat], x[seat], log_density(x[seat], *moments[seat]), (returns[seat], returns[other])
            for array, numbers in zip(seen, expected, strict=True):
                np.testing.assert_allclose(array[t], numbers, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["ipd", "ultimatum"])
def test_the_steps_of_opponents(name):
    with jax.enable_x64(True):
        x = np.asarray(GAMES[name].init(jax.random.key(3)))
        for opponent, alpha in (("naive", 0.0), ("lola", 0.7)):
            ours = mfos.opponent_gradient(GAMES[name], x, mfos.make_config(name, opponent=opponent, alpha=0.7))
            expected = [opponent_step(name, x, j, alpha) for j in (0, 1)]
            np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-8)
            theirs = lola.lola_gradient(GAMES[name].f, x, alpha, "taylor")
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_ppos_loss_and_gradient_against_a_loop():
    rng, sides = np.random.default_rng(0), set()
    with jax.enable_x64(True):
        config = mfos.make_config("ipd", clip=0.15, value_weight=0.7, entropy_weight=0.3)
        weights = [rng.normal(size=shape) for shape in ((3, 2), (3, 4), (3, 2), (3, 1))]
        agent = jax.tree.map(jnp.asarray, mfos.Agent(tuple(weights[:2]), tuple(weights[2:])))
        states, actions, targets = rng.normal(size=(60, 2)), rng.normal(size=(60, 2)), rng.normal(size=60)
        log_probs = [log_density(a, *actor(agent, s)) + 0.5 * rng.normal() for s, a in zip(states, actions)]
        advantages = targets - [network(agent.critic, state)[0] for state in states]
        flat, unravel = jax.flatten_util.ravel_pytree(agent)

        def by_loop(numbers):
            agent, total = jax.tree.map(np.asarray, unravel(numbers)), 0.0
            for state, action, log_prob, target, advantage in zip(states, actions, log_probs, targets, advantages):
                mean, variance = actor(agent, state)
                ratio = np.exp(log_density(action, mean, variance) - log_prob)
                sides.add((bool(ratio < 0.85), bool(ratio > 1.15), bool(advantage > 0)))
                gain = advantage * (min(ratio, 1.15) if advantage > 0 else max(ratio, 0.85))
                entropy = 0.5 * np.log(np.linalg.det(2 * np.pi * np.e * np.diag(variance)))
                total += 0.7 * (network(agent.critic, state)[0] - target) ** 2 - gain - 0.3 * entropy
            return total / len(states)

        loss = lambda agent: mfos.ppo_loss(agent, states, actions, np.array(log_probs), targets, config)
        value, gradient = jax.value_and_grad(loss)(agent)
        np.testing.assert_allclose(value, by_loop(flat), rtol=1e-9)
        expected = slope(np.vectorize(by_loop, signature="(n)->()"), np.asarray(flat), 1e-5)
        np.testing.assert_allclose(jax.flatten_util.ravel_pytree(gradient)[0], expected, rtol=1e-5, atol=1e-8)
    assert len(sides) == 6  # below, within and above the clipped range, for both signs of the advantage


def test_an_update_is_adam_on_each_agents_normalised_returns():
    game, settings = GAMES["tandem"], dict(SMALL, opponent="self", epochs=2, gamma=0.7, model_lr=0.1)
    with jax.enable_x64(True):
        config = mfos.make_config("tandem", **settings)
        state, keys = mfos.train_init(jax.random.key(5), game, config), jax.random.split(jax.random.key(6), 4)
        episode = lambda seat, key: mfos.meta_episode(key, state.params, game, config, seat)
        played = [jax.jit(jax.vmap(functools.partial(episode, seat), out_axes=1))(keys) for seat in (0, 1)]
        np.testing.assert_array_equal(played[0][-1], played[1][-1][..., ::-1])  # both see the same episodes
        (agents, _), losses = mfos.ppo_update(state.params, state.opt_state, played, config)
        for agent, new, (*batch, returns) in zip(state.params, agents, played):
            targets = np.zeros((5, 4))
            for t in range(5):
                targets[t] = sum(0.7 ** (k - t) * returns[k, :, 0] for k in range(t, 5))
            batch = [np.concatenate(array) for array in (*batch, (targets - targets.mean()) / (targets.std() + 1e-5))]
            flat, unravel = jax.flatten_util.ravel_pytree(agent)
            m = v = 0.0
            for k in (1, 2):
                g = jax.grad(lambda flat: mfos.ppo_loss(unravel(flat), *batch, config))(flat)
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
                flat = flat - 0.1 * m / (1 - 0.9**k) / (np.sqrt(v / (1 - 0.999**k)) + 1e-8)
            np.testing.assert_allclose(jax.flatten_util.ravel_pytree(new)[0], flat, rtol=1e-6, atol=1e-9)


def test_seats_of_a_game_that_is_not_symmetric():
    """Player 1 always makes the unfair offer, player 2 takes every one."""
    game, config = GAMES["ultimatum"], mfos.make_config("ultimatum", **SMALL)
    agents = jax.tree.map(jnp.zeros_like, mfos.model_init(jax.random.key(0), game, config))
    last = lambda mean: jnp.zeros((7, 2)).at[-1].set(jnp.array([mean, -30.0]))  # and next to no variance
    agents = [agent._replace(actor=(agent.actor[0], last(mean))) for agent, mean in zip(agents, (-30.0, 30.0))]
    results = jax.jit(lambda key: mfos.evaluate(key, agents, game, config))(jax.random.key(1))
    np.testing.assert_allclose(results["self_play"], np.tile([8.0, 2.0], (1, 3, 1)), rtol=1e-4)
    one, two = results["episode_returns"].T, results["episode_returns_2"].T  # (own and other's, ...)
    np.testing.assert_allclose(one[0], 4 * one[1], rtol=1e-3)  # 8 and 2 if it is taken, else nothing
    np.testing.assert_allclose(two[0], 10 - two[1], rtol=1e-3)
    assert (one[0] < 7.99).all() and (two[0] > 2).all() and (two[0] < 5).all()
    assert (results["versus_naive_policies"][..., 0, 0] < -20).all()
    assert (results["versus_naive_policies_2"][..., 0, 0] > 20).all()
