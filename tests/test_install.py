"""Which build of torch an installation takes, and what it says of it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import install

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def asked(monkeypatch):
    """The calls of pip, which all fail but for the last."""
    calls = []

    def pip(*arguments, quiet=False):
        calls.append(arguments)
        return not quiet

    monkeypatch.setattr(install, "pip", pip)
    monkeypatch.setattr(install, "is_there", lambda _: False)
    return calls


def _install(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["install.py", *arguments])
    return install.main()


def test_a_card_is_looked_for_as_the_engine_does_before_any_package_is_there(monkeypatch):
    for there in (True, False):
        monkeypatch.setattr("hemafast.nvidia.card_present", lambda there=there: there)
        assert install.has_card() is there
    alone = [sys.executable, "-S", "-c", "import install; print(install.has_card())"]  # -S: nothing is installed
    done = subprocess.run(alone, cwd=ROOT / "tools", capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("True", "False")


@pytest.mark.parametrize(("card", "calls"), [(True, 1), (False, 3)])
def test_without_a_word_the_card_decides(asked, monkeypatch, card, calls):
    monkeypatch.setattr(install, "has_card", lambda: card)
    _install(monkeypatch, "dev")
    assert len(asked) == calls


def test_the_cpu_builds_are_of_the_pinned_versions():
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert install.cpu_builds("torch==2.1.0\ntorchvision==0.9\ntorchx==3\n") == [
        "torch==2.1.0+cpu",
        "torchvision==0.9+cpu",
    ]
    for build in install.cpu_builds(constraints):
        assert build.removesuffix("+cpu") in constraints.splitlines()


def test_without_a_card_the_cpu_build_is_looked_for_and_its_lack_is_told(asked, monkeypatch, capsys):
    assert _install(monkeypatch, "dev", "--device", "cpu", "--torch-index", "https://example.org/cpu") == 0
    own, other, rest = asked
    assert "--index-url" not in own
    assert other[other.index("--index-url") + 1] == "https://example.org/cpu"
    assert "--no-deps" in other  # nothing else may come from there
    assert rest[-1].endswith("[dev]")
    assert "TORCH_INDEX" in capsys.readouterr().out


def test_with_a_card_the_usual_build_is_taken(asked, monkeypatch):
    _install(monkeypatch, "dev", "--device", "cuda")
    assert len(asked) == 1


def test_torch_that_is_there_stays(asked, monkeypatch):
    monkeypatch.setattr(install, "is_there", lambda _: True)
    _install(monkeypatch, "dev", "--device", "cpu")
    assert len(asked) == 1


def test_both_images_check_their_health_and_are_not_run_by_root():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    base, *images = re.split(r"^FROM .*$", text, flags=re.MULTILINE)[1:]
    assert re.search(r'^HEALTHCHECK .*CMD \["hemafast", "doctor"', base, flags=re.MULTILINE)
    assert len(images) == 2
    for image in images:
        assert re.findall(r"^USER (\w+)$", image, flags=re.MULTILINE)[-1] == "hemafast"


def test_a_change_of_the_code_leaves_the_packages_of_an_image_as_they_are():
    """Docker keeps the layers before the first that changes."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    base, *images = re.split(r"^FROM .*$", text, flags=re.MULTILINE)[1:]
    assert "COPY hemafast" not in base
    for image in images:
        assert image.index("tools/install.py") < image.index("COPY hemafast") < image.index("compileall")


def test_the_image_for_a_cpu_is_none_with_another_build_of_torch(tmp_path):
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    image = text[text.index("AS cpu") : text.index("AS cuda")]
    (check,) = re.findall(r"python -c '(.*)'$", image, flags=re.MULTILINE)
    for cuda, code in ((None, 0), ("13.0", 1)):
        (tmp_path / "torch.py").write_text(f"class version:\n    cuda = {cuda!r}\n")
        command = [sys.executable, "-c", check]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, "TORCH_INDEX" in done.stderr) == (code, bool(code))


def test_installing_leaves_out_the_tools_of_developers():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    installed, tools = re.findall(r"^\t\$\(INSTALL\) (\S+)$", text, flags=re.MULTILINE)
    assert "dev" not in installed.split(",")
    assert tools.split(",") == ["dev", "docs"]
    assert re.search(r"^test: \$\(TOOLS\)", text, flags=re.MULTILINE)
