"""Install this checkout into the environment that runs this, with the CPU build of torch where no card is.

    python tools/install.py [--device auto|cpu|cuda] [--torch-index URL] EXTRAS

torch from PyPI brings CUDA libraries and Triton, which a machine without a card never loads. Its CPU build has the same
version. pip's own index is asked for it, then `--torch-index`, from which nothing but torch and torchvision is taken.
Where neither has it, or torch is there already, the usual build is used, and a line says what that means.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "torchvision")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""The index of PyTorch itself."""
_IMPATIENT = ["--retries", "0", "--timeout", "15"]
"""An index that does not answer costs seconds, not minutes."""


def has_card() -> bool:
    """Whether the system shows an NVIDIA card with a driver. This needs no package."""
    sys.path.insert(0, str(ROOT))
    from hemafast.nvidia import card_present

    return card_present()


def cpu_builds(constraints: str) -> list[str]:
    """torch and torchvision as their CPU builds of the pinned versions, as `torch==2.14.1+cpu`."""
    pins = dict(re.findall(r"^([\w.-]+)==([^\s+;]+)", constraints, flags=re.MULTILINE))
    return [f"{name}=={pins[name]}+cpu" for name in PACKAGES]


def pip(*arguments: str, quiet: bool = False) -> bool:
    """Run pip; whether it succeeded. Quiet, its errors are not shown either: they are expected."""
    sink = subprocess.DEVNULL if quiet else None
    return (
        subprocess.run([sys.executable, "-m", "pip", *arguments], stdout=sink, stderr=sink, check=False).returncode == 0
    )


def install_cpu_builds(builds: Sequence[str], index: str) -> bool:
    """Install the CPU builds alone, from the first index that has them."""
    choices = [[], ["--index-url", index]] if index else [[]]
    return any(pip("install", "--no-deps", *_IMPATIENT, *choice, *builds, quiet=True) for choice in choices)


def is_there(package: str) -> bool:
    """Whether some version is installed."""
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def main() -> int:
    """Install; the exit code is pip's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("extras", help="extras of this package, as export,explain")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--torch-index", default=CPU_INDEX, metavar="URL", help="asked if pip's own has no CPU build")
    given = parser.parse_args()
    constraints = ROOT / "constraints.txt"
    without_card = given.device == "cpu" or (given.device == "auto" and not has_card())
    if without_card and not is_there("torch"):
        builds = cpu_builds(constraints.read_text(encoding="utf-8"))
        print(f"No NVIDIA card: looking for {' and '.join(builds)}, for at most a minute.", flush=True)
        if not install_cpu_builds(builds, given.torch_index):
            print(
                "No index that answers has them. So the usual build is fetched, with CUDA libraries that nothing here "
                "uses, about 3.8 GB in all. To avoid it, name an index that has them: make install TORCH_INDEX=URL",
                flush=True,
            )
    return 0 if pip("install", "--constraint", str(constraints), "--editable", f"{ROOT}[{given.extras}]") else 1


if __name__ == "__main__":
    sys.exit(main())
