"""Defenses: how one batch becomes a training loss, one method a file."""

from jax_advtrain.defenses.ame import Ame as Ame
from jax_advtrain.defenses.cfa import CFA as CFA
from jax_advtrain.defenses.classwise import Classwise as Classwise
from jax_advtrain.defenses.fast_at import NFGSM as NFGSM
from jax_advtrain.defenses.fast_at import FastAT as FastAT
from jax_advtrain.defenses.fat import Fat as Fat
from jax_advtrain.defenses.frl import FRL as FRL
from jax_advtrain.defenses.gairat import Gairat as Gairat
from jax_advtrain.defenses.iaat import Iaat as Iaat
from jax_advtrain.defenses.ima import IMA as IMA
from jax_advtrain.defenses.madry import Madry as Madry
from jax_advtrain.defenses.mart import Mart as Mart
from jax_advtrain.defenses.mma import Mma as Mma
from jax_advtrain.defenses.protocol import Batch as Batch
from jax_advtrain.defenses.protocol import Defense as Defense
from jax_advtrain.defenses.protocol import DefenseLoss as DefenseLoss
from jax_advtrain.defenses.protocol import HeldOut as HeldOut
from jax_advtrain.defenses.protocol import Model as Model
from jax_advtrain.defenses.registry import DEFENSES as DEFENSES
from jax_advtrain.defenses.registry import REMEDIES as REMEDIES
from jax_advtrain.defenses.registry import from_config as from_config
from jax_advtrain.defenses.registry import remedy_fields as remedy_fields
from jax_advtrain.defenses.reweight import Reweight as Reweight
from jax_advtrain.defenses.standard import Standard as Standard
from jax_advtrain.defenses.trades import Trades as Trades
