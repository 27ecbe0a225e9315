"""Small models of which everything is known, and the programs that the attack tests share."""

import jax
import jax.numpy as jnp
import numpy as np

SHAPE = (3, 2, 1)  # of one image
FEATURES = 6


def keys(batch: int, seed: int = 0) -> jax.Array:
    """One key a sample."""
    return jax.random.split(jax.random.key(seed), batch)


def linear(weights, images):
    """Logits of flattened images; `weights` is (matrix (features, classes), bias (classes,))."""
    matrix, bias = weights
    flat = images.reshape(images.shape[0], -1)
    return (flat @ matrix.astype(flat.dtype) + bias.astype(flat.dtype)).astype(flat.dtype)


def tanh_network(weights, images):
    """One hidden layer; smooth, so that gradients are nowhere exactly zero."""
    first, second = weights
    return jnp.tanh(images.reshape(images.shape[0], -1) @ first.astype(images.dtype)) @ second.astype(images.dtype)


def smooth_model(seed: int = 0, classes: int = 3, scale: float = 1.0) -> jax.tree_util.Partial:
    """A random smooth classifier of images of shape SHAPE."""
    random = np.random.default_rng(seed)
    first = random.normal(size=(FEATURES, 8)).astype(np.float32)
    second = scale * random.normal(size=(8, classes)).astype(np.float32)
    return jax.tree_util.Partial(tanh_network, (jnp.asarray(first), jnp.asarray(second)))


def right_labels(logits_fn, images) -> np.ndarray:
    """What the model takes the images for."""
    return np.asarray(jnp.argmax(logits_fn(jnp.asarray(images)), axis=1), np.int32)


@jax.custom_vjp
def _poisoned(images, factor, added):
    """The images; on the way back the gradient becomes gradient * factor + added."""
    return images


_poisoned.defvjp(
    lambda images, factor, added: (images, (factor, added)),
    lambda kept, gradient: (gradient * kept[0] + kept[1], jnp.zeros_like(kept[0]), jnp.zeros_like(kept[1])),
)


def poisoned_linear(weights, factor, added, images):
    """A linear model whose gradient is spoilt: gradient * factor + added."""
    return linear(weights, _poisoned(images, factor, added))


def poisoned_models(logits_fn, factor, added):
    """A linear model with a spoilt gradient, and the same program with its own."""
    bad = jax.tree_util.Partial(poisoned_linear, *logits_fn.args, jnp.asarray(factor), jnp.asarray(added))
    good = jax.tree_util.Partial(poisoned_linear, *logits_fn.args, jnp.ones_like(factor), jnp.zeros_like(added))
    return bad, good


def poisoned_problem():
    """Eight samples: 0 and 7 healthy, 1 zero, 2 NaN, 3 inf, 4 -inf, 5 NaN in one pixel only, 6 huge."""
    logits_fn, images, labels, distances = two_classes(batch=8)
    factor, added = np.ones(images.shape, np.float32), np.zeros(images.shape, np.float32)
    factor[1] = 0
    added[2], added[3], added[4] = np.nan, np.inf, -np.inf
    added[5, 0, 0, 0] = np.nan
    factor[6] = 1e30
    return *poisoned_models(logits_fn, factor, added), images, labels, distances


def pixels(batch: int, seed: int = 0, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Random images of shape SHAPE; where the range is [0, 1] some pixels lie exactly on its ends."""
    random = np.random.default_rng(seed)
    images = random.uniform(low, high, size=(batch, *SHAPE))
    if (low, high) == (0, 1):
        ends = random.uniform(size=images.shape) < 0.3
        images = np.where(ends, np.round(images), images)
    return images.astype(np.float32)


def two_classes(batch: int = 8, seed: int = 0):
    """A two-class linear model, images near the middle of the box, right labels, and each sample's distance to the
    decision boundary in both norms; the box is far enough away not to matter.

    Returns:
      (logits_fn, images, labels, {"linf": (batch,), "l2": (batch,)}).
    """
    random = np.random.default_rng(seed)
    matrix = random.normal(size=(FEATURES, 2))
    normal = matrix[:, 0] - matrix[:, 1]
    flat = random.uniform(0.45, 0.55, size=(batch, FEATURES))
    # Put each sample at a wanted signed distance from the boundary, which passes near the middle of the box.
    signed = np.linspace(0.04, 0.2, batch) * np.where(np.arange(batch) % 2, 1, -1)
    bias = -0.5 * normal.sum()
    flat += ((signed * np.linalg.norm(normal) - (flat @ normal + bias)) / (normal @ normal))[:, None] * normal
    gap = np.abs(flat @ normal + bias)
    logits_fn = jax.tree_util.Partial(linear, (jnp.asarray(matrix, jnp.float32), jnp.asarray([bias, 0.0], jnp.float32)))
    distances = {"linf": gap / np.abs(normal).sum(), "l2": gap / np.linalg.norm(normal)}
    labels = np.where(signed > 0, 0, 1).astype(np.int32)
    return logits_fn, flat.reshape(batch, *SHAPE).astype(np.float32), labels, distances


@jax.jit
def compiled(attack, key, logits_fn, images, labels, targets=None, epsilon=None, start=None):
    """Any attack's whole result, compiled once per setting."""
    return attack.run(key, logits_fn, images, labels, targets=targets, epsilon=epsilon, start=start)


def run(*args, **given):
    """The whole result of `compiled` as numpy arrays: what is then asked of it compiles nothing more."""
    return jax.device_get(compiled(*args, **given))


def lengths(perturbation, norm):
    """Norms of perturbations, independently of the package, in float64."""
    flat = np.asarray(perturbation, np.float64).reshape(len(perturbation), -1)
    return np.abs(flat).max(axis=1) if norm == "linf" else np.sqrt((flat**2).sum(axis=1))


def same_bits(first, second) -> bool:
    """Whether two arrays agree in dtype, shape and every bit."""
    first, second = np.asarray(first), np.asarray(second)
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()
