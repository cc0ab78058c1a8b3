"""Builds csrc/ with CMake and ninja; everything else about the package is in pyproject.toml."""

import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """One CMake build for all extensions; a failure leaves a working, slower package."""

    def build_extension(self, ext: Extension) -> None:
        in_checkout = self.editable_mode or self.inplace
        target = (ROOT if in_checkout else Path(self.build_lib).resolve()) / "slimfast" / "_lib"
        name = f"cmake-{sysconfig.get_platform()}-{sys.version_info[0]}{sys.version_info[1]}"
        build = (ROOT / "build" if in_checkout else Path(self.build_temp).resolve()) / name
        target.mkdir(parents=True, exist_ok=True)
        for old in target.iterdir():  # a library of older sources is worse than none
            old.unlink()
        configure = ["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"]
        try:
            for command in (
                configure,
                ["cmake", "--build", build],
                ["cmake", "--install", build, "--prefix", target],
            ):
                subprocess.run(list(map(str, command)), check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            failed = error.cmd[:2] if isinstance(error, subprocess.CalledProcessError) else [error.filename]
            reason = (
                f"the C++ build failed in `{' '.join(failed)}`; it needs cmake, ninja and a C++17 compiler"
            )
            (target / "not_built.txt").write_text(reason + "\n")
            self.warn(f"slimfast works without its C++ ops, but slowly: {reason}")

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
