"""Layers that a pruned network needs beside torch's own, where channels were cut out or put back."""

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
from slimfast.nn.shape import ShapeCarrier as ShapeCarrier
