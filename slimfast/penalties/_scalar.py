"""The penalties of the network slimming papers."""

from dataclasses import dataclass
from typing import ClassVar

from slimfast.ops._kinds import Kind
from slimfast.penalties._base import Elementwise, check_cutoff, check_range


@dataclass(frozen=True)
class L0(Elementwise):
    """lam * [x != 0]. Its proximal operator keeps |x| > sqrt(2 step lam) as it is and zeroes the rest.

    Args:
        lam: weight, finite, >= 0.
    """

    kind: ClassVar[Kind] = Kind.L0

    @property
    def shape(self) -> float:
        """Unused."""
        return 0.0


@dataclass(frozen=True)
class L1(Elementwise):
    """lam |x|, whose proximal operator is soft thresholding.

    Args:
        lam: weight, finite, >= 0.

    Source: Liu et al., "Network Slimming", ICCV 2017.
    """

    kind: ClassVar[Kind] = Kind.L1

    @property
    def shape(self) -> float:
        """Unused."""
        return 0.0


@dataclass(frozen=True)
class Lp(Elementwise):
    """lam |x|^p.

    Args:
        lam: weight, finite, >= 0.
        p: in (0, 1).

    Source: Bui et al., IEEE Access 9, 2021; proximal operator: Marjanovic & Solo 2012.
    """

    kind: ClassVar[Kind] = Kind.LP
    p: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "p", 0, 1)

    @property
    def shape(self) -> float:
        """p."""
        return self.p


@dataclass(frozen=True)
class TL1(Elementwise):
    """Transformed L1: lam (a + 1) |x| / (a + |x|); close to L0 for small a, to L1 for large a.

    Args:
        lam: weight, finite, >= 0.
        a: finite, > 0.

    Source: Zhang & Xin, CMS 15(2), 2017; on BatchNorm scales: Bui et al., IEEE Access 9, 2021.
    """

    kind: ClassVar[Kind] = Kind.TL1
    a: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "a", 0)

    @property
    def shape(self) -> float:
        """a."""
        return self.a


@dataclass(frozen=True)
class MCP(Elementwise):
    """Minimax concave: lam |x| - x^2 / (2 gamma) up to |x| = gamma lam, constant beyond.

    Nothing beyond gamma * lam is shrunk: with lam = 1e-4, scales that start at 0.5 need a gamma of at least
    5,000. `with_cutoff` says it directly.

    Args:
        lam: weight, finite, >= 0.
        gamma: finite, > 0.

    Source: Zhang, Ann. Statist. 38(2), 2010.
    """

    kind: ClassVar[Kind] = Kind.MCP
    gamma: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "gamma", 0)

    @classmethod
    def with_cutoff(cls, lam: float, cutoff: float) -> "MCP":
        """MCP that shrinks nothing beyond |x| = cutoff (finite, > 0): gamma = cutoff / lam."""
        check_cutoff(cls.__name__, lam, cutoff, least=0)
        return cls(lam, cutoff / lam)

    @property
    def shape(self) -> float:
        """gamma."""
        return self.gamma


@dataclass(frozen=True)
class SCAD(Elementwise):
    """Smoothly clipped absolute deviation: lam |x| up to lam, then a parabola, constant beyond a lam.

    Nothing beyond a * lam is shrunk; see `MCP`.

    Args:
        lam: weight, finite, >= 0.
        a: finite, > 2.

    Source: Fan & Li, JASA 96, 2001.
    """

    kind: ClassVar[Kind] = Kind.SCAD
    a: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "a", 2)

    @classmethod
    def with_cutoff(cls, lam: float, cutoff: float) -> "SCAD":
        """SCAD that shrinks nothing beyond |x| = cutoff (finite, > 2 lam): a = cutoff / lam."""
        check_cutoff(cls.__name__, lam, cutoff, least=2)
        return cls(lam, cutoff / lam)

    @property
    def shape(self) -> float:
        """a."""
        return self.a


@dataclass(frozen=True)
class LogSum(Elementwise):
    """Log-sum: lam log(1 + |x| / eps), whose majorisation is reweighted L1 with weights lam / (eps + |x|).

    Near 0 it pulls like L1 with lam / eps, far out like lam / |x|.

    Args:
        lam: weight, finite, >= 0.
        eps: finite, > 0; around the size of the numbers to be kept.

    Source: Candes, Wakin & Boyd, J. Fourier Anal. Appl. 14, 2008.
    """

    kind: ClassVar[Kind] = Kind.LOGSUM
    eps: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "eps", 0)

    @property
    def shape(self) -> float:
        """eps."""
        return self.eps
