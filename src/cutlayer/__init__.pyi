"""The package's public names, for type checkers, editors and `__init__.py`, which imports each when it is asked for.

A name is added by its line here; each has an example in its docstring.
"""

from cutlayer.api.compare import compare as compare
from cutlayer.api.join import join as join
from cutlayer.api.serve import serve as serve
from cutlayer.api.simulate import simulate as simulate
from cutlayer.config import RunConfig as RunConfig
from cutlayer.errors import ConfigError as ConfigError
from cutlayer.methods.method import Method as Method
from cutlayer.model.export import load_finetuned as load_finetuned
from cutlayer.policies.aggregate import Aggregate as Aggregate
from cutlayer.policies.aggregate import Contribution as Contribution
from cutlayer.policies.aggregate import mean_per_block as mean_per_block
from cutlayer.policies.aggregate import with_momentum as with_momentum
from cutlayer.policies.bandit import ratio_and_rank_by_bandit as ratio_and_rank_by_bandit
from cutlayer.policies.batch import fill_ingress as fill_ingress
from cutlayer.policies.batch import fixed as fixed
from cutlayer.policies.batch import regulate_kl as regulate_kl
from cutlayer.policies.batch import speed_proportional as speed_proportional
from cutlayer.policies.cohort import kl_cohort as kl_cohort
from cutlayer.policies.cut import cut_at as cut_at
from cutlayer.policies.cut import cut_by_capacity as cut_by_capacity
from cutlayer.policies.cut import cut_by_memory as cut_by_memory
from cutlayer.policies.cut import whole_model as whole_model
from cutlayer.policies.depth import depth_by_time as depth_by_time
from cutlayer.policies.latency_plan import cut_by_latency as cut_by_latency
from cutlayer.policies.moments import fresh_moments as fresh_moments
from cutlayer.policies.order import fifo as fifo
from cutlayer.policies.order import longest_tail as longest_tail
from cutlayer.policies.order import optimal as optimal
from cutlayer.policies.order import order_by_name as order_by_name
from cutlayer.policies.order import random_order as random_order
from cutlayer.policies.order import ratio as ratio
from cutlayer.policies.order import strict_ratio as strict_ratio
from cutlayer.policies.plan import Planner as Planner
from cutlayer.policies.plan import Situation as Situation
from cutlayer.policies.ranks import arithmetic_ranks as arithmetic_ranks
from cutlayer.policies.ranks import ranks_above_deepest_cut as ranks_above_deepest_cut
from cutlayer.policies.ranks import ranks_by_budget as ranks_by_budget
from cutlayer.policies.ranks import uniform_ranks as uniform_ranks
from cutlayer.policies.repeat import activations_repeat as activations_repeat
from cutlayer.policies.scatter import scatter as scatter
from cutlayer.policies.scope import personal as personal
from cutlayer.policies.scope import personal_below_the_cut as personal_below_the_cut
from cutlayer.policies.scope import shared as shared
from cutlayer.policies.select import everyone as everyone
from cutlayer.policies.select import in_random_order as in_random_order
from cutlayer.policies.select import random_fraction as random_fraction
from cutlayer.policies.self_prune import self_pruning as self_pruning
from cutlayer.policies.stack import begin_anew as begin_anew
from cutlayer.policies.stack import stack as stack
from cutlayer.policies.svd import svd as svd
from cutlayer.policies.zero_pad import zero_pad as zero_pad
from cutlayer.rounds.local import local as local
from cutlayer.rounds.relay import relay as relay
from cutlayer.rounds.round import Round as Round
from cutlayer.rounds.split import split as split
from cutlayer.rounds.stream import stream as stream
from cutlayer.run.ending import Outcome as Outcome
from cutlayer.server.owners import one_for_all as one_for_all
from cutlayer.server.owners import one_per_device as one_per_device
from cutlayer.server.steps.merged import merged as merged
from cutlayer.server.steps.one_at_a_time import a_copy_each as a_copy_each
from cutlayer.server.steps.one_at_a_time import one_device_at_a_time as one_device_at_a_time
from cutlayer.server.steps.step import ServerStep as ServerStep
from cutlayer.types import DevicePlan as DevicePlan
from cutlayer.types import RoundPlan as RoundPlan

__version__: str
