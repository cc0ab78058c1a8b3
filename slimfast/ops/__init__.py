"""Every op is ``torch.ops.slimfast.<op>``; here are the typed functions with the docstrings."""

from slimfast.ops.basic_block import basic_block as basic_block
from slimfast.ops.bottleneck import bottleneck as bottleneck
from slimfast.ops.conv import conv as conv
from slimfast.ops.conv_chain import conv_chain as conv_chain
from slimfast.ops.conv_into import conv_into as conv_into
from slimfast.ops.direct_conv import direct_conv as direct_conv
from slimfast.ops.group_prox import group_prox as group_prox
from slimfast.ops.penalty_grad import penalty_grad as penalty_grad
from slimfast.ops.penalty_value import penalty_value as penalty_value
from slimfast.ops.pooled_linear import pooled_linear as pooled_linear
from slimfast.ops.prox import prox as prox
from slimfast.ops.prox_adamw import prox_adamw_ as prox_adamw_
from slimfast.ops.prox_sgd import prox_sgd_ as prox_sgd_
from slimfast.ops.psconv import psconv as psconv
