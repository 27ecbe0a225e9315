"""The smallest step within the box to a hyperplane, against general solvers, and the nearest linearised boundary."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from toy_problems import FEATURES, SHAPE, linear, pixels, smooth_model

from jax_advtrain.attacks import hyperplane

NORMS = ("linf", "l2", "l1")
BATCH = 24
step_to = jax.jit(hyperplane.step_to_hyperplane, static_argnames="norm")
nearest = jax.jit(hyperplane.nearest_boundary, static_argnames="norm")
few = hypothesis.settings(max_examples=12, deadline=None, derandomize=True)


def case(seed, share=0.6):
    """Images, some pixels of them on the ends of the box; normals, some entries zero or equal; offsets of both signs
    that `share` of the box's reach can meet."""
    random = np.random.default_rng(seed)
    images, normal = pixels(BATCH, seed), random.normal(size=(BATCH, *SHAPE))
    normal[random.uniform(size=normal.shape) < 0.15] = 0
    normal[::4] = np.round(normal[::4])  # ties
    normal[1::4] *= 10.0 ** random.uniform(-3, 3, size=normal[1::4].shape)
    sign = np.where(random.uniform(size=BATCH) < 0.5, -1, 1)
    room = np.where(normal * sign[:, None, None, None] > 0, 1 - images, images)
    reach = (np.abs(normal) * room).reshape(BATCH, -1).sum(1)
    return images, normal.astype(np.float32), (sign * share * reach * random.uniform(size=BATCH)).astype(np.float32)


def size_of(steps, norm):
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    return np.linalg.norm(np.asarray(steps, np.float64).reshape(len(steps), -1), order, axis=1)


def many_classes(classes=4, seed=0, batch=8):
    """A linear model, images near the middle of the box, right labels, and the distances to each class's boundary
    (batch, classes) a norm; all boundaries that matter are within the box.

    Returns:
      (logits_fn, images, labels, {"linf": ..., "l2": ..., "l1": ...}).
    """
    random = np.random.default_rng(seed)
    matrix, flat = random.normal(size=(FEATURES, classes)), random.uniform(0.46, 0.54, size=(batch, FEATURES))
    matrix = matrix.astype(np.float32).astype(np.float64)
    bias = (-0.5 * matrix.sum(0)).astype(np.float32).astype(np.float64)
    flat = flat.astype(np.float32).astype(np.float64)
    logits = flat @ matrix + bias
    labels = logits.argmax(1)
    rows = np.arange(batch)
    normals, gaps = matrix.T[None] - matrix.T[labels][:, None], logits[rows, labels][:, None] - logits
    distances = {}
    for norm, order in (("linf", 1), ("l2", 2), ("l1", np.inf)):
        sizes = np.linalg.norm(normals, order, axis=2)
        sizes[rows, labels] = 1
        distances[norm] = gaps / sizes
        distances[norm][rows, labels] = np.inf
    logits_fn = jax.tree_util.Partial(linear, (jnp.asarray(matrix, jnp.float32), jnp.asarray(bias, jnp.float32)))
    return logits_fn, flat.reshape(batch, *SHAPE).astype(np.float32), labels.astype(np.int32), distances


