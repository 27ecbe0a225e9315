"""Data: labelled images with stable sample ids, the order in which training visits them, and augmentation.

`load(config)` is the one entry. It opens a source by name (any prepared TFDS set, a .npz file, a folder of images,
scikit-learn's digits, two moons), leaves out the classes that are not wanted, chooses which records train, validate and
test, and reads those into memory. `python -m jax_advtrain.data.prepare` prepares TFDS sets.
"""

from jax_advtrain.data import augment as augment
from jax_advtrain.data import fields as fields
from jax_advtrain.data import slots as slots
from jax_advtrain.data.dataset import Dataset as Dataset
from jax_advtrain.data.dataset import Splits as Splits
from jax_advtrain.data.dataset import to_unit as to_unit
from jax_advtrain.data.fields import default_config as default_config
from jax_advtrain.data.load import load as load
from jax_advtrain.data.order import first_positions as first_positions
