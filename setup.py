"""Builds csrc/ with CMake and ninja; everything else about the package is in pyproject.toml."""

import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """One CMake build instead of one compiler call per extension; a failure leaves a working, slower package."""

    def build_extension(self, ext: Extension) -> None:
        package = ROOT if self.editable_mode or self.inplace else Path(self.build_lib).resolve()
        target = package / "slimfast" / "_lib"
        target.mkdir(parents=True, exist_ok=True)
        reason = target / "not_built.txt"
        build = ROOT / "build" / f"cmake-{sysconfig.get_platform()}-{sys.version_info[0]}{sys.version_info[1]}"
        try:
            configure = ["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"]
            for command in (configure, ["cmake", "--build", build], ["cmake", "--install", build, "--prefix", target]):
                subprocess.run(list(map(str, command)), check=True)
            reason.unlink(missing_ok=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason.write_text(f"the C++ build failed: {error}\n")
            self.warn(f"slimfast works without its C++ ops, but slowly: {error}")

    def copy_extensions_to_source(self) -> None:
        """Nothing to copy: an editable build installs straight into the checkout."""

    def get_outputs(self) -> list[str]:
        return [str(path) for path in (Path(self.build_lib) / "slimfast" / "_lib").glob("*")]


setup(
    packages=[*find_packages(include=["slimfast*"]), "slimfast.kernels"],
    package_dir={"slimfast.kernels": "kernels"},
    ext_modules=[Extension("slimfast._lib._cmake", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
