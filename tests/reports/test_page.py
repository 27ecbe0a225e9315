"""The report page: what it says is what the workdir holds, it needs nothing else, and no text of a user breaks out."""

import ast
import base64
import hashlib
import io
import json
import math
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jax_advtrain import command_line
from jax_advtrain import config as configs
from jax_advtrain.config_check import validate
from jax_advtrain.errors import ConfigError
from jax_advtrain.evaluation import results
from jax_advtrain.reports.page import charts, classes, comparison, comparison_of_runs, gallery, render, verdict
from jax_advtrain.studies import reporting
from jax_advtrain.training import workdir
from jax_advtrain.training.display import Display

PAGE = Path(render.__file__).parent
HOSTILE = '</script><script>document.title="broken"</script>'


class Read(HTMLParser):
    """What a page holds: text, ids, sources and links, and the scripts by type."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words, self.ids, self.loads, self.scripts, self._script = [], set(), [], [], None
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids |= {found["id"]} if "id" in found else set()
        self.loads += [found[name] for name in ("src", "href", "srcset", "action") if name in found]
        self._script = (found.get("type"), []) if tag == "script" else None

    def handle_data(self, data):
        if self._script is not None:
            self._script[1].append(data)
        else:
            self.words.append(data)

    def handle_endtag(self, tag):
        if tag == "script" and self._script is not None:
            self.scripts.append((self._script[0], "".join(self._script[1])))
            self._script = None

    @property
    def charts(self):
        return next(json.loads(text) for kind, text in self.scripts if kind == "application/json")


def drawn(folder: Path, **report) -> Read:
    """Writes the page of a workdir anew and reads it."""
    config = configs.from_plain(workdir.read_config(folder))
    config.report.update(report)
    reporting.report_run(config, folder, Display())
    return Read((folder / "report.html").read_text("utf-8"))


@pytest.fixture
def run(finished_run, tmp_path) -> Path:
    """A copy of the finished run without its checkpoints."""
    return Path(shutil.copytree(finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "events")))


def rewrite(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_training_ends_with_a_page_of_what_it_left(finished_run):
    page = Read((finished_run / "report.html").read_text("utf-8"))
    found = results.read_results(finished_run / "eval" / "best")
    records = results.records_of(found)
    norm, epsilon = "linf", 0.2  # the monitor's radius is the ceiling; 0.1 is the nearest that was attacked
    clean = next(one for one in records if one.attack == "clean")
    worst = next(one for one in records if (one.attack, one.norm, one.epsilon) == ("worst-of", norm, 0.1))
    assert verdict.at_radius(verdict.Evaluation("best", found, {}, {}), norm, epsilon).worst == worst
    assert (
        f"gets {clean.accuracy:.1%} of {clean.n} test samples right when clean, and {worst.accuracy:.1%}" in page.text
    )
    assert verdict.interval(worst.correct, worst.n) in page.text
    assert {"training", "margins", "attacks", "classes", "images", "reproduce", "settings", "missing"} <= page.ids
    assert "studies" not in page.ids
    # The charts hold the numbers of the files.
    log = workdir.read_metrics(finished_run)
    assert [row["y"] for row in page.charts["loss"]["data"]["values"]] == [line["train"]["loss"] for line in log]
    frames = page.charts["margins"]["usermeta"]["frames"]
    assert [frame["counts"] for frame in frames] == [line["margins"]["histogram"] for line in log]
    # The weakest class comes first.
    name, correct, n = verdict.weakest(worst, list(map(str, range(10))))
    table = page.text[page.text.index("mostly taken for") :].removeprefix("mostly taken for ")
    assert table.startswith(f"{name} {n} ") and f"{correct / n:.1%}" in table[:60]
    # What is missing has the command that adds it.
    assert "--mode=diagnose" in page.text and "--mode=margins" in page.text


def test_the_page_is_one_small_file_that_loads_and_sends_nothing(finished_run):
    path = finished_run / "report.html"
    page = Read(path.read_text("utf-8"))
    assert path.stat().st_size < 1_500_000
    assert all(one.startswith(("data:image/png;base64,", "#")) for one in page.loads), page.loads
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', path.read_text("utf-8"))
    assert policy is not None and "default-src 'none'" in policy[1] and "unsafe-eval" not in policy[1]
    for kind, script in page.scripts:
        if kind is None:  # every script that runs is named by its hash, so that no other one does
            digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy[1]
    assert len([kind for kind, _ in page.scripts if kind is None]) == 4
    assert not [one for one in finished_run.rglob("*.tmp")]


def test_no_name_breaks_out(run):
    folder = run.rename(run.with_name('<b>"run"&'))
    names = [HOSTILE, '<img src=x onerror="1">', "a & b", *map(str, range(3, 10))]

    def change(found):
        found["model"]["class_names"] = names
        found["warnings"] = [f"careful: {HOSTILE}"]

    rewrite(folder / "eval" / "best" / "results.json", change)
    page = drawn(folder)
    text = (folder / "report.html").read_text("utf-8")
    assert HOSTILE not in text and "<img src=x" not in text and "<b>" + '"run"' not in text
    assert HOSTILE in page.text and names[1] in page.text and '<b>"run"&' in page.text  # as they are, to read
    assert page.charts["classes-0"]["encoding"]["x"]["scale"]["domain"] == names  # and in the JSON inside a script
    assert len(page.scripts) == 5


def test_images_can_be_left_out(finished_run, command, tmp_path):
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    with_images = drawn(run)
    assert "data:image/png" in str(with_images.loads) and "images" in with_images.ids
    page = drawn(run, images=False)
    assert not [one for one in page.loads if one.startswith("data:")] and "images" not in page.ids
    assert "config.report.images is False" in page.text
    # An evaluation without them keeps no pixels.
    few = ["--config.eval.attacks=noise", "--config.eval.epsilons_linf=(0.05,)", "--config.eval.epsilons_l2=()"]
    asked = [f"--workdir={run}", "--mode=evaluate", "--config.eval.name=private", *few]
    answer = command(*asked, "--config.report.images=False")
    assert answer.code == 0 and f"report:  {run / 'report.html'}" in answer.out
    assert not (run / "eval" / "private" / gallery.GALLERY_NAME).exists()
    page = Read((run / "report.html").read_text("utf-8"))
    assert "images" not in page.ids and "private" in page.text
    assert (run / "eval" / "best" / gallery.GALLERY_NAME).exists()  # what was kept before stays


def test_sections_without_data_are_absent(run):
    bare = run.with_name("bare")
    bare.mkdir()
    shutil.copy(run / "config.json", bare)
    page = drawn(bare)
    assert page.ids & {"training", "margins", "attacks", "classes", "images", "studies"} == set()
    assert "is not evaluated yet" in page.text and "no epoch has ended" in page.text
    assert page.charts == {} and (bare / "report.html").stat().st_size < 100_000  # no chart, no library
    # Trained and not evaluated: the monitor's numbers, called so.
    shutil.copy(run / "metrics.jsonl", bare)
    page = drawn(bare)
    last = workdir.read_metrics(run)[-1]["validation"]
    assert (
        f"{last['robust_accuracy']:.1%} under the monitor's attacks" in page.text
        and "These are no results" in page.text
    )
    assert {"training", "margins"} <= page.ids and "attacks" not in page.ids


def test_what_cannot_be_read_is_named_and_the_rest_drawn(run):
    (run / "eval" / "best" / "results.json").write_text('{"schema_version": 1, "mod')
    page = drawn(run)
    assert "1 warning" in page.text and "eval/best could not be read" in page.text
    assert "attacks" in page.ids  # that of the last checkpoint


def test_a_lower_finding_elsewhere_stands_in_the_verdict(run):
    other = Path(shutil.copytree(run / "eval" / "best", run / "eval" / "strong"))

    def change(found):
        for record in found["records"]:
            if (record["attack"], record["norm"], record["epsilon"]) == ("worst-of", "linf", 0.1):
                record["correct"] -= record["per_class"][0]["correct"]
                record["per_class"][0]["correct"] = 0

    rewrite(other / "results.json", change)
    page = drawn(run)
    assert "the evaluation strong leaves" in page.text and "the evaluation strong finds less" in page.text
    assert "--config.eval.name=strong" in page.text  # and the command that makes it


def test_a_page_that_fails_loses_nothing_and_is_told(run, capfd, monkeypatch):
    before = (run / "report.html").read_bytes()
    config = configs.from_plain(workdir.read_config(run))

    def fail(held, path):
        raise KeyError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(reporting, "write_report", fail)
        reporting.report_run(config, run, Display())
    told = capfd.readouterr().err
    assert told.startswith("warning: ") and told.count("\n") == 1
    assert "KeyError" in told and "older than the results" in told and "all results are whole" in told
    assert (run / "report.html").read_bytes() == before
    assert "a bug" in (run / "report-failure.txt").read_text()
    # Too large a page is such a failure too; nothing half-written is left.
    with monkeypatch.context() as patch:
        patch.setattr(render, "MOST_BYTES", 1000)
        reporting.report_run(config, run, Display())
    assert "more than 1,000" in capfd.readouterr().err and (run / "report.html").read_bytes() == before
    drawn(run)
    assert not (run / "report-failure.txt").exists()


def test_no_page_where_none_is_asked_for_or_another_process_writes(run, monkeypatch):
    (run / "report.html").unlink()
    config = configs.from_plain(workdir.read_config(run))
    config.report.enabled = False
    reporting.report_run(config, run, Display())
    config.report.enabled = True
    monkeypatch.setattr(workdir, "is_writer", lambda: False)
    reporting.report_run(config, run, Display())
    assert not (run / "report.html").exists()


def test_the_commands_make_the_same_again(run):
    kept = workdir.read_config(run)
    asked = {"attacks": "pgd:num_steps=2, noise", "epsilons_l2": [], "epsilons_linf": [0.1], "num_samples": 30}
    shutil.copytree(run / "eval" / "best", run / "eval" / "strong")
    rewrite(run / "eval" / "strong" / "settings.json", lambda settings: settings.update(asked))
    held = reporting.holdings(configs.from_plain(kept), run)
    train, evaluate = (shlex.split(command.replace("\\\n", " "))[2:] for _, command in held.commands)
    read = command_line.read(train)
    assert read is not None and read.mode == "train" and read.workdir == run.with_name("run-again")
    assert configs.plain(read.config) == kept
    # The evaluation is that of the run that was made again.
    shutil.copytree(run, run.with_name("run-again"))
    read = command_line.read(evaluate)
    assert read is not None and read.mode == "evaluate" and read.config.eval.name == "strong"
    assert {name: configs.plain(read.config)["eval"][name] for name in asked} == asked


def test_a_comparison_names_the_command_that_makes_it_again(tmp_path):
    from jax_advtrain.studies import commands, grid

    base = configs.base("standard", "mlp")
    base.model.hidden = (16,)
    asked = grid.grid(base, {"standard": {}, "ima": {"defense": {"eps_max": 0.1}, "seeds": (0, 1)}})
    workdir.write_json(tmp_path / "comparison.json", {"grid": configs.plain(asked)})
    [(_, command)] = commands.of_grid(tmp_path)
    read = command_line.read_grid(shlex.split(command.replace("\\\n", " "))[2:], {"compare": ""}, "")
    assert read is not None and configs.plain(read.config) == configs.plain(asked)
    assert [one.method for one in grid.runs(read.config, tmp_path)] == ["standard", "ima", "ima"]
    for read_wrongly in (command_line.read, lambda line: command_line.read_grid(line, {"compare": ""}, "")):
        (tmp_path / "other.json").write_text('{"epochs": 3}')
        with pytest.raises(ConfigError, match=r"other\.json cannot be read as a config: it holds no (config|grid)"):
            read_wrongly(["main.py", f"--config={tmp_path / 'other.json'}"])


@pytest.mark.parametrize("field", ["enabled", "images"])
def test_the_fields_of_the_config(field):
    config = configs.base()
    config.data.name = "digits"
    assert "report" not in configs.identity(config)
    older = configs.plain(config)
    del older["report"]
    assert configs.from_plain(older).report[field] is True
    with config.ignore_type():
        config.report[field] = 1
    with pytest.raises(ConfigError, match=rf"report\.{field} is 1; give True or False"):
        validate(config, 1)


def kept_gallery(images: np.ndarray, difference: np.ndarray, **more) -> dict[str, np.ndarray]:
    n = len(images)
    told = dict(
        id=np.arange(n), label=np.zeros(n, int), clean_prediction=np.zeros(n, int), attacked_prediction=np.ones(n, int),
        clean_confidence=np.full(n, 0.9), attacked_confidence=np.full(n, 0.6), distance=np.full(n, 0.1),
        class_names=("cat", "dog"), attack="pgd-20-ce", norm="linf", epsilon=0.1,
    )  # fmt: skip
    return gallery.arrays(images, np.clip(images + difference, 0, 1), **{**told, **more})


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_the_very_pixels(channels):
    values = np.random.default_rng(0).integers(0, 256, (30, 9, 7, channels)).astype(np.uint8)
    difference = np.zeros(values.shape, np.float32)
    difference[:, 0, 0] = 0.1
    section = gallery.section(kept_gallery(values / np.float32(255), difference), "best")
    assert section is not None and len(section["samples"]) == gallery.MOST_KEPT == 24
    one = section["samples"][3]
    expected = values[3, ..., 0] if channels == 1 else values[3]
    np.testing.assert_array_equal(pixels(one["pictures"]["clean"]), expected)
    drawn = pixels(one["pictures"]["difference"])
    unchanged = drawn[1:].reshape(-1, 3)
    assert (unchanged == unchanged[0]).all() and unchanged[0, 0] in (128, 247)  # mid-grey, or white
    assert (drawn[0, 0, 0] > drawn[0, 0, 2]) if channels == 1 else (drawn[0, 0] >= 128).all()
    assert one["before"] == {"name": "cat", "confidence": pytest.approx(0.9), "right": True}
    assert one["after"] == {"name": "dog", "confidence": pytest.approx(0.6), "right": False}


def test_pictures_that_would_be_too_many_bytes_are_counted_and_left_out(monkeypatch):
    noise = np.random.default_rng(0).random((6, 40, 40, 3)).astype(np.float32)
    monkeypatch.setattr(gallery, "MOST_BYTES", 60_000)
    section = gallery.section(kept_gallery(noise, 0 * noise), "best")
    assert section is not None
    size = sum(len(text) for one in section["samples"] for text in one["pictures"].values())
    assert size <= 60_000 and len(section["samples"]) + section["left_out"] == 6 and section["left_out"] > 0
    assert gallery.section(kept_gallery(noise[..., :2], 0 * noise[..., :2]), "best") is None


def test_lines_leave_out_what_is_not_known_and_keep_both_ends():
    found = charts.lines(
        [charts.Series("a.b", [(1, 0.5), (2, None), (3, math.nan), (4, 0.25)], "blue")], x="epoch", y="", whole=True
    )
    assert [(row["x"], row["y"]) for row in found["data"]["values"]] == [(1, 0.5), (4, 0.25)]
    assert charts.thinned(range(10_000), 400)[::399] == [0, 9999] and len(charts.thinned(range(10_000), 400)) == 400


def test_json_in_a_script_stays_in_it():
    text = render.as_json({"names": [HOSTILE, "<!--", "\u2028"], "nan": math.nan})
    assert json.loads(text) == {"names": [HOSTILE, "<!--", "\u2028"], "nan": None}
    assert not set("<>&\u2028") & set(text)


def test_many_classes_stay_small_and_classes_of_one_name_stay_apart():
    rng = np.random.default_rng(0)
    labels, n = np.repeat(np.arange(1000), 5), 1000
    predicted = np.where(rng.random(5000) < 0.5, labels, rng.integers(0, n, 5000))
    counts = classes.flow.confusion(labels, predicted, n)
    table = classes.table_of_counts(np.full(n, 5), counts.diagonal())._asdict()
    section = classes._section(["twin"] * 2 + [f"n{k}" for k in range(998)], table, table, counts, [False] * n)
    assert len(section["rows"]) == 1000 and section["map_of"] == 40
    assert len(render.as_json(section)) < 1_000_000
    pair = np.array([[3, 1], [2, 2]])
    twins = classes._map(["twin", "twin"], pair / 4, pair)["map"]
    assert twins["encoding"]["x"]["scale"]["domain"] == ["0: twin", "1: twin"]


def row(what, attack, epsilon, best, **values):
    told = {name: {"mean": float(np.mean(each)), "deviation": 0.01 if each[1:] else None, "each": each}
            for name, each in values.items()}  # fmt: skip
    norm = None if attack == "clean" else "linf"
    return dict(what=what, attack=attack, norm=norm, epsilon=epsilon, best=best, values=told)


def test_the_page_of_a_comparison(tmp_path):
    place = dict(what="accuracy", first="pgd_at", second="ima", difference=-0.03, p_adjusted=0.4, within_noise=True)
    compared = {
        "methods": {"pgd_at": {"seeds": [0]}, "ima": {"seeds": [0, 1]}},
        "data": {"name": "digits", "split": "test"},
        "samples": [360],
        "reference": "pgd_at",
        "rows": [
            row("accuracy", "clean", 0.0, "ima", pgd_at=[0.9], ima=[0.92, 0.94]),
            row("accuracy", "worst-of", 0.1, "pgd_at", pgd_at=[0.8], ima=[0.7, 0.72]),
        ],
        "tests": [{**place, "attack": "clean", "norm": None, "epsilon": 0.0}],
    }
    runs = [
        {"method": "ima", "name": "seed 0", "link": "ima/seed-0/report.html", "link_text": "ima/seed-0/report.html"}
    ]
    path = comparison.write_comparison(
        compared, tmp_path / "report.html", folder="f", runs=runs, commands=[("Again:", "python")], settings=[]
    )
    page = Read(path.read_text("utf-8"))
    assert "At L-inf 0.1, the middle of the radii, under the worst case pgd_at is best, 80.0% right" in page.text
    assert "Clean ima is best, 93.0% right; within noise of it: pgd_at." in page.text
    assert "0.930 ± 0.010" in page.text and "ima/seed-0/report.html" in page.loads
    values = page.charts["curve-linf"]["data"]["values"]
    assert {(one["x"], round(one["y"], 3)) for one in values if one["k"] == "s1"} == {(0.0, 0.93), (0.1, 0.71)}


def test_the_library_is_what_its_note_says():
    told = dict(re.findall(r"`(\S+\.js)` \| [^|]*\| `([0-9a-f]{64})`", (PAGE / "vega" / "README.md").read_text()))
    assert {path.name for path in (PAGE / "vega").glob("*.js")} == set(told)
    for name, expected in told.items():
        assert hashlib.sha256((PAGE / "vega" / name).read_bytes()).hexdigest() == expected


def test_help_does_not_wait_for_the_template_engine():
    for path in PAGE.glob("*.py"):
        outside = [node for node in ast.parse(path.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert "jinja2" not in ast.dump(ast.Module(outside, [])), path


def test_the_page_of_several_runs_calls_noise_so():
    def group(name, robust, weakest):
        return {"name": name, "robust": {"mean": robust}, "worst_class": {"mean": weakest}}

    pair = {"first": "ima", "second": "pgd_at", "robust": {"real": True}, "worst_class": {"real": False}}
    facts = {"groups": [group("ima", 0.6, 0.3), group("pgd_at", 0.7, 0.2)], "pairs": [pair]}
    first, second = comparison_of_runs.sentences(facts, 2, "L2 1")
    assert (
        first
        == "pgd_at is the most robust, 70.0% right under the worst case at L2 1; 1 of 1 pairs differ beyond noise."
    )
    assert second == "The weakest class is least weak with ima, 30.0%; within noise of it: pgd_at."


def test_what_check_model_found_of_the_same_weights_stands_at_the_top(run):
    other = Path(shutil.copytree(run / "eval" / "best", run / "eval" / "checked"))
    rewrite(other / "settings.json", lambda settings: settings.update(check_samples=20))
    assert "and check_model found nothing" in drawn(run).text
    rewrite(other / "results.json", lambda found: found.update(warnings=["outputs are probabilities"]))
    page = drawn(run)
    assert "1 warning checked: outputs are probabilities" in page.text
    assert "the warning below calls these numbers in question" in page.text
    # Of an earlier step it says nothing of these weights.
    rewrite(other / "results.json", lambda found: found["model"].update(step=1))
    assert "warning below" not in drawn(run).text
