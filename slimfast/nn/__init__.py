"""Layers that a pruned network needs beside torch's own, where channels were cut out or put back."""

from slimfast.nn.border import BorderConv2d as BorderConv2d
from slimfast.nn.channels import ChannelBias as ChannelBias
from slimfast.nn.channels import ChannelPlace as ChannelPlace
from slimfast.nn.channels import ChannelSelect as ChannelSelect
from slimfast.nn.shape import ShapeCarrier as ShapeCarrier
