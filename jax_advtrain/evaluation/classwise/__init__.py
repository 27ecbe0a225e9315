"""Class-wise robustness: which classes are weak, where their attacked images go, and how sure that is.

`diagnose` attacks anybody's model. The parts are pure functions on plain arrays, and also work on the per_sample.npz of
finished evaluations (`from_per_sample`). docs/classwise.md says what each of them means.
"""

from jax_advtrain.evaluation.classwise.confidence import class_confidence as class_confidence
from jax_advtrain.evaluation.classwise.confidence import temperature_table as temperature_table
from jax_advtrain.evaluation.classwise.consistency import agreement as agreement
from jax_advtrain.evaluation.classwise.diagnosis import Diagnosis as Diagnosis
from jax_advtrain.evaluation.classwise.diagnosis import diagnose as diagnose
from jax_advtrain.evaluation.classwise.flow import confusion as confusion
from jax_advtrain.evaluation.classwise.flow import row_shares as row_shares
from jax_advtrain.evaluation.classwise.flow import strongest_edges as strongest_edges
from jax_advtrain.evaluation.classwise.flow import symmetry as symmetry
from jax_advtrain.evaluation.classwise.gains import chain_gains as chain_gains
from jax_advtrain.evaluation.classwise.gains import gain as gain
from jax_advtrain.evaluation.classwise.head import find_kernel as find_kernel
from jax_advtrain.evaluation.classwise.head import norm_relation as norm_relation
from jax_advtrain.evaluation.classwise.observations import Observed as Observed
from jax_advtrain.evaluation.classwise.observations import from_per_sample as from_per_sample
from jax_advtrain.evaluation.classwise.observations import observed as observed
from jax_advtrain.evaluation.classwise.per_class import class_table as class_table
from jax_advtrain.evaluation.classwise.per_class import spread as spread
from jax_advtrain.evaluation.classwise.per_class import weakness as weakness
from jax_advtrain.evaluation.classwise.per_class import wilson as wilson
from jax_advtrain.evaluation.classwise.resampling import resampled_accuracies as resampled_accuracies
from jax_advtrain.evaluation.classwise.significance import mcnemar as mcnemar
from jax_advtrain.evaluation.classwise.significance import paired_difference as paired_difference
