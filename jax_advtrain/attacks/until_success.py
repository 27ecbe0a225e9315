"""Attacks whose samples rest once they are fooled."""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax

from jax_advtrain.attacks import norms
from jax_advtrain.attacks.combine import Composed, Wrapped, check_attack
from jax_advtrain.attacks.pgd import PGD
from jax_advtrain.attacks.protocol import Attack, LogitsFn
from jax_advtrain.attacks.pytrees import register_dataclass
from jax_advtrain.attacks.stepwise import Stepwise


@partial(register_dataclass, data_fields=["attack"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class UntilSuccess(Wrapped):
    """An attack whose samples rest once they are fooled; see `until_success`."""

    attack: Any
    stops_early: ClassVar[bool] = True  # type: ignore[override]

    def step(self, logits_fn: LogitsFn, state: Any) -> Any:
        """One step of the samples that are not finished; the others stay as they are."""
        finished = self.attack.finished(state)
        return jax.tree.map(partial(norms.select, finished), state, self.attack.step(logits_fn, state))


def until_success(attack: Attack) -> Attack:
    """The attack, but a sample that is fooled moves no further, and the loop ends when all are.

    It misses no sample that the attack alone would fool. PGD may fool some more: alone it returns its last iterate,
    which may be right again where an earlier one was not. Of a stochastic model one draw would be taken for success:
    PGD refuses it then.

    In composed attacks a sample also takes no part in the members, restarts or targets that come after the one that
    fooled it: `winner` is then the first that did, not the strongest, and the counts are of the runs that it took part
    in. (A member without steps, as `noise`, runs as it is.) Targeted ascents stop where a sample is taken for its
    target; composed attacks count any wrong prediction.

    Raises:
      ValueError: an attack without steps.

    Example:
      >>> from jax_advtrain.attacks import pgd
      >>> until_success(pgd(norm="linf", epsilon=0.3)).stops_early
      True
    """
    if not isinstance(check_attack("until_success", attack), Stepwise | Composed):
        raise ValueError(f"until_success needs an attack that goes step by step, not {type(attack).__name__}")
    return _stopping(attack)


def _stopping(attack: Any) -> Any:
    if isinstance(attack, Composed):
        return attack if attack.stops_early else dataclasses.replace(attack.over(_stopping), stops_early=True)
    if isinstance(attack, UntilSuccess) or not isinstance(attack, Stepwise):
        return attack
    # PGD must hold the iterate that fooled the model. It is wrapped all the same: else its count of hits would go on as
    # long as others of the batch take steps.
    holding = dataclasses.replace(attack, stops_early=True) if isinstance(attack, PGD) else attack
    return UntilSuccess(holding)
