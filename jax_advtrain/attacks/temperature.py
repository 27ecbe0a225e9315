"""Temperature-PGD over several temperatures, and which of them won."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jax_advtrain.attacks import losses
from jax_advtrain.attacks.combine import Composed, check_attack, over_bases, run_awake, strongest_of
from jax_advtrain.attacks.protocol import Attack, AttackResult, check_number, per_sample_keys
from jax_advtrain.attacks.pytrees import register_dataclass
from jax_advtrain.attacks.stepwise import Part, parts


@partial(register_dataclass, data_fields=["attack", "temperatures"], meta_fields=["per_class", "stops_early"])
@dataclasses.dataclass(frozen=True, eq=False)
class TemperatureSweep(Composed):
    """An attack run at several temperatures of its loss; see `temperature_sweep`."""

    attack: Any
    temperatures: jax.Array | np.ndarray
    per_class: bool
    stops_early: bool = False

    def at(self, number: Any) -> Any:
        """The attack at one of the temperatures."""
        # On the host a numpy scalar, so that `parts` computes nothing; in the loop a traced one.
        host = isinstance(number, int) and isinstance(self.temperatures, np.ndarray)
        values = self.temperatures if host else jnp.asarray(self.temperatures)
        return over_bases(lambda base: _tempered(base, values[number], self.per_class), self.attack)

    def run(
        self, key, logits_fn, images, labels, *, targets=None, epsilon=None, start=None, resting=None
    ) -> AttackResult:
        """Runs all temperatures one after the other; memory does not grow with their number. `winner` is the index."""
        keys = per_sample_keys(key, images.shape[0])
        given = {"targets": targets, "epsilon": epsilon, "start": start}

        def once(number, resting):
            return run_awake(self.at(number), resting, keys, logits_fn, images, labels, **given)

        return strongest_of(once, self._count, images, stops_early=self.stops_early, resting=resting)

    @property
    def _count(self) -> int:
        return np.shape(self.temperatures)[0]

    def parts(self, num_classes: int) -> tuple[Part, ...]:
        return tuple(
            Part(part.attack, part.path, number)
            for number in range(self._count)
            for part in parts(self.at(number), num_classes)
        )

    @property
    def passes(self) -> int:
        return self._count * self.attack.passes


def _tempered(base: Any, temperature: jax.typing.ArrayLike, per_class: bool) -> Any:
    if not isinstance(getattr(base, "loss", None), losses.Loss):
        raise ValueError(f"temperature_sweep needs attacks with a loss (pgd, mim, apgd), not {type(base).__name__}")
    return dataclasses.replace(base, loss=losses.with_temperature(base.loss, temperature, per_class=per_class))


def temperature_sweep(attack: Attack, temperatures: jax.typing.ArrayLike, *, per_class: bool = False) -> Attack:
    """The per-sample strongest of one run at each temperature: the attack ascends loss(z / T) (Tian et al. 2021).

    T < 1 gives back gradients where a regularised model is flat; T = 1 is the attack itself, but that on "ce" it also
    has a gradient where the model is too sure for float32 (see `Loss.ascended`). All runs use the same keys, so that
    they differ by the temperature alone; `winner` is the number of the temperature.

    Args:
      attack: has a loss without a temperature (pgd, mim, apgd); or a composition of such.
      temperatures: positive: (num,), or with `per_class` (num, classes), looked up by the true label. A leaf: new
        values do not recompile, and one program serves all of them.
      per_class: see `temperatures`.

    Returns:
      An attack; it costs the passes of `attack` for each temperature.

    Raises:
      ValueError: temperatures that are not positive or of another shape, an attack without a loss or with a
        temperature already.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax_advtrain.attacks import pgd
      >>> sweep = temperature_sweep(pgd(norm="linf", epsilon=0.1, num_steps=5), [1.0, 0.2, 0.02])
      >>> weights = jnp.array([[9.0, -9.0, 0.0], [0.0, 9.0, -9.0]])
      >>> x, y = jnp.array([[0.6, 0.3], [0.4, 0.5], [0.5, 0.9]]), jnp.array([0, 1, 1])
      >>> found = jax.jit(lambda x: sweep.run(jax.random.key(0), lambda x: x @ weights, x, y))(x)
      >>> winners_by_class(found, y, num_classes=3, num_members=3).tolist()  # rows: temperatures
      [[0, 2, 0], [0, 0, 0], [0, 0, 0]]

    References:
      Tian et al., Analysis and applications of class-wise robustness in adversarial training, KDD 2021.
    """
    if not isinstance(temperatures, jax.Array):
        check_number("temperatures", temperatures, positive=True)
        temperatures = np.asarray(temperatures, float)
    wanted = 2 if per_class else 1
    if temperatures.ndim != wanted or temperatures.size == 0:
        shape = "(num, classes)" if per_class else "(num,)"
        raise ValueError(f"temperatures have shape {temperatures.shape}; give {shape}")
    over_bases(lambda base: _tempered(base, 1.0, per_class), check_attack("temperature_sweep", attack))
    return TemperatureSweep(attack, temperatures, per_class)


def winners_by_class(
    result: AttackResult, labels: Int[Array, "batch"], num_classes: int, num_members: int
) -> Int[Array, "members classes"]:
    """How many fooled samples of each class each member of a composed attack won, such as each T of a sweep.

    Counts of several batches add up. Example: see `temperature_sweep`.
    """
    counts = jnp.zeros((num_members, num_classes), jnp.int32)
    return counts.at[result.winner, jnp.asarray(labels)].add(~result.is_right)
