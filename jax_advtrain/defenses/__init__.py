"""Defenses: how one batch becomes a training loss, one method a file."""

from jax_advtrain.defenses.ima import IMA as IMA
from jax_advtrain.defenses.madry import Madry as Madry
from jax_advtrain.defenses.protocol import Batch as Batch
from jax_advtrain.defenses.protocol import Defense as Defense
from jax_advtrain.defenses.protocol import DefenseLoss as DefenseLoss
from jax_advtrain.defenses.protocol import Model as Model
from jax_advtrain.defenses.registry import from_config as from_config
from jax_advtrain.defenses.standard import Standard as Standard