def solved(image, normal, offset, norm):
    """The least norm of a step, by a linear program or by sequential quadratic programming."""
    image, normal = (np.asarray(array, np.float64).ravel() for array in (image, normal))
    scale = np.abs(normal).max() or 1.0
    normal, offset = normal / scale, float(offset) / scale
    low, high, count = -image, 1 - image, len(image)
    eye, zero = np.eye(count), np.zeros((count, 1))
    if norm == "l2":
        inside = np.clip(np.linalg.pinv(normal[None])[:, 0] * offset, low, high)
        found = scipy.optimize.minimize(
            lambda step: step @ step,
            inside,
            jac=lambda step: 2 * step,
            bounds=list(zip(low, high, strict=True)),
            constraints={"type": "eq", "fun": lambda step: step @ normal - offset, "jac": lambda step: normal},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert found.success, found.message
        return np.sqrt(found.fun)
    # |step_i| <= bound_i, with one bound for all in L-inf.
    bounds = -np.ones((count, 1)) if norm == "linf" else -eye
    above = np.block([[eye, bounds], [-eye, bounds]])
    width = bounds.shape[1]
    found = scipy.optimize.linprog(
        np.concatenate([zero[:, 0], np.ones(width)]),
        A_ub=above,
        b_ub=np.zeros(2 * count),
        A_eq=np.concatenate([normal, np.zeros(width)])[None],
        b_eq=[offset],
        bounds=[*zip(low, high, strict=True), *[(0, None)] * width],
    )
    assert found.success, found.message
    return found.fun


@pytest.mark.parametrize("norm", NORMS)
def test_the_step_is_the_smallest_within_the_box(norm):
    for seed in range(3):
        images, normal, offset = case(seed, share=0.95)
        step = np.asarray(step_to(images, normal, offset, norm=norm), np.float64)
        assert np.all(images + step >= -1e-6) and np.all(images + step <= 1 + 1e-6)
        scale = np.abs(normal).reshape(BATCH, -1).max(1)
        np.testing.assert_allclose((normal * step).reshape(BATCH, -1).sum(1) / scale, offset / scale, atol=3e-6)
        least = [solved(*row, norm) for row in zip(images, normal, offset, strict=True)]
        np.testing.assert_allclose(size_of(step, norm), least, rtol=1e-4, atol=1e-5)
        # The box does matter: without it the steps would be shorter.
        dual = {"linf": 1, "l2": 2, "l1": np.inf}[norm]
        free = np.abs(offset) / np.linalg.norm(normal.reshape(BATCH, -1), dual, axis=1)
        assert np.mean(np.asarray(least) > 1.01 * free) > 0.2


@few
@hypothesis.given(seed=st.integers(0, 2**31 - 1), share=st.sampled_from([1e-6, 0.1, 0.999, 1.0, 1.001, 50.0]))
@pytest.mark.parametrize("norm", NORMS)
def test_steps_end_on_the_hyperplane_or_at_the_end_of_the_box(norm, seed, share):
    images, normal, offset = case(seed, share=1.0)
    offset = offset * 0 + share * np.sign(offset)
    room = np.where(normal * offset[:, None, None, None] > 0, 1 - images, images) * (normal != 0)
    reach = (np.abs(normal) * room).reshape(BATCH, -1).sum(1)
    offset = (offset * reach).astype(np.float32)
    step = np.asarray(step_to(images, normal, offset, norm=norm))
    arrived = (normal * step).reshape(BATCH, -1).astype(np.float64).sum(1)
    np.testing.assert_allclose(arrived, np.sign(offset) * np.minimum(np.abs(offset), reach), rtol=1e-5)
    assert np.all(np.abs(step) <= room + 1e-6)
    if share > 1:
        np.testing.assert_array_equal(np.abs(step)[offset != 0], room.astype(np.float32)[offset != 0])


@pytest.mark.parametrize("norm", NORMS)
def test_many_pixels(norm):
    random = np.random.default_rng(0)
    images, normal = random.uniform(size=(4, 5000)).astype(np.float32), random.normal(size=(4, 5000))
    room = np.where(normal > 0, 1 - images, images)
    offset = np.array([0.01, 0.3, 0.7, 0.99]) * (np.abs(normal) * room).sum(1)
    step = np.asarray(step_to(images, normal.astype(np.float32), offset.astype(np.float32), norm=norm), np.float64)
    np.testing.assert_allclose((normal * step).sum(1), offset, rtol=1e-5)
    # The same by bisection of the number that decides the step, in float64.
    weights, low, high = np.abs(normal), np.zeros(4), np.full(4, 1e6)
    for _ in range(200):
        middle = (low + high) / 2
        if norm == "l1":
            moves = room * (weights > 1 / middle[:, None])
        else:
            moves = np.minimum(middle[:, None] * (1 if norm == "linf" else weights), room)
        reached = (weights * moves).sum(1) >= offset
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    # One pixel in L1 may be moved in part.
    np.testing.assert_allclose(size_of(step, norm), size_of(moves, norm), rtol=1e-5, atol=1 if norm == "l1" else 0)


def test_equal_weights_share_a_step_in_l1():
    images = jnp.array([[0.5, 0.9, 0.5, 0.5]])
    step = step_to(images, jnp.array([[2.0, 2.0, -2.0, 1.0]]), jnp.array([1.1]), norm="l1")
    np.testing.assert_allclose(step, [[0.25, 0.05, -0.25, 0.0]], atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_extreme_normals_and_offsets(norm):
    images, normal, offset = case(5)
    wanted = np.asarray(step_to(images, normal, offset, norm=norm))
    for scale in (1e30, 1e-30):
        scaled = step_to(images, normal * np.float32(scale), offset * np.float32(scale), norm=norm)
        np.testing.assert_allclose(scaled, wanted, atol=1e-5)
    for nothing in (np.nan, np.inf, 0.0):
        assert not np.any(step_to(images, normal, np.full(BATCH, nothing, np.float32), norm=norm))
    assert not np.any(step_to(images, np.zeros_like(normal), offset, norm=norm))
    narrow = step_to(images.astype(jnp.bfloat16), normal.astype(jnp.bfloat16), offset, norm=norm)
    assert narrow.dtype == jnp.float32 and np.all(np.isfinite(narrow))


def rivals(logits, labels, num_classes=None):
    return hyperplane.rivals_of(jnp.asarray(logits), jnp.asarray(labels), None, num_classes)


def test_rivals_are_the_largest_logits_but_that_of_the_label():
    logits, labels = np.array([[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]]), np.array([0, 1])
    np.testing.assert_array_equal(rivals(logits, labels), [[2, 1, 3], [3, 2, 0]])
    np.testing.assert_array_equal(rivals(logits, labels, 2), [[2], [3]])
    np.testing.assert_array_equal(rivals(logits, labels, 9), [[2, 1, 3], [3, 2, 0]])
    targeted = hyperplane.rivals_of(jnp.asarray(logits), jnp.asarray(labels), jnp.array([3, 0]), None)
    np.testing.assert_array_equal(targeted, [[3], [0]])
    with pytest.raises(ValueError, match="2 classes at least"):
        rivals(np.zeros((2, 1)), labels)
    with pytest.raises(ValueError, match="one label a sample"):
        rivals(np.zeros((2, 5, 3)), np.zeros((2, 5), np.int32))


@pytest.mark.parametrize("norm", NORMS)
def test_the_nearest_boundary_of_a_linear_model(norm):
    model, images, labels, distances = many_classes(classes=5)
    matrix, logits = np.asarray(model.args[0][0]), np.asarray(model(images))
    wanted = distances[norm].argmin(1)
    assert len(set(wanted)) > 1 and np.any(wanted != np.argsort(logits)[:, -2])
    found = nearest(model, images, labels, rivals(logits, labels), norm=norm)
    np.testing.assert_allclose(found.normal.reshape(8, -1), (matrix.T[wanted] - matrix.T[labels]), atol=1e-5)
    np.testing.assert_allclose(found.offset, logits[np.arange(8), labels] - logits[np.arange(8), wanted], atol=1e-5)
    assert not np.any(found.zero) and not np.any(found.nonfinite)
    one = nearest(model, images, labels, wanted[:, None].astype(np.int32), norm=norm)
    np.testing.assert_allclose(one.normal, found.normal, atol=1e-6)


def test_boundaries_without_a_gradient_are_passed_over_and_told():
    def model(images):
        flat = images.reshape(len(images), -1)
        # Class 1 is near but flat, class 2 far, class 3 has an infinite gradient where the first pixel is 0.
        return jnp.stack([1 + 0 * flat[:, 0], 0.999 + 0 * flat[:, 0], flat[:, 1] - 5, jnp.sqrt(flat[:, 0]) - 5], 1)

    images = np.full((2, 3), 0.5, np.float32)
    images[1, 0] = 0
    labels = np.zeros(2, np.int32)
    boundary = jax.jit(lambda others: hyperplane.nearest_boundary(model, images, labels, others, "l2"))
    found = boundary(np.array([[1, 2, 3]] * 2))
    np.testing.assert_allclose(found.normal, [[0, 1, 0]] * 2, atol=1e-6)
    np.testing.assert_array_equal(found.nonfinite, [False, True])
    np.testing.assert_array_equal(found.zero, [False, False])
    flat = boundary(np.ones((2, 1), np.int32))
    np.testing.assert_array_equal(flat.zero, [True, False])  # 0 times infinity is NaN
    np.testing.assert_array_equal(flat.nonfinite, [False, True])
    assert not np.any(flat.normal)


def test_memory_does_not_grow_with_the_number_of_rivals():
    images, labels = jnp.zeros((8, 4000)), jnp.zeros(8, jnp.int32)
    sizes = []
    for classes in (3, 100):
        model = jax.tree_util.Partial(linear, (jnp.ones((4000, classes)), jnp.zeros(classes)))
        others = jnp.ones((8, classes - 1), jnp.int32)
        program = nearest.lower(model, images, labels, others, norm="l2").compile()
        sizes.append(program.memory_analysis().temp_size_in_bytes - 4 * 4000 * classes)
    assert sizes[1] < sizes[0] + images.nbytes, sizes


def test_gradients_are_those_of_the_network_in_bfloat16_too():
    model, images = smooth_model(classes=2), pixels(6)
    labels = np.asarray(jnp.argmax(model(images), -1))
    wide = nearest(model, images, labels, 1 - labels[:, None], norm="linf")
    narrow = nearest(model, images.astype(jnp.bfloat16), labels, 1 - labels[:, None], norm="linf")
    assert narrow.normal.dtype == jnp.bfloat16 and narrow.offset.dtype == jnp.float32
    np.testing.assert_allclose(narrow.normal.astype(np.float32), wide.normal, atol=0.15)
