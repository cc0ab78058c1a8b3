"""Pre-defined sparse convolution, and what a pruned network needs where channels were cut or put back."""

from slimfast.nn.border import BorderConv1d as BorderConv1d
from slimfast.nn.border import BorderConv2d as BorderConv2d
from slimfast.nn.border import BorderConv3d as BorderConv3d
from slimfast.nn.border import BorderConvTranspose1d as BorderConvTranspose1d
from slimfast.nn.border import BorderConvTranspose2d as BorderConvTranspose2d
from slimfast.nn.border import BorderConvTranspose3d as BorderConvTranspose3d
from slimfast.nn.border import with_border as with_border
from slimfast.nn.channels import ChannelBias as ChannelBias
from slimfast.nn.channels import ChannelPlace as ChannelPlace
from slimfast.nn.channels import ChannelSelect as ChannelSelect
from slimfast.nn.psconv import BorderPSConv2d as BorderPSConv2d
from slimfast.nn.psconv import PSConv2d as PSConv2d
from slimfast.nn.psconv import convert_psconv as convert_psconv
from slimfast.nn.shape import ShapeCarrier as ShapeCarrier
