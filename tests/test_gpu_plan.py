import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from hemafast.bench.result import Costs
from hemafast.cli import app as hemafast_app
from hemafast.presets import PRESETS

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import gpu_plan  # scripts beside the package, not parts of it
import output

ROOT = gpu_plan.ROOT
NETWORKS = sorted({key[:2] for key in gpu_plan.presets_of()})


@pytest.fixture(scope="module")
def tables():
    return gpu_plan.tables(output.Results(ROOT / "benchmarks/results"))


B0, RESNET18 = ("efficientnet_b0", 224, 32), ("resnet18", 224, 32)
PROJECTED = [(model, 224, batch) for model in gpu_plan.MODELS for batch in gpu_plan.BATCHES]


def test_the_page_says_first_that_nothing_ran_on_a_gpu():
    page = (ROOT / "docs/gpu.md").read_text(encoding="utf-8")
    assert "**Nothing on this page comes from running hemafast on a GPU.**" in page.partition("<!-- table")[0]


def test_ceilings_are_the_sheet_divided_by_the_work():
    card = gpu_plan.Card("C", "c", peak=6e12, memory=8e9, generation=4, pcie=196_608e3)
    work = gpu_plan.Work(Costs(1, training_flops=3 * 10**9, forward_bytes=1, training_bytes=8 * 10**7), 2 * 10**7)
    assert list(work.ceilings(card).values()) == [2000, 100, 400, 1000]


def test_flops_of_resnet18_are_those_of_its_paper():
    forward = 2 * 1.8e9  # 1.8 G multiplications with additions
    assert gpu_plan.work_of(*RESNET18).costs.training_flops == pytest.approx(3 * forward, rel=0.02)


def test_backward_of_depthwise_convolutions_is_counted_by_group():
    forward = 2 * 0.39e9
    assert gpu_plan.work_of(*B0).costs.training_flops == pytest.approx(3 * forward, rel=0.03)


@pytest.mark.parametrize("card", gpu_plan.HOSTS, ids=lambda card: card.name)
@pytest.mark.parametrize("key", PROJECTED)
def test_efficiency_never_rises_with_gpus(key, card):
    work, share = gpu_plan.work_of(*key), gpu_plan.memory_share()
    each = [work.rate(card, gpus, share) / gpus for gpus in (1, 2, 4, 8, 16, 64, 256)]
    assert each == sorted(each, reverse=True)


