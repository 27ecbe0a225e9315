"""Networks: made by name, used as pure functions of their weights."""

from jax_advtrain.models.batch_norm import BatchNorm as BatchNorm
from jax_advtrain.models.convolution import conv2d as conv2d
from jax_advtrain.models.convolution import conv_lowering as conv_lowering
from jax_advtrain.models.functional import Network as Network
from jax_advtrain.models.functional import apply as apply
from jax_advtrain.models.functional import logits_fn as logits_fn
from jax_advtrain.models.functional import split as split
from jax_advtrain.models.layers import Conv as Conv
from jax_advtrain.models.layers import Dense as Dense
from jax_advtrain.models.registry import NETWORKS as NETWORKS
from jax_advtrain.models.registry import check as check
from jax_advtrain.models.registry import create as create
from jax_advtrain.models.registry import field_names as field_names
from jax_advtrain.models.registry import is_dense as is_dense
from jax_advtrain.models.registry import network_class as network_class
from jax_advtrain.models.registry import plain_fields as plain_fields
from jax_advtrain.models.weights import Exported as Exported
from jax_advtrain.models.weights import export as export
from jax_advtrain.models.weights import load as load
from jax_advtrain.models.weights import read as read
from jax_advtrain.models.weights_torch import from_torch_names as from_torch_names
from jax_advtrain.models.weights_torch import to_torch_names as to_torch_names
