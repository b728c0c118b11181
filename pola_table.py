"""table.py algo policy [repeats]: share of runs that find tit-for-tat, all CFs in one program."""
import sys, time
import jax, jax.numpy as jnp, numpy as np
import games, pola, lola
from functools import partial
algo, policy = sys.argv[1:3]; pairs = int(sys.argv[3]) if len(sys.argv) > 3 else 100
CF = [1.1, 1.25, 1.33, 1.4, 1.6]
SET = {  # theirs: alpha, then beta or lr
 ("pola", "tabular"): ([5, 5, 5, 4, 2.5], [.1]*5, 10),
 ("pola", "preconditioned"): ([.4, .5, .4, .3, .3], [.5]*5, 10),
 ("pola", "mlp"): ([.3, .25, .25, .2, .12], [.1, .13, .13, .1, .05], 10),
 ("lola", "tabular"): ([3]*5, [25]*5, 30),
 ("lola", "mlp"): ([.4, .4, .4, .3, .12], [.05, .05, .05, .1, .05], 100),
 ("lola", "preconditioned"): (None, None, 100),
}
alphas, others, epochs = SET[algo, policy]
rows = list(zip(CF, alphas, others)) if alphas else [(c, a, l) for c in CF for a in (.03, .1, .3, 1, 3) for l in (.05, .3, 2, 10)]
base = games.make_game("contribution", policy=policy)
def game_of(cf):
    pay = (cf - 1, cf/2 - 1, cf/2, 0 * cf)
    return base._replace(f=lambda x: games.iterated_returns(base.log_odds(x), games.joint_payoffs(pay, pay), .96), payoffs=(pay, pay))
def run(cf, a, b, key):
    game = game_of(cf)
    def step(x):
        if algo == "pola": return pola.pola_step(game.f, x, 25 * a, b / 25, partial(pola.divergence, game), 1000, 1e-4)
        return x + 25 * b * lola.lola_gradient(game.f, x, 25 * a)
    def body(x, _):
        y = step(x); z = base.log_odds(y)
        tft = (jax.nn.sigmoid(z)[:, 1:3] < .65).all() & (game.f(y).mean() > .8 * (cf - 1))
        return y, (tft, game.f(y).mean() / (cf - 1), jax.nn.sigmoid(z).mean(0))
    return jax.lax.scan(body, base.init(key), None, length=epochs)[1]
t = time.time(); keys = jax.random.split(jax.random.key(0), pairs)
cf, a, b = map(jnp.float32, zip(*rows))
tft, ret, pol = jax.device_get(jax.jit(jax.vmap(jax.vmap(run, (None, None, None, 0)), (0, 0, 0, None)))(cf, a, b, keys))
for k, row in enumerate(rows):
    if algo + policy == "lolapreconditioned" and not tft[k].any(): continue
    print(algo, policy, row, "ever %.2f end %.2f by2 %.2f by10 %.2f ret %.2f" % (tft[k].any(1).mean(), tft[k][:, -1].mean(), tft[k][:, :2].any(1).mean(), tft[k][:, :10].any(1).mean(), ret[k][:, -1].mean()), np.round(pol[k][:, -1].mean(0), 2), flush=True)
print(algo, policy, "%.0fs" % (time.time() - t), flush=True)