@pytest.mark.parametrize("card", gpu_plan.HOSTS, ids=lambda card: card.name)
@pytest.mark.parametrize("key", PROJECTED)
def test_memory_binds_and_backward_hides_the_exchange_as_the_page_says(key, card):
    work, share = gpu_plan.work_of(*key), gpu_plan.memory_share()
    moved = (key[2] * work.costs.training_bytes + 28 * work.parameters) / (card.memory * share)
    buckets = -(-4 * work.parameters // gpu_plan.BUCKET)
    assert work.seconds(card, 1, share) == pytest.approx(moved)
    assert work.seconds(card, 64, share) - moved == pytest.approx(buckets * gpu_plan.LATENCY_HOSTS)


def test_the_first_published_rate_is_met():
    rate = gpu_plan.work_of(*gpu_plan.ANCHOR).rate(gpu_plan.A100, 1, gpu_plan.memory_share())
    assert rate == pytest.approx(gpu_plan.PUBLISHED[gpu_plan.ANCHOR][1])


def test_every_preset_is_planned_for():
    assert {name for names in gpu_plan.presets_of().values() for name in names} >= set(PRESETS)
    assert {("efficientnet_b0", 224), ("resnet18", 224)} <= set(NETWORKS)


@pytest.mark.parametrize("key", gpu_plan.presets_of())
@pytest.mark.parametrize("card", gpu_plan.CARDS, ids=lambda card: card.name)
def test_what_binds_is_what_the_page_says(key, card):
    found = gpu_plan.work_of(*key).ceilings(card)
    unfused, fused = found.pop(gpu_plan.UNFUSED), found["memory, all fused"]
    assert unfused < min(found.values())
    assert min(found, key=found.get) == ("arithmetic" if key[0] == "resnet18" else "memory, all fused")
    assert 3.4 < fused / unfused < 4.3


@pytest.mark.parametrize("model", ["resnet18", "efficientnet_b0"])
def test_a_larger_batch_raises_the_ceilings_of_memory_as_little_as_the_page_says(model):
    small, large = (gpu_plan.work_of(model, 224, batch) for batch in (32, 256))
    assert 1 < small.costs.training_bytes / large.costs.training_bytes < 1.09
    assert 1 < small.least_bytes / large.least_bytes < 1.09


def test_shares_of_what_was_published_are_those_of_the_bandwidth_and_the_peak(tables):
    flops = gpu_plan.work_of(*gpu_plan.ANCHOR).costs.training_flops
    row = tables["gpu_published"].splitlines()[2]
    assert f"| 2,489 | 100 % | {100 * 2489 * flops / 312e12:.1f} % |" in row
    assert f"| {100 * 2489 * 3 * 256 * 256 / 32e9:.1f} % |" in row


def test_every_host_of_the_projection_has_cores_enough_for_its_loader(tables):
    rows = [row.split(" | ") for row in tables["gpu_loader"].splitlines()[2:]]
    assert all(float(dear) <= int(cores) for *_, dear, cores, _ in rows)
    assert {row[-1] for row in rows} == {"yes |"}


def test_the_optimizer_is_as_small_as_the_page_says():
    shared = {model: 28 * gpu_plan.work_of(model, 224, 256).parameters / 256 / 1e6 for model in gpu_plan.MODELS}
    assert shared == {"efficientnet_b0": pytest.approx(0.4, abs=0.05), "resnet18": pytest.approx(1.2, abs=0.05)}


def spread(rate):
    return {"median": rate, "min": rate, "max": rate}


def station(rate):
    counts = {"steps": 1, "waited": 0.0, "page_faults": 0, "peak_memory": 1, "peak_device_memory": 1}
    return {
        "unit": "images",
        "images_per_second": spread(rate),
        "images_per_cpu_second": spread(rate),
        "page_faults_a_step": spread(0.0),
        "data_wait_share": spread(0.0),
        "peak_memory": 1,
        "peak_device_memory": 1,
        "rounds": [{"images": 1, "seconds": 1.0, "cpu_seconds": 1.0, **counts}] * 3,
    }


def result_file(folder, **machine):
    """What a bench on a machine might have written."""
    rates = {"step": 3000.0, "end to end": 2500.0, "augment, basic": 20_000.0, "decode": 9000.0}
    room = ("end_to_end", "step_with_free_data", "data_with_free_step", "decode", "arithmetic", "memory", "reached")
    result = {
        "schema": 2,
        "bench": {"model": "efficientnet_b0", "image_size": 224, "batch_size": 32},
        "data": {},
        "machine": {"device": "cuda", "precision": "bf16", "torch.compile": "on"} | machine,
        "warm_up_rounds": 1,
        "rounds": 3,
        "seconds": 0.5,
        "stations": {name: station(rate) for name, rate in rates.items()},
        "ratios": {},
        "matrix_product_flops": spread(1.0),
        "memory_copy_bytes": spread(1.0),
        "costs": {"forward_flops": 1, "training_flops": 1, "forward_bytes": 1, "training_bytes": 1},
        "headroom": dict.fromkeys(room, 1.0),
        "bound_by": "nothing",
    }
    file = folder / "result.json"
    file.write_text(json.dumps(result))
    return file


def compared(*files):
    command = [sys.executable, "benchmarks/gpu_plan.py", "compare", *map(str, files)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_measured_rates_are_shares_of_the_ceilings_of_their_card(tmp_path):
    said = gpu_plan.comparison(result_file(tmp_path, gpu="NVIDIA L4"))
    flops = gpu_plan.work_of(*B0).costs.training_flops
    title, _, _, _, step, whole, views, ceiling = said.splitlines()
    assert title == "efficientnet_b0, 224 px, batch 32, bf16, torch.compile on, NVIDIA L4"
    assert step.startswith(f"| step | 3,000 | {100 * 3000 * flops / 121e12:.1f} % | ")
    assert whole.startswith(f"| end to end | 2,500 | {100 * 2500 * flops / 121e12:.1f} % | ")
    crossing = 100 * 20_000 * 3 * 256 * 256 / 32e9
    assert (
        views == f"| augment, basic | 20,000 |  |  |  | {crossing:.1f} % |"
    )  # the loader computes nothing of the step
    assert ceiling.startswith(f"| ceiling |  | {121e12 / flops:,.0f} | ")


@pytest.mark.parametrize("machine", [{"gpu": "NVIDIA L40S"}, {"gpu": "NVIDIA L4", "precision": "fp32"}])
def test_where_nothing_is_known_of_the_card_rates_stand_alone(tmp_path, machine):
    said = gpu_plan.comparison(result_file(tmp_path, **machine))
    assert "no ceilings" in said
    assert "| step | 3,000 |" in said
    assert "%" not in said


def test_a_result_of_a_cpu_is_refused_in_one_line(tmp_path):
    done = compared(result_file(tmp_path, device="cpu"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "result.json was measured without a GPU. Name a result" in done.stderr


def dry_run(*arguments, **environment):
    command = ["bash", "benchmarks/gpu_day_one.sh", "--dry-run", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True, check=True
    )
    assert not done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_the_first_day_takes_less_than_ten_minutes():
    assert sum(int(seconds) for _, seconds, *_ in dry_run()) <= 600
    assert sum(int(seconds) for _, seconds, *_ in dry_run(PATIENCE="3")) > 600


@pytest.mark.parametrize("name", ["doctor", "prepare", "bench", "train"])
def test_what_the_first_day_asks_of_hemafast_can_be_asked(name):
    asked = [line[4:-2] for line in dry_run() if line[2].endswith("/hemafast") and line[3] == name]
    assert asked
    for options in asked:
        typer.main.get_command(hemafast_app).commands[name].make_context(name, options)


def test_the_first_day_measures_both_batch_sizes_on_the_card():
    benches = [line for line in dry_run("My archives") if line[3] == "bench" and "--quick" not in line]
    assert [line[line.index("--batch-size") + 1] for line in benches] == ["64", "256"]
    for line in benches:
        said = " ".join(line)
        assert "--model efficientnet_b0 --image-size 224" in said
        assert "--device cuda --amp bf16 --compile on" in said
        assert "--data My archives/prepared" in said


def test_the_first_day_writes_below_the_folder_of_the_card_alone():
    below, lines = "benchmarks/results/gpu/CARD/", dry_run()
    for line in lines:
        # The doctor's --json names no file.
        named = (">", "--plot", "--output") if line[3] == "doctor" else (">", "--json", "--plot", "--output")
        places = [place for place, word in enumerate(line) if word in named]
        targets = [line[place + 1] for place in places]
        assert all(target.startswith(below) for target in targets)
        assert targets[-1].startswith(below)
    assert not (ROOT / below).exists()


STAND_IN = """#!/bin/sh
echo "$(basename "$0") $*" >>calls
case "$*" in {trouble}) {does} ;; esac
"""


def first_day(folder, trouble="nothing", does="exit 3", change=("", "")):
    """The script in a folder of its own, with stand-ins for the card and for all that it runs."""
    (folder / "benchmarks").mkdir(exist_ok=True)
    (folder / "venv/bin").mkdir(parents=True)
    (folder / "path").mkdir()
    shutil.copy(ROOT / "benchmarks/gpu_plan.py", folder / "benchmarks")
    script = (ROOT / "benchmarks/gpu_day_one.sh").read_text()
    (folder / "benchmarks/gpu_day_one.sh").write_text(script.replace(*change) if change[0] else script)
    for file in (folder / "venv/bin/hemafast", folder / "venv/bin/python"):
        file.write_text(STAND_IN.format(trouble=trouble, does=does))
        file.chmod(0o755)
    (folder / "path/nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3'\n")
    (folder / "path/nvidia-smi").chmod(0o755)
    environment = {"PATH": f"{folder / 'path'}:{os.environ['PATH']}", "VENV": "venv"}
    command = ["bash", "benchmarks/gpu_day_one.sh"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


RESULTS = Path("benchmarks/results/gpu/NVIDIA-H100-80GB-HBM3")


def test_a_first_day_without_trouble_ends_well(tmp_path):
    done = first_day(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(f"Everything is in {RESULTS}.\nAll parts went well.\n")
    assert (tmp_path / RESULTS / "nvidia-smi.txt").read_text() == "NVIDIA H100 80GB HBM3\n"
    assert len((tmp_path / "calls").read_text().splitlines()) == 8


def test_a_part_that_fails_stops_no_other_and_is_named_at_the_end(tmp_path):
    done = first_day(tmp_path, trouble="prepare*")
    assert done.returncode == 1
    last = f"FAILED prepare: exit code 3; see {RESULTS}/prepare.txt and {RESULTS}/prepare.log"
    assert done.stdout.splitlines()[-1] == last
    assert len((tmp_path / "calls").read_text().splitlines()) == 8


def test_a_part_that_takes_too_long_is_stopped_and_named(tmp_path):
    done = first_day(tmp_path, trouble="train*", does="exec sleep 60", change=("train.txt 70", "train.txt 1"))
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("FAILED train: out of time after 1 s; PATIENCE=3")
    assert "gpu_plan.py compare" in (tmp_path / "calls").read_text().splitlines()[-1]


def test_nothing_of_an_earlier_call_is_taken_for_a_result(tmp_path):
    (tmp_path / RESULTS).mkdir(parents=True)
    (tmp_path / RESULTS / "bench-64.json").write_text("{}")
    first_day(tmp_path, trouble="bench*")
    assert not (tmp_path / RESULTS / "bench-64.json").exists()
    assert (tmp_path / "calls").read_text().splitlines()[-1] == "python benchmarks/gpu_plan.py compare"


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="needs a machine without a card")
def test_without_a_card_nothing_is_tried():
    environment = {"PATH": os.environ["PATH"], "VENV": sys.prefix}
    command = ["bash", "benchmarks/gpu_day_one.sh"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nvidia-smi names no card" in done.stderr
    assert not done.stdout
